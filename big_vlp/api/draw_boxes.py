"""Draws the boxes that an answer names onto its image."""

import re
import textwrap
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.text.boxes import find_boxes

LONGEST_LABEL = 40  # characters
SMALLEST_SIDE = 640  # pixels of the longer side: smaller images are enlarged, so that labels fit
# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

_BRACKETS = re.compile(r"\[\[.*?(?:\]\]|$)")
_ARTICLE = re.compile(r".*\b(?:an?|the|some|his|her|its|their)\s+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.,;:!?\n\]]")


class Labelled(NamedTuple):
    """A box f64[4] (x0, y0, x1, y1), in shares of the image's sides, and what is in it."""

    label: str
    box: np.ndarray


def labelled_boxes(answer: str, query: str = "") -> tuple[list[Labelled], list[str]]:
    """The boxes of an answer with labels, and texts that look like boxes but are none.

    A box is called by the words before it: those behind the last article, or else the last three,
    back to the last punctuation mark. Where there are none, by the query.
    """
    boxes, unreadable = [], []
    readable = {found.start: found for found in find_boxes(answer)}
    for match in _BRACKETS.finditer(answer):
        found = readable.get(match.start())
        wanted, real = match[0].count(";") + 1, []
        if found is not None:
            real = [box for box in found.boxes if (box[2:] > box[:2]).all()]
        if len(real) < wanted:
            unreadable.append(match[0])
        label = _label(answer[: match.start()]) or textwrap.shorten(
            query, LONGEST_LABEL, placeholder=" ..."
        )
        boxes += [Labelled(label, box) for box in real]
    return boxes, unreadable


def draw_boxes(image: np.ndarray, boxes: list[Labelled]) -> Image.Image:
    """A picture of an image u8[H, W, 3] with boxes and labels.

    Boxes with the same label have the same colour.
    """
    picture = Image.fromarray(image)
    scale = max(1.0, SMALLEST_SIDE / max(picture.size))
    picture = picture.resize([round(side * scale) for side in picture.size])
    drawing, size = ImageDraw.Draw(picture), max(picture.size)
    line, font = max(3, size // 200), ImageFont.load_default(max(14, size // 45))
    labels = list(dict.fromkeys(label for label, _ in boxes))
    colours = [COLOURS[labels.index(label) % len(COLOURS)] for label, _ in boxes]
    corners = [tuple(box * np.tile(picture.size, 2)) for _, box in boxes]
    for colour, corner in zip(colours, corners):
        drawing.rectangle(corner, outline=colour, width=line)
    taken: list[tuple[float, ...]] = []
    for (label, _), colour, (x0, y0, _, _) in zip(boxes, colours, corners):
        if not label:
            continue
        width, height = drawing.textbbox((0, 0), label, font=font, anchor="lt")[2:]
        width, height = width + 2 * line, height + 3 * line
        left = max(0, min(x0, picture.width - width))
        top = y0 - height if y0 >= height else y0
        # Further down while it would hide another label.
        while any(_overlap((left, top, left + width, top + height), other) for other in taken):
            top += height
        taken.append((left, top, left + width, top + height))
        drawing.rectangle(taken[-1], fill=colour)
        drawing.text((left + line, top + line), label, font=font, anchor="lt", fill="black")
    return picture


def _label(before: str) -> str:
    words = _SENTENCE_END.split(before)[-1]
    behind_article = _ARTICLE.sub("", words).split()
    own = behind_article if _ARTICLE.match(words) else words.split()[-3:]
    return textwrap.shorten(" ".join(own), LONGEST_LABEL, placeholder=" ...")


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
