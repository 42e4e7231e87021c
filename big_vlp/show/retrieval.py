"""What a model finds in a source: the nearest images of texts, and the nearest texts of images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from big_vlp.api.errors import ModelError
from big_vlp.api.model import Model
from big_vlp.pictures.figures import PLAIN, RIGHT, lines, show_image, titled
from evaluators.pairs.retrieval import Pairs
from evaluators.shared.records import captions_of
from input_pipeline.figures import png

READ_AT_ONCE = 512  # images as they are stored, in memory together
MARK = {True: "\u2713 ", False: "", None: ""}


class Hit(NamedTuple):
    """An answer: the number of an image or a text, its cosine, and whether it is right; None where
    nothing says so."""

    number: int
    cosine: float
    is_right: bool | None


class Search(NamedTuple):
    """What was asked and found; the best answer is the first.

    Attributes:
      texts: every text of the source once, and behind them those that were asked.
      by_text: (number of the text, images).
      by_image: (number of the image, texts).
    """

    texts: list[str]
    by_text: list[tuple[int, list[Hit]]]
    by_image: list[tuple[int, list[Hit]]]


def search(
    model: Model,
    source,
    field: str,
    asked: Sequence[str] = (),
    queries: int = 5,
    top: int = 5,
    seed: int = 0,
) -> Search:
    """Searches a source by some of its texts and images.

    An answer is right where the image carries that very text, as in the evaluator `retrieval`.

    Args:
      field: whose captions are the texts.
      asked: texts to search by; by default the first texts of the images that are asked.
      queries: images to ask, drawn by `seed`.
      top: answers to each.

    Raises:
      ModelError: the model compares no images with texts.
      ValueError: a record lacks the field.
    """
    if "similarity" not in model.can:
        raise ModelError(f"{model!r} compares no images with texts.")
    features, captions = [], []
    for first in range(0, len(source), READ_AT_ONCE):
        some = range(first, min(first + READ_AT_ONCE, len(source)))
        records = [source[row] for row in some]
        captions += [captions_of(record, field) for record in records]
        features.append(model.encode_image([record["image"] for record in records]))
    images, pairs = np.concatenate(features), Pairs(captions)
    rows = np.random.default_rng(seed).permutation(len(images))[:queries].tolist()
    asked = list(dict.fromkeys(asked or [captions[row][0] for row in rows]))
    known = {text: number for number, text in enumerate(pairs.texts)}
    texts = [*pairs.texts, *(text for text in asked if text not in known)]
    encoded = model.encode_text(texts)
    by_text = []
    for number in map(texts.index, asked):
        right = set(pairs.images_of[number]) if number < len(pairs.texts) else None
        by_text.append((number, _best(images @ encoded[number], right, top)))
    candidates = encoded[: len(pairs.texts)]
    by_image = [
        (row, _best(candidates @ images[row], set(pairs.texts_of[row]), top)) for row in rows
    ]
    return Search(texts, by_text, by_image)


def _best(cosines: np.ndarray, right: set[int] | None, top: int) -> list[Hit]:
    order = np.argsort(-cosines, kind="stable")[:top].tolist()
    return [
        Hit(number, float(cosines[number]), None if right is None else number in right)
        for number in order
    ]


def draw(found: Search, source, title: str) -> bytes:
    """A PNG: on the left a row for each text with its images, on the right one for each image with
    its texts; right answers are green and ticked, each has its cosine."""
    top = max(len(hits) for _, hits in (*found.by_text, *found.by_image))
    rows = max(len(found.by_text), len(found.by_image))
    figure = titled(6.2 + 1.2 * top, 0.6 + 1.35 * rows, title)
    left, right = figure.subfigures(1, 2, width_ratios=(2 + 1.2 * top, 4.2))
    axes = left.subplots(rows, 1 + top, squeeze=False, width_ratios=(1.7, *[1] * top))
    for cell in axes.flat:
        cell.set_axis_off()
    for cells, (number, hits) in zip(axes, found.by_text):
        _write(cells[0], lines(found.texts[number], 20, 5), weight="bold")
        for cell, hit in zip(cells[1:], hits):
            cell.set_axis_on()
            show_image(cell, source[hit.number]["image"], RIGHT if hit.is_right else PLAIN)
            cell.set_title(f"{MARK[hit.is_right]}{hit.cosine:.2f}", fontsize=8, pad=3)
    axes = right.subplots(rows, 2, squeeze=False, width_ratios=(1, 2.6))
    for cell in axes.flat:
        cell.set_axis_off()
    for cells, (number, hits) in zip(axes, found.by_image):
        cells[0].set_axis_on()
        show_image(cells[0], source[number]["image"], PLAIN)
        for place, hit in enumerate(hits):
            text = f"{hit.cosine:.2f} {MARK[hit.is_right]}{lines(found.texts[hit.number], 35, 1)}"
            look = dict(color=RIGHT, weight="bold") if hit.is_right else {}
            _write(cells[1], text, 1 - (place + 0.5) / top, **look)
    return png(figure)


def _write(cell, text: str, height: float = 0.5, **look) -> None:
    cell.text(0, height, text, va="center", fontsize=9, transform=cell.transAxes, **look)
