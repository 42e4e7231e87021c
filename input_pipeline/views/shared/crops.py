"""What all views do: crop a record's image, draw its captions, check their arguments."""

import random
from collections.abc import Sequence

import numpy as np

from input_pipeline.images import crops
from input_pipeline.text import captions

Spec = dict[str, tuple[tuple[int, ...], np.dtype]]


def crops_of(
    record: dict,
    views: Sequence[tuple[int, tuple[float, float] | None]],
    flip_prob: float,
    rng: random.Random,
) -> list[np.ndarray]:
    """Random crops of a record's image, see `crops.random_crops`; an error names the record."""
    try:
        return crops.random_crops(record["image"], views, flip_prob, rng)
    except ValueError as error:
        raise ValueError(
            f"Record {record['id']!r}: {error}. Drop broken images by preparing the data "
            "with `python -m input_pipeline.prepare`."
        ) from error


def sample_captions(record: dict, mode: str, k: int, rng: random.Random) -> list[str]:
    try:
        return captions.sample_captions(record["captions"], mode, k, rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Record {record['id']!r}: {error}") from error


def checked_scale(scale: tuple[float, float]) -> tuple[float, float]:
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"A crop scale is a range of area shares within (0, 1], got {scale}.")
    return low, high


def checked_probability(p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"flip_prob is a probability, got {p}.")
    return p
