"""A page of what a model answered: every image with its question, its answers, boxes and score.

The page is one HTML file that holds all it shows and asks no other for anything; its markup, style
and script lie in the folder `page`. What texts hold, such as markup, is shown and never obeyed.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg

from evaluators.answers.shared.command import Scored
from input_pipeline.images.crops import decode
from input_pipeline.records import given, naming
from input_pipeline.text.boxes import distinct, find_boxes, iou

READ_AT_ONCE = 64  # images as they are stored, in memory together
_QUALITY = 85
_IOU = "mean_iou"  # of a metric that says how boxes overlap


class Page(NamedTuple):
    """What is to be written.

    Attributes:
      html: the file, UTF-8.
      shown: how many questions are on it.
    """

    html: bytes
    shown: int


def make_page(scored: Scored, title: str, limit: int, size: int) -> Page:
    """The page of a model's answers; scores are those of all of them, shown or not.

    Args:
      limit: so many questions are shown, evenly spread over the data.
      size: pixels of the longer side of images; smaller ones stay as they are.

    Raises:
      ValueError: a record has no image, or one that cannot be decoded, or the metric does not say
        what single answers are worth.
    """
    scoring, kept, texts = scored.scoring, scored.kept, scored.texts
    try:
        each = scoring.each(texts, kept)
    except NotImplementedError:
        raise ValueError(
            f"{type(scoring).__module__} does not say what each answer is worth, which a page "
            "shows: write its Scoring.each."
        ) from None
    metrics, scores = list(each), dict(scoring.scores(texts, kept))
    shown = min(limit, len(kept))
    images, records = _Images(size), []
    places = [i * len(kept) // shown for i in range(shown)]
    image_of = images.add_all(scored.source, [scored.rows[place] for place in places])
    for place in places:
        described = {
            "id": kept[place]["id"],
            "by": kept[place].get("by"),
            "image": image_of[scored.rows[place]],
            "question": scored.queries[place],
            "values": [_finite(each[name][place]) for name in metrics],
        }
        described |= _answers(texts[place], scoring.right_answers(kept[place]))
        if _IOU in each:
            described["iou"] = _finite(each[_IOU][place])
        records.append(described)
    data = {
        "metrics": metrics,
        "score": _finite(scores[metrics[0]]),
        "scores": [(name, _finite(value)) for name, value in scores.items()],
        "weighted": any(one.get("times", 1) != 1 for one in kept),
        "right": scoring.right,
        "by": scoring.by,
        "total": len(kept),
        "sizes": images.sizes,
        "records": records,
    }
    return Page(_filled(title, data, images.encoded), shown)


def _answers(text: str, right: list[str]) -> dict[str, Any]:
    """What the page says of an answer and of the right ones. Boxes overlap where each has one: of
    several it is a metric's affair which belong together."""
    written, true = _boxes([text]), _boxes(right)
    overlap = float(iou(written[0], true[0])) if len(written) == len(true) == 1 else None
    return {
        "answer": text,
        "right": Counter(right).most_common(),
        "written": written.tolist(),
        "true": true.tolist(),
        "iou": overlap,
    }


def _boxes(texts: list[str]) -> np.ndarray:
    """f64[K, 4], each once: all boxes that texts name."""
    found = [group.boxes for text in texts for group in find_boxes(text)]
    return distinct(np.concatenate([np.zeros((0, 4)), *found]))


def _finite(value: float) -> float | None:
    """None for what JSON has no number for."""
    return float(value) if math.isfinite(value) else None


class _Images:
    """JPEGs for the page, each image once however many questions there are about it.

    Attributes:
      sizes: width and height of each in the data.
      encoded: base64.
    """

    def __init__(self, size: int):
        self.sizes: list[tuple[int, int]] = []
        self.encoded: list[str] = []
        self._size, self._places = size, {}

    def add_all(self, source, rows: Sequence[int]) -> dict[int, int]:
        """row -> the place of its image; each row is read once."""
        rows, found = list(dict.fromkeys(rows)), {}
        for first in range(0, len(rows), READ_AT_ONCE):
            some = rows[first : first + READ_AT_ONCE]
            found |= zip(some, (self._add(given(record)) for record in source.records(some)))
        return found

    def _add(self, record) -> int:
        data = record.get("image")
        if data is None:
            raise ValueError(
                f"Record {record['id']!r} has no image, and a page shows images; use data that "
                "have them."
            )
        key = hashlib.sha256(data).digest()
        if key not in self._places:
            self._places[key] = len(self.sizes)
            with naming(record):
                image = decode(data)
            height, width = image.shape[:2]
            self.sizes.append((width, height))
            self.encoded.append(base64.b64encode(_jpeg(image, self._size)).decode())
        return self._places[key]


def _jpeg(image: np.ndarray, size: int) -> bytes:
    height, width = image.shape[:2]
    shrink = max(width, height) / size
    if shrink > 1:
        small = max(1, round(width / shrink)), max(1, round(height / shrink))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=_QUALITY, colorspace="RGB", colorsubsampling="444"
    )


def _filled(title: str, data: dict[str, Any], images: list[str]) -> bytes:
    """The file. Its policy lets a browser run the one script in it, and fetch nothing."""
    folder = resources.files("big_vlp.show") / "page"
    markup, style, script = (
        (folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    parts = {
        "title": html.escape(title),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # ends no script
        "images": "\n".join(
            f'<script type="text/plain" id="image-{place}">{image}</script>'
            for place, image in enumerate(images)
        ),
    }
    # At once: what is put in may look like a place for the next.
    filled = re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], markup)
    return filled.encode("utf-8", "backslashreplace")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
