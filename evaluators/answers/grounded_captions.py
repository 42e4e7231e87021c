"""Captions with boxes: what a model writes against phrases and boxes of people (Flickr30k
Entities)."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from evaluators.answers.shared import asking, captioning, ptb
from evaluators.shared.records import captions_of
from input_pipeline.records import naming
from input_pipeline.text.boxes import distinct, find_boxes, format_boxes, iou
from input_pipeline.text.conversations import GROUNDED_QUERY, boxes_of
from input_pipeline.text.instructions import without_article

IOU = 0.5
_OPENED = "[["


@dataclasses.dataclass(kw_only=True, eq=False)
class Scoring(asking.Scoring):
    """`precision`, `recall` and `f1` of pairs of a phrase and a box, after F1_all of "Grounded
    Video Description" (arXiv 1812.06587); `f1_loc`, the same of the phrases alone that are in both;
    `cider` (CIDEr-D) of the text without boxes; and `malformed`, the share of captions with "[["
    that no box follows.

    A written box belongs to the phrase of the record that ends the words before it, in any case and
    without its article; it is right if its intersection over union with one of that phrase's boxes,
    none of which counts twice, is 0.5 or more. So "a man" and "the man" are one phrase, with the
    boxes of both. Precision is over written boxes, recall over the record's. In the paper they are
    means over classes of objects, a word is a phrase, and words that are in the caption, but have
    no box there, do not count; here all pairs count alike.

    Attributes:
      caption_field: the captions of people.
      prompt: what is asked.
    """

    caption_field: str = "caption"
    prompt: str = GROUNDED_QUERY

    wanted = "captions or boxes"

    def query(self, record) -> str:
        return self.prompt

    def keep(self, record) -> asking.Kept:
        """Raises ValueError where there are not as many boxes as phrases, or no shares."""
        captions = captions_of(record, self.caption_field) if record.get("captions") else []
        with naming(record):
            boxes = boxes_of(record)
        found: dict[str, list] = {}
        for phrase, own in boxes.items():
            found.setdefault(_bare(phrase), []).extend(own.tolist())
        return super().keep(record) | {"answers": captions, "boxes": found}

    def right_answers(self, kept) -> list[str]:
        boxes = [f"{name} {format_boxes(distinct(own))}" for name, own in kept["boxes"].items()]
        return [*kept["answers"], *boxes]

    def each(self, texts, kept) -> dict[str, np.ndarray]:
        """Of all captions together they count over boxes, not over captions."""
        counts = np.array([_counts(text, one["boxes"]) for text, one in zip(texts, kept)])
        hits, boxes, right, named, mentioned = counts.T
        return {
            "f1": 2 * hits / np.maximum(1, boxes + right),
            "f1_loc": 2 * hits / np.maximum(1, named + mentioned),
        }

    def answered(self, kept) -> bool:
        return bool(kept["answers"] and kept["boxes"])

    def scores(self, texts, kept) -> Iterator[tuple[str, float]]:
        flat = iter(ptb.tokenize([text for one in kept for text in one["answers"]]))
        given = [[next(flat) for _ in one["answers"]] for one in kept]
        written = ptb.tokenize([without_boxes(text) for text in texts])
        counts = np.array([_counts(text, one["boxes"]) for text, one in zip(texts, kept)])
        malformed = np.array([_is_malformed(text) for text in texts])

        def metrics(places):
            hits, boxes, right, named, mentioned = counts[places].sum(axis=0).tolist()
            cider = captioning.cider_d([written[p] for p in places], [given[p] for p in places])
            return {
                "precision": hits / max(1, boxes),
                "recall": hits / max(1, right),
                "f1": 2 * hits / max(1, boxes + right),
                "f1_loc": 2 * hits / max(1, named + mentioned),
                "cider": float(cider.mean()),
                "malformed": float(malformed[places].mean()),
            }

        return self.with_groups(metrics, kept)


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(Scoring, asking.AskingEvaluator):
    """Yields what `Scoring` says, all for each control.

    Attributes:
      data: its records have `captions`, `phrases` and `boxes`.

    Raises:
      ValueError: the data has no such captions or boxes, the method cannot generate, or an unknown
        name.
    """

    template: str = "chat_old"
    form: str = "coco"


def without_boxes(text: str) -> str:
    """A caption without its boxes and the spaces before them."""
    return re.sub(r"\s*\[\[.*?\]\]", "", text).strip()


def pairs_of(text: str, phrases: Sequence[str]) -> list[tuple[str | None, np.ndarray]]:
    """(phrase, box f64[4]) of each box in a caption; None for words that end in none of the phrases
    (in lower case, without articles). Of phrases that end in the same words, the longest."""
    longest_first = sorted(phrases, key=len, reverse=True)
    found, start = [], 0
    for group in find_boxes(text):
        before = " ".join(text[start : group.start].lower().split()).rstrip(" ,.;:")
        named = (p for p in longest_first if re.search(rf"(?<!\w){re.escape(p)}$", before))
        phrase = next(named, None)
        found += [(phrase, box) for box in group.boxes]
        start = group.end
    return found


def _counts(text: str, boxes: dict[str, list]) -> tuple[int, int, int, int, int]:
    """Hits; written boxes; the record's; written ones of its phrases; its, of written phrases."""
    written = pairs_of(text, list(boxes))
    left = {phrase: np.array(own) for phrase, own in boxes.items()}
    hits = 0
    for phrase, box in written:
        if phrase is None or not len(left[phrase]):
            continue
        overlap = iou(box, left[phrase])
        if overlap.max() >= IOU:
            hits += 1
            left[phrase] = np.delete(left[phrase], int(overlap.argmax()), axis=0)
    named = [phrase for phrase, _ in written if phrase is not None]
    mentioned = sum(len(boxes[phrase]) for phrase in set(named))
    return hits, len(written), sum(map(len, boxes.values())), len(named), mentioned


def _is_malformed(text: str) -> bool:
    """Whether brackets open that are not a group of boxes, all of which can be read."""
    groups = find_boxes(text)
    parts = sum(text[g.start : g.end].count(";") + 1 for g in groups)
    return text.count(_OPENED) != len(groups) or parts != sum(len(g.boxes) for g in groups)


def _bare(phrase: str) -> str:
    return without_article(" ".join(phrase.lower().split()))
