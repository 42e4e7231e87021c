"""Views with labels: one random crop, and what is in the image as ids of classes."""

import functools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from input_pipeline.labelling import LabelRule
from input_pipeline.views import Spec, checked_probability, checked_scale, crops_of
from input_pipeline.vocabulary import Vocabulary

PADDING = -1


class CatlipViews:
    """One crop and the label ids of the captions (arXiv 2404.15653, section 3).

    The labels are the union over the captions of the record in some fields, see
    `labelling.LabelRule`: those that preparing has stored, if `stored`, else mined here.

    Args:
      image_size: side of the crop, in pixels.
      vocabulary: file of classes, see `input_pipeline.vocabulary`.
      vocabulary_size: keep only so many of the most frequent classes; by default all.
      stored: take the labels that were stored by preparing with this very vocabulary and the same
        fields.
      caption_fields: fields whose captions give labels; by default those of the vocabulary.
      label_mode: one of `label_mining.MODES`; by default that of the vocabulary.
      max_labels: length of the padded list; of more labels the most frequent are kept.
      crop_scale: range of the crop's share of the image's area.
      flip_prob: probability of a horizontal flip.

    Raises:
      ValueError: a value is out of range, or the vocabulary cannot be read, or was counted from
        other fields or in another mode.
    """

    def __init__(
        self,
        image_size: int,
        vocabulary: str,
        vocabulary_size: int | None = None,
        stored: bool = False,
        caption_fields: Sequence[str] | None = None,
        label_mode: str | None = None,
        max_labels: int = 64,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip_prob: float = 0.5,
    ):
        self.image_size = image_size
        self.vocabulary = _vocabulary(vocabulary, vocabulary_size)
        self.stored = stored
        self.max_labels = _checked_max_labels(max_labels)
        self.crop_scale = checked_scale(crop_scale)
        self.flip_prob = checked_probability(flip_prob)
        self._rule = LabelRule(self.vocabulary, caption_fields, label_mode)

    @property
    def num_classes(self) -> int:
        return len(self.vocabulary)

    def spec(self) -> Spec:
        """name -> (shape, dtype) of one example."""
        return _spec(self.image_size, "labels", (self.max_labels,))

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"image": u8[S, S, 3], "labels": i32[K]}, padded with -1; all -1 without labels.

        Raises:
          ValueError: the image cannot be decoded, stored labels are missing or not of this
            vocabulary, or the record has no captions to mine.
        """
        (image,) = crops_of(record, [(self.image_size, self.crop_scale)], self.flip_prob, rng)
        if self.stored:
            labels = _stored_labels(record, self.num_classes)
        else:
            labels = self._rule.labels(record)
        return {"image": image, "labels": _padded(labels, self.max_labels)}

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


class LabelViews:
    """One crop and the classes that a labelled data set gives the image.

    Args:
      image_size: side of the crop, in pixels.
      num_classes: of the data set.
      multi_label: False reads the record's `label`, True its list `labels`.
      max_labels: length of the padded list of a multi-label set; the first are kept.
      crop_scale: range of the crop's share of the image's area.
      flip_prob: probability of a horizontal flip.

    Raises:
      ValueError: a value is out of range.
    """

    def __init__(
        self,
        image_size: int,
        num_classes: int,
        multi_label: bool = False,
        max_labels: int = 64,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        flip_prob: float = 0.5,
    ):
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}; give 1 or more.")
        self.image_size = image_size
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.max_labels = _checked_max_labels(max_labels)
        self.crop_scale = checked_scale(crop_scale)
        self.flip_prob = checked_probability(flip_prob)

    def spec(self) -> Spec:
        """name -> (shape, dtype) of one example."""
        if self.multi_label:
            return _spec(self.image_size, "labels", (self.max_labels,))
        return _spec(self.image_size, "label", ())

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"image": u8[S, S, 3]} and "label" i32[] or "labels" i32[K], padded with -1.

        Raises:
          ValueError: the image cannot be decoded, or there is no label, or one out of range.
        """
        (image,) = crops_of(record, [(self.image_size, self.crop_scale)], self.flip_prob, rng)
        if self.multi_label:
            labels = _stored_labels(record, self.num_classes)
            return {"image": image, "labels": _padded(labels, self.max_labels)}
        if "label" not in record:
            raise ValueError(f"Record {record['id']!r} has no label; use a labelled data set.")
        (label,) = _checked([record["label"]], record, self.num_classes)
        return {"image": image, "label": np.int32(label)}

    def texts(self, batch: dict) -> list[list[str]]:
        """The numbers of each example's classes, in one line."""
        rows = batch["labels"] if self.multi_label else batch["label"][:, None]
        return [["class " + ", ".join(str(i) for i in row if i >= 0)] for row in rows]


def _vocabulary(path: str, size: int | None) -> Vocabulary:
    """One copy for the views of all image sizes."""
    file = Path(path).resolve()
    changed = file.stat().st_mtime_ns if file.exists() else 0
    return _loaded(path, str(file), changed, size)


@functools.lru_cache(maxsize=4)
def _loaded(path: str, file: str, changed: int, size: int | None) -> Vocabulary:
    del file, changed  # they tell which file `path` is now
    return Vocabulary.load(path, size)


def _spec(image_size: int, name: str, shape: tuple[int, ...]) -> Spec:
    image = ((image_size, image_size, 3), np.dtype(np.uint8))
    return {"image": image, name: (shape, np.dtype(np.int32))}


def _stored_labels(record: dict, num_classes: int) -> list[int]:
    if "labels" not in record:
        raise ValueError(
            f"Record {record['id']!r} has no stored labels; prepare the data with --labels, use a "
            "labelled data set, or mine them from captions (views.stored=False)."
        )
    return _checked(record["labels"], record, num_classes)


def _checked(labels: list[int], record: dict, num_classes: int) -> list[int]:
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise ValueError(
            f"Record {record['id']!r} has label {wrong[0]}, but there are {num_classes} classes; "
            "the data were prepared with another vocabulary or class list."
        )
    return labels


def _padded(labels: list[int], length: int) -> np.ndarray:
    padded = np.full(length, PADDING, np.int32)
    padded[: len(labels[:length])] = labels[:length]
    return padded


def _checked_max_labels(max_labels: int) -> int:
    if max_labels < 1:
        raise ValueError(f"max_labels={max_labels}; give 1 or more.")
    return max_labels
