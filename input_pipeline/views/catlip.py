"""Views of CatLIP: one random crop, and the synsets that captions name as ids of classes."""

import dataclasses
import functools
import random
from collections.abc import Sequence

import numpy as np

from input_pipeline.checks.fields import labels_of
from input_pipeline.files.buckets import is_in_bucket, storage_path
from input_pipeline.views.shared.labels import LabelViews
from input_pipeline.words.labelling import LabelRule
from input_pipeline.words.vocabulary import Vocabulary


@dataclasses.dataclass(kw_only=True, eq=False)
class Views(LabelViews):
    """One crop and the label ids of the captions (arXiv 2404.15653, section 3).

    The labels are the union over the captions of the record in some fields, see
    `labelling.LabelRule`: those that preparing has stored, if `stored`, else mined here.

    Attributes:
      vocabulary: file of classes, see `words.vocabulary`.
      vocabulary_size: keep only so many of the most frequent classes; by default all.
      stored: take the labels that were stored by preparing with this very vocabulary and the same
        fields.
      caption_fields: fields whose captions give labels; by default those of the vocabulary.
      label_mode: one of `words.mining.MODES`; by default that of the vocabulary.

    Raises:
      ValueError: a value is out of range, or the vocabulary cannot be read, or was counted from
        other fields or in another mode.
    """

    vocabulary: str
    vocabulary_size: int | None = None
    stored: bool = False
    caption_fields: Sequence[str] | None = None
    label_mode: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self.vocabulary = _vocabulary(self.vocabulary, self.vocabulary_size)
        self._rule = LabelRule(self.vocabulary, self.caption_fields, self.label_mode)

    @property
    def num_classes(self) -> int:
        return len(self.vocabulary)

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"image": u8[S, S, 3], "labels": i32[K]}, padded with -1; all -1 without labels.

        Raises:
          ValueError: the image cannot be decoded, stored labels are missing or not of this
            vocabulary, or the record has no captions to mine.
        """
        image = self.crop(record, rng)
        if self.stored:
            labels = labels_of(record, self.num_classes)
        else:
            labels = self._rule.labels(record)
        return {"image": image, "labels": self.padded(labels)}

    def check_source(self, source) -> None:
        """Raises ValueError where stored labels are wanted and the source's are of another rule."""
        if self.stored:
            self._rule.check_stored(source)

    def texts(self, batch: dict) -> list[list[str]]:
        """The names of each example's classes, in one line."""
        names = self.vocabulary.names
        return [
            [", ".join(names[i] for i in row if i >= 0) or "no label"] for row in batch["labels"]
        ]


def _vocabulary(path: str, size: int | None) -> Vocabulary:
    """One copy for the views of all image sizes."""
    file = storage_path(path)
    if is_in_bucket(file):
        changed = file.stat().mtime if file.exists() else 0
    else:
        file = file.resolve()
        changed = file.stat().st_mtime_ns if file.exists() else 0
    return _loaded(path, str(file), changed, size)


@functools.lru_cache(maxsize=4)
def _loaded(path: str, file: str, changed: int, size: int | None) -> Vocabulary:
    del file, changed  # they tell which file `path` is now
    return Vocabulary.load(path, size)
