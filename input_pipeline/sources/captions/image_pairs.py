"""Source: two images that are much alike, and a sentence for each or for one of them.

Winoground (arXiv 2204.03162), MMVP-VLM (arXiv 2401.06209) and SVO-Probes (arXiv 2106.09141), as
each is published.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from input_pipeline.checks import unicode
from input_pipeline.files.listing import check_images
from input_pipeline.files.ranges import read_files, source_path
from input_pipeline.records import given
from input_pipeline.sources.shared import base

_SVO = {"subj_neg": "subject", "verb_neg": "verb", "obj_neg": "object"}


class Source(base.OfFiles):
    """A record for each image, with `pairs`, those that it is in: of each its name as `pair`, as
    `kind` what sets the two images apart, and as `sentence` that of this image; None where it only
    stands beside the other.

    The file tells by its contents which it is:
      Winoground's examples.jsonl: lines of id, image_0, image_1 (.png is added), caption_0,
        caption_1 and tag.
      MMVP-VLM's Questions.csv: number, kind and statement; the image is KIND/NUMBER.jpg.
      SVO-Probes' svo_probes.csv: sentence, pos_image_id, neg_image_id (.jpg is added) and which of
        subj_neg, verb_neg and obj_neg is true. Many of its links are dead, so with `skip_missing`
        pairs without both images are left out.

    Args:
      annotations: the file.
      images: directory that the images' names start from.
      skip_missing: leave out pairs whose images are not there.

    Raises:
      FileNotFoundError: there is no such file, or images are missing.
      ValueError: it is something else, or no pair is left.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        skip_missing: bool = False,
    ):
        self._folder, path = os.fspath(source_path(images)), source_path(annotations)
        try:
            data = given(read_files([path])[0])
        except (FileNotFoundError, IsADirectoryError):
            raise FileNotFoundError(f"Annotation file {path} does not exist.") from None
        try:
            pairs = list(_read(unicode.decode(data)))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no file of Winoground, MMVP-VLM or SVO-Probes ({error!r})."
            ) from None
        if skip_missing:
            pairs = [pair for pair in pairs if self._is_there(pair)]
        images_of: dict[str, list[dict]] = {}
        for pair, kind, *both in pairs:
            for name, sentence in both:
                own = {"pair": pair, "kind": kind, "sentence": sentence}
                images_of.setdefault(name, []).append(own)
        self._examples = list(images_of.items())
        check_images(self._folder, images_of)
        if not self._examples:
            raise ValueError(f"{path} has no pair of images{' that are there' * skip_missing}.")

    def __len__(self) -> int:
        return len(self._examples)

    def paths(self, index: int) -> Sequence[str]:
        """The image."""
        return [os.path.join(self._folder, self._examples[index][0])]

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        name, pairs = self._examples[index]
        return {"id": name, "image": contents[0], "captions": {}, "pairs": pairs}

    def identity(self) -> Iterable[str | bytes]:
        """Names and sentences, and the images' sizes."""
        return "image_pairs", json.dumps(self._examples), self.sizes()

    def _is_there(self, pair: tuple) -> bool:
        try:
            check_images(self._folder, [name for name, _ in pair[2:]])
        except FileNotFoundError:
            return False
        return True


def _read(text: str) -> Iterator[tuple]:
    """(pair, kind, (name, sentence), (name, sentence or None)) of each pair."""
    if text.lstrip().startswith("{"):
        return _read_winoground(text)
    rows = list(csv.reader(io.StringIO(text)))
    if "pos_image_id" in rows[0]:
        return _read_svo(csv.DictReader(io.StringIO(text)))
    return _read_mmvp(rows[1:])


def _read_winoground(text: str) -> Iterator[tuple]:
    for line in text.splitlines():
        if line.strip():
            one = json.loads(line)
            both = [(f"{one[f'image_{i}']}.png", one[f"caption_{i}"]) for i in (0, 1)]
            yield str(one["id"]), one.get("tag", ""), *both


def _read_mmvp(rows: list[list[str]]) -> Iterator[tuple]:
    rows = [row for row in rows if row]
    for (first, kind, statement), (second, _, other) in zip(rows[::2], rows[1::2], strict=True):
        folder = f"{kind}/"
        yield (
            f"{int(first)}-{int(second)}",
            kind,
            (f"{folder}{first.strip()}.jpg", statement),
            (f"{folder}{second.strip()}.jpg", other),
        )


def _read_svo(rows: Iterable[dict[str, str]]) -> Iterator[tuple]:
    for number, row in enumerate(rows):
        kinds = [kind for key, kind in _SVO.items() if row[key].strip().lower() in ("true", "1")]
        if len(kinds) != 1:
            raise ValueError(f"row {number + 1} has {len(kinds)} of {', '.join(_SVO)}, not one")
        right, wrong = (f"{row[f'{side}_image_id']}.jpg" for side in ("pos", "neg"))
        yield str(number), kinds[0], (right, row["sentence"]), (wrong, None)
