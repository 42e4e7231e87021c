"""Source: sets that retrieval by long captions, and in many languages, is tested on, as published.

Urban-1k (arXiv 2403.15378), DCI (arXiv 2312.08578), DOCCI (arXiv 2404.19753), Crossmodal-3600
(arXiv 2205.12522) and XTD (arXiv 2012.05107).
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from input_pipeline.checks import unicode
from input_pipeline.files.listing import check_images, names_in
from input_pipeline.files.ranges import read_files, source_path
from input_pipeline.records import given
from input_pipeline.sources.shared import base

_XTD_NAMES, _XTD_CAPTIONS = "test_image_names.txt", "test_1kcaptions_"
_FORMATS = "Urban-1k, DCI, DOCCI, XM3600 or XTD"


class Source(base.OfFiles):
    """A record for each image, with one caption in each field: `caption`, or a language.

    What the annotations are is told by the names and contents of the files:
      Urban-1k's folder caption, of NAME.txt; the first line counts, as in its authors' code. The
        image is NAME.jpg.
      DCI's folder complete, of JSON files. The caption is the short one and, behind it, the extra
        one; which text of DCI others take is not known of all.
      DOCCI's docci_descriptions.jsonlines: the descriptions of its test split.
      XM3600's captions.jsonl: the first caption of each language, as in clip_benchmark.
      XTD's texts, in one folder: test_image_names.txt, and test_1kcaptions_LANGUAGE.txt each.

    Args:
      annotations: the file or folder.
      images: directory of the images.

    Raises:
      FileNotFoundError: there are no such files, or images are missing.
      ValueError: it is something else.
    """

    def __init__(self, annotations: str | os.PathLike, images: str | os.PathLike):
        self._folder, path = os.fspath(source_path(images)), source_path(annotations)
        try:
            self._examples = list(_read(path))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is nothing of {_FORMATS} ({error!r}).") from None
        if not self._examples:
            raise ValueError(f"{path} has no caption of {_FORMATS}.")
        check_images(self._folder, (name for name, _ in self._examples))

    def __len__(self) -> int:
        return len(self._examples)

    def paths(self, index: int) -> Sequence[str]:
        """The image."""
        return [os.path.join(self._folder, self._examples[index][0])]

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        name, captions = self._examples[index]
        own = {field: [text] for field, text in captions.items()}
        return {"id": name, "image": contents[0], "captions": own}

    def identity(self) -> Iterable[str | bytes]:
        """Names and captions, and the images' sizes."""
        return "retrieval_sets", json.dumps(self._examples), self.sizes()


def _read(path) -> Iterator[tuple[str, dict[str, str]]]:
    """(file name of the image, caption of each field)"""
    names = sorted(names_in(path))
    if _XTD_NAMES in names:
        return _read_xtd(path, names)
    if names:
        return _read_folder(path, names)
    try:
        text = unicode.decode(given(read_files([path])[0]))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is neither a file nor a folder {path}.") from None
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    return _read_xm3600(lines) if "image/key" in lines[0] else _read_docci(lines)


def _read_folder(path, names: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    files = [path / name for name in names if name.endswith((".json", ".txt"))]
    for file, data in zip(files, read_files(files)):
        text = unicode.decode(given(data))
        if file.suffix == ".txt":
            yield f"{file.stem}.jpg", {"caption": text.splitlines()[0].strip()}
        else:
            one = json.loads(text)
            both = (one["short_caption"].strip(), one["extra_caption"].strip())
            yield one["image"], {"caption": "\n".join(filter(None, both))}


def _read_docci(lines: list[dict]) -> Iterator[tuple[str, dict[str, str]]]:
    for one in lines:
        if one["split"] == "test":
            yield one["image_file"], {"caption": one["description"].strip()}


def _read_xm3600(lines: list[dict]) -> Iterator[tuple[str, dict[str, str]]]:
    for one in lines:
        said = {key: value for key, value in one.items() if isinstance(value, dict)}
        yield (
            f"{one['image/key']}.jpg",
            {language: value["caption"][0].strip() for language, value in said.items()},
        )


def _read_xtd(path, names: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    files = [name for name in names if name.startswith(_XTD_CAPTIONS)]
    texts = [
        [line.strip() for line in unicode.decode(given(data)).splitlines()]
        for data in read_files([path / name for name in (_XTD_NAMES, *files)])
    ]
    languages = [name.removeprefix(_XTD_CAPTIONS).removesuffix(".txt") for name in files]
    for image, *captions in zip(*texts, strict=True):
        yield image, dict(zip(languages, captions))
