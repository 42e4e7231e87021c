"""Source: the sets that captioning is tested on, in the files that each publishes."""

import os
from collections.abc import Iterator
from typing import Any

from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.shared import listed
from input_pipeline.sources.shared.listed import Kind, only, text, unique

Entry = tuple[str, dict[str, Any]]


class Source(listed.Listed):
    """A record for each image, in the order of the file, with all its captions in one field, and
    `split` and `domain` where the set has them. Images of a test whose captions are kept secret
    have none.

    kind, and what is read of its file:
      karpathy: dataset_coco.json, dataset_flickr30k.json (images: filepath, filename, split,
        sentences: raw; the id is cocoid, else the file's name). Splits are train, restval, val and
        test; "train+restval" is both.
      nocaps (arXiv 1812.08658): nocaps_val_4500_captions.json (images: id, file_name, domain;
        annotations: image_id, caption).
      textcaps (arXiv 2003.12462): TextCaps_0.1_SPLIT.json (data: image_id, caption_str, set_name,
        an entry for each caption); IMAGE_ID.jpg.

    The source `coco` reads COCO's own captions_*.json, and ALBEF's lists.

    Args:
      kind: one of these.
      annotations: the file.
      images: directory that the images' names start from.
      split: of `karpathy`.
      caption_field: the name under which records hold the captions.

    Raises:
      FileNotFoundError: the file or images are missing.
      ValueError: the file is of another form, or has no such split.
    """

    def __init__(
        self,
        kind: str,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        split: str | None = None,
        caption_field: str = "caption",
    ):
        chosen, path = listed.choose(KINDS, kind, {"split": split}), source_path(annotations)
        with listed.understood(path, chosen.form):
            entries = chosen.read(annotation_files.read(path), split)
            super().__init__(
                f"captioning {kind}", source_path(images), _captioned(entries, caption_field)
            )


def _captioned(
    entries: Iterator[tuple[str, list[Any], dict[str, Any]]], field: str
) -> Iterator[Entry]:
    """Of (image, captions, other fields). A blank caption, of which COCO has some, is no caption,
    but an image without one is a fault where others have theirs."""
    found = []
    for image, captions, fields in entries:
        written = [c for c in captions if not isinstance(c, str) or c.strip()]
        what = f"image {fields['id']}: the caption"
        found.append((image, [text(caption, what) for caption in written], fields))
    without = [fields["id"] for _, captions, fields in found if not captions]
    if without and len(without) < len(found):
        raise ValueError(
            f"{len(without):,} of {len(found):,} images have no caption, such as {without[0]}"
        )
    for image, captions, fields in found:
        yield image, fields | {"captions": {field: captions} if captions else {}}


def _karpathy(content: dict[str, Any], split: str) -> Iterator[tuple]:
    wanted, known = split.split("+"), {one["split"] for one in content["images"]}
    if missing := [name for name in wanted if name not in known]:
        raise ValueError(f"it has no split {missing[0]!r}, but {', '.join(sorted(known))}")
    for one in content["images"]:
        if one["split"] in wanted:
            image = os.path.join(one.get("filepath", ""), one["filename"])
            name = annotation_files.identity(one.get("cocoid", one["filename"]))
            captions = [sentence["raw"] for sentence in one["sentences"]]
            yield image, captions, {"id": name, "split": one["split"]}


def _nocaps(content: dict[str, Any], split: None) -> Iterator[tuple]:
    images = unique(content["images"], "id")
    captions: dict[str, list[str]] = {name: [] for name in images}
    for name, one in annotation_files.by_image(content.get("annotations", []), images):
        captions[name].append(one["caption"])
    for name, one in images.items():
        yield one["file_name"], captions[name], {"id": name, **only(domain=one.get("domain"))}


def _textcaps(content: dict[str, Any], split: None) -> Iterator[tuple]:
    found: dict[str, tuple] = {}
    listed.check_set(content, "textcaps")
    for one in content["data"]:
        name = annotation_files.identity(one["image_id"])
        fields = {"id": name, **only(split=one.get("set_name"))}
        _, captions, _ = found.setdefault(name, (f"{name}.jpg", [], fields))
        captions += [one["caption_str"]] if "caption_str" in one else []
    return iter(found.values())


KINDS = {
    "karpathy": Kind(
        _karpathy,
        "Karpathy's {images: [{filename, split, sentences: [{raw}]}]}",
        ["split"],
    ),
    "nocaps": Kind(
        _nocaps,
        "NoCaps' {images: [{id, file_name, domain}], annotations: [{image_id, caption}]}",
    ),
    "textcaps": Kind(_textcaps, "TextCaps' {data: [{image_id, caption_str, set_name}]}"),
}
