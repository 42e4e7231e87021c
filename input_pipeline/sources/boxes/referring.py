"""Source: phrases of what is in an image, each with its box.

RefCOCO, RefCOCO+, RefCOCOg, Flickr30k Entities and Visual Genome, in the files that each publishes.
"""

import os
import re
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline.checks import unicode
from input_pipeline.files import annotations as annotation_files
from input_pipeline.files import pickles
from input_pipeline.files.ranges import read_files, source_path
from input_pipeline.records import given, naming
from input_pipeline.sources.shared import listed
from input_pipeline.sources.shared.listed import Kind, unique
from input_pipeline.text.boxes import shares

Entry = tuple[str, dict[str, Any]]

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/\S+)? ([^\]]*)\]")


class Source(listed.Listed):
    """Records with `phrases` and `boxes` f32[N, 4], one for each: x0, y0, x1, y1 in shares of the
    image's sides; and `split` where the set has some.

    kind, and what is read of its files (annotations; images):
      refcoco (arXiv 1608.00272; RefCOCO+ and RefCOCOg likewise): refs(unc).p, refs(google).p or
        refs(umd).p, a pickle of [{ref_id, ann_id, image_id, split, sentences: [{sent}]}], which is
        read as plain data, and beside it instances.json (images: id, file_name, width, height;
        annotations: id, image_id, bbox); COCO's train2014. A record for each object that is
        referred to: its sentences are the phrases, as each of them is tested by itself.
      flickr_entities (arXiv 1505.04870): the folder of Annotations, Sentences and SPLIT.txt;
        NAME.jpg. A record for each sentence, with it as the caption "caption", and those of its
        phrases that have boxes, as often as they have.
      visual_genome (arXiv 1602.07332): region_descriptions.json ([{id, regions: [{image_id, x, y,
        width, height, phrase}]}]), and beside it image_data.json ([{image_id, width, height}]); the
        folder of VG_100K and VG_100K_2, or one folder of all. A record for each image.

    A box that ends outside by 5 % of a side or less ends at the edge.

    Args:
      kind: one of these.
      annotations: the file, or folder.
      images: directory that the images' names start from.
      split: one that the set has; needed but for `visual_genome`, which has none.
      drop_outside: leave out boxes that are further outside, or have no area, in place of an error.

    Raises:
      FileNotFoundError: files or images are missing.
      ValueError: a file is of another form; there is no such split; a box is outside.
    """

    def __init__(
        self,
        kind: str,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        split: str | None = None,
        drop_outside: bool = False,
    ):
        chosen = listed.choose(KINDS, kind, {"split": split})
        path, folder = source_path(annotations), source_path(images)
        self._drop, left_out = drop_outside, Counter()
        with listed.understood(path, chosen.form):
            entries = self._inside(chosen.read(path, folder, split), left_out)
            super().__init__(f"referring {kind} {drop_outside}", folder, entries)
        self.left_out = dict(left_out)

    def _inside(self, entries: Iterable[Entry], left_out: Counter[str]) -> Iterator[Entry]:
        """Without phrases that are blank; with shares."""
        for name, fields in entries:
            written = [bool(phrase.strip()) for phrase in fields["phrases"]]
            if not all(written):
                left_out["blank phrases"] += written.count(False)
                for key in ("phrases", "pixels"):
                    fields[key] = [one for one, kept in zip(fields[key], written) if kept]
            with naming(fields):
                fields, outside = self._in_shares(fields, fields.pop("size"))
            if outside:
                left_out["boxes outside their images"] += outside
            if fields["phrases"]:
                yield name, fields
            else:
                left_out["entries without a box"] += 1

    def _in_shares(self, fields: dict[str, Any], size: Sequence[int]) -> tuple[dict[str, Any], int]:
        """The fields with boxes in shares, and how many of them were dropped."""
        boxes, inside = shares(fields.pop("pixels"), *size)
        if not inside.all() and not self._drop:
            where = int(np.flatnonzero(~inside)[0])
            raise ValueError(
                f"the box of {fields['phrases'][where]!r} is outside its image of {size[0]}x"
                f"{size[1]} pixels, or has no area; drop_outside=true leaves such boxes out"
            )
        phrases = [phrase for phrase, kept in zip(fields["phrases"], inside) if kept]
        kept = boxes[inside].tolist()
        return fields | {"phrases": phrases, "boxes": kept}, int((~inside).sum())

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        return _with_boxes(super().record_of(index, *contents))

    def fields(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        return [_with_boxes(fields) for fields in super().fields(indices)]


def _with_boxes(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"boxes": np.array(record["boxes"], np.float32).reshape(-1, 4)}


def _refcoco(path, folder, split: str) -> Iterator[Entry]:
    data = given(read_files([path])[0])
    refs = pickles.load(data)
    unicode.check(refs)
    known = sorted({ref["split"] for ref in refs})
    if split not in known:
        raise ValueError(f"it has no split {split!r}, but {', '.join(known)}")
    instances = listed.read_json(path.parent / "instances.json")
    images = unique(instances["images"], "id")
    objects = unique(instances["annotations"], "id")
    for name, ref in unique(refs, "ref_id").items():
        if ref["split"] != split:
            continue
        found = objects.get(annotation_files.identity(ref["ann_id"]))
        if found is None or found["image_id"] != ref["image_id"]:
            raise ValueError(
                f"ref {name} is of object {ref['ann_id']} of image {ref['image_id']}, which "
                "instances.json does not have: the files are of different sets or versions"
            )
        image = images[annotation_files.identity(ref["image_id"])]
        x, y, width, height = found["bbox"]
        phrases = [sentence["sent"].strip() for sentence in ref["sentences"]]
        yield (
            image["file_name"],
            {
                "id": name,
                "phrases": phrases,
                "pixels": [[x, y, x + width, y + height]] * len(phrases),
                "size": (image["width"], image["height"]),
                "split": split,
            },
        )


def _flickr_entities(path, folder, split: str) -> Iterator[Entry]:
    try:
        names = unicode.decode(given(read_files([path / f"{split}.txt"])[0])).split()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} has no {split}.txt, which lists its images.") from None
    files = [path / "Sentences" / f"{name}.txt" for name in names]
    files += [path / "Annotations" / f"{name}.xml" for name in names]
    contents = [given(data) for data in read_files(files)]
    for name, sentences, boxes in zip(names, contents[: len(names)], contents[len(names) :]):
        try:
            size, boxes_of = _entity_boxes(boxes)
        except xml.ParseError as error:
            raise ValueError(f"Annotations/{name}.xml: {error}") from None
        for number, line in enumerate(unicode.decode(sentences).splitlines()):
            if not line.strip():
                continue
            pairs = dict.fromkeys(
                (phrase, tuple(box))
                for entity, phrase in _PHRASE.findall(line)
                for box in boxes_of.get(entity, ())
            )
            yield (
                f"{name}.jpg",
                {
                    "id": f"{name}/{number}",
                    "captions": {"caption": [_PHRASE.sub(r"\2", line).strip()]},
                    "phrases": [phrase for phrase, _ in pairs],
                    "pixels": [list(box) for _, box in pairs],
                    "size": size,
                    "split": split,
                },
            )


def _entity_boxes(data: bytes) -> tuple[tuple[int, int], dict[str, list[list[int]]]]:
    """(width, height), and the boxes of each entity, counted from 0 as the set's own code does."""
    root = xml.fromstring(data)
    found: dict[str, list[list[int]]] = {}
    for one in root.iter("object"):
        box = one.find("bndbox")
        if box is not None:
            corners = [int(box.findtext(key)) - 1 for key in ("xmin", "ymin", "xmax", "ymax")]
            for name in one.findall("name"):
                found.setdefault(name.text, []).append(corners)
    return (int(root.findtext("size/width")), int(root.findtext("size/height"))), found


def _visual_genome(path, folder, split: None) -> Iterator[Entry]:
    place = listed.in_visual_genome(folder)
    sizes = unique(listed.read_json(path.parent / "image_data.json"), "image_id")
    for name, one in unique(annotation_files.read(path), "id").items():
        if name not in sizes:
            raise ValueError(
                f"image {name} is not in image_data.json: the files are of different versions"
            )
        phrases, pixels = [], []
        for region in one["regions"]:
            x, y, width, height = (region[key] for key in ("x", "y", "width", "height"))
            phrases.append(region["phrase"].strip())
            pixels.append([x, y, x + width, y + height])
        size = sizes[name]["width"], sizes[name]["height"]
        yield (
            place(f"{name}.jpg"),
            {"id": name, "phrases": phrases, "pixels": pixels, "size": size},
        )


KINDS = {
    "refcoco": Kind(
        _refcoco,
        "RefCOCO's pickle of [{ref_id, ann_id, image_id, split, sentences: [{sent}]}], and "
        "instances.json beside it",
        ["split"],
    ),
    "flickr_entities": Kind(
        _flickr_entities,
        "Flickr30k Entities' folders Annotations and Sentences, and SPLIT.txt",
        ["split"],
    ),
    "visual_genome": Kind(
        _visual_genome,
        "Visual Genome's [{id, regions: [{x, y, width, height, phrase}]}], and image_data.json "
        "([{image_id, width, height}]) beside it",
    ),
}
