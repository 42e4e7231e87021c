"""Which phrase of a caption a detector's box is of, and which phrases are left out as ambiguous.

The grounding data of CogVLM (arXiv 2311.03079, section 2.3) is made as that of Kosmos-2 (arXiv
2306.14824): noun phrases, a detector's boxes of them above a score, and of boxes that nearly
coincide the one with the highest score. CogVLM leaves out what is ambiguous, such as "another man".
A phrase keeps its boxes only if

- it is named once, or the others refer back to it ("a dog ... the dog");
- each of its boxes can be of no other phrase of the caption;
- there are as many as it says: one for "a dog", two for "two dogs", any number for "dogs";
- no box beside them is of its kind.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from input_pipeline.grounding import phrases
from input_pipeline.grounding.detections import Detection
from input_pipeline.grounding.phrases import Kind, Phrase, Pipeline
from input_pipeline.text import boxes as box_text
from input_pipeline.text.conversations import mentions

MIN_SCORE = 0.65  # of Kosmos-2; CogVLM's is not published
_COINCIDE = 0.8  # overlap of boxes of one thing; not published

Box = tuple[float, float, float, float]


def ground(
    captions: Sequence[str],
    detections: Sequence[Detection],
    pipeline: Pipeline,
    counts: Counter[str],
) -> dict[str, list[Box]]:
    """phrase -> its boxes, of an image's captions, in their order.

    A phrase means the same in all captions: with these boxes `conversations.ground` puts them
    behind the right words of each.

    Args:
      captions: all that the record will have.
      detections: those with scores that count.
      counts: is told what became of the phrases.

    Raises:
      ValueError: a span lies in no caption.
    """
    kept: dict[str, tuple[str, list[Box]]] = {}
    expected: dict[str, dict[int, list[Box]]] = {}
    for caption in dict.fromkeys(captions):
        own = [d for d in detections if d.caption in (None, caption)]
        expected[caption] = {}
        for phrase, found in match(caption, phrases.find(caption, pipeline), own, counts):
            expected[caption][phrase.end] = found
            kept.setdefault(phrase.text.lower(), (_as_within(phrase.text), found))
    for detection in detections:
        if detection.caption is not None and detection.caption not in expected:
            raise ValueError(f"a box is of the caption {detection.caption!r}, which is not there.")
    while True:
        texts = {text: found for text, found in kept.values()}
        wrong = {
            text.lower()
            for caption, ends in expected.items()
            for _, end, text in mentions(caption, texts)
            if ends.get(end) != texts[text]
        }
        if not wrong:
            return texts
        counts["phrases that mean several things"] += len(wrong)
        for text in wrong:
            del kept[text]


def match(
    caption: str,
    found: Sequence[Phrase],
    detections: Sequence[Detection],
    counts: Counter[str],
) -> list[tuple[Phrase, list[Box]]]:
    """The phrases of one caption that keep their boxes, with these.

    Args: as `ground`.
    """
    found, spans = _with_spans(caption, list(found), detections)
    repeats = _repeats(found)
    ranks = [  # one row for each detection
        {
            number: rank
            for number, phrase in enumerate(found)
            if number not in repeats
            and (rank := _rank(spans.get(i), number, detection, phrase.kind)) is not None
        }
        for i, detection in enumerate(detections)
    ]
    kept = _without_coinciding(detections, [i for i, row in enumerate(ranks) if row])
    own: dict[int, list[Box]] = {number: [] for number in range(len(found))}
    contested, surrounded = set(), set()
    for i in kept:
        best = min(ranks[i].values())
        nearest = [number for number, rank in ranks[i].items() if rank == best]
        for number in nearest:
            own[number].append(detections[i].box)
        if len(nearest) > 1:
            contested.update(nearest)
        if i not in spans:
            # A label that says more than a phrase is of its kind; one that says less has a better.
            surrounded.update(n for n, rank in ranks[i].items() if rank != best and rank[0] == 1)
    result = []
    for number, phrase in enumerate(found):
        if number in repeats:
            reason = "phrases that refer back"
        elif phrase.is_vague:
            reason = "phrases like 'another man'"
        elif not own[number]:
            reason = "phrases without a box"
        elif number in contested:
            reason = "phrases with a box that may be another's"
        elif phrase.number not in (None, len(own[number])) or number in surrounded:
            reason = "phrases that other boxes may be of, too"
        else:
            reason = "phrases with boxes"
            result.append((phrase, own[number]))
        counts[reason] += 1
    return result


_Rank = tuple[int, int]


def _rank(span: int | None, number: int, detection: Detection, kind: Kind) -> _Rank | None:
    """As `rank`, of a detection and the phrase of a number; `span` is that of its own, if any."""
    if detection.span is not None:
        return (0, 0) if span == number else None
    return rank(phrases.kind_of(detection.label), kind)


def rank(label: Kind, phrase: Kind) -> _Rank | None:
    """How well a phrase's kind fits a label's, less is better; None if the label may not be of it.

    The phrase says more ("circle", "a red circle"), or the label does ("red circle", "a circle"),
    or the label is a more general noun ("person", "a man in red").
    """
    if label.noun == phrase.noun:
        if label.words <= phrase.words:
            return 0, len(phrase.words - label.words)
        if phrase.words <= label.words:
            return 1, len(label.words - phrase.words)
    elif len(label.words) == 1 and phrases.is_kind(phrase.noun, label.noun):
        return 2, 0
    return None


def _with_spans(
    caption: str, found: list[Phrase], detections: Sequence[Detection]
) -> tuple[list[Phrase], dict[int, int]]:
    """The phrases, in order, with those that only a detector's span names; and number of a
    detection -> number of the phrase whose noun its span holds."""
    chosen: dict[int, Phrase] = {}
    for i, detection in enumerate(detections):
        if detection.span is None:
            continue
        start, end = detection.span
        text = caption[start:end]
        if not text.strip() or end > len(caption):
            raise ValueError(f"the span {[start, end]} lies outside the caption {caption!r}.")
        inside = [p for p in found if start < p.end <= end]
        if inside:
            chosen[i] = inside[0]  # what follows says where it is: "a man in a hat"
            continue
        start += len(text) - len(text.lstrip())
        chosen[i] = phrases.whole(text.strip(), start)
        found.append(chosen[i])
    found = sorted(dict.fromkeys(found), key=lambda p: (p.start, p.end))
    return found, {i: found.index(phrase) for i, phrase in chosen.items()}


def _repeats(found: Sequence[Phrase]) -> set[int]:
    """Numbers of phrases with "the" that an earlier one may have introduced."""
    return {
        number
        for number, phrase in enumerate(found)
        if phrase.is_definite
        and any(
            phrase.kind.noun == earlier.kind.noun and phrase.kind.words <= earlier.kind.words
            for earlier in found[:number]
        )
    }


def _without_coinciding(detections: Sequence[Detection], chosen: Sequence[int]) -> list[int]:
    """Of detections that nearly coincide the one with the highest score, the first of equal ones;
    in their order."""
    kept: list[int] = []
    for i in sorted(chosen, key=lambda i: -detections[i].score):
        others = np.array([detections[k].box for k in kept]).reshape(-1, 4)
        if not (box_text.iou(np.array(detections[i].box), others) > _COINCIDE).any():
            kept.append(i)
    return sorted(kept)


def _as_within(text: str) -> str:
    """A phrase as it stands within a sentence, where it began one with an article."""
    first, space, rest = text.partition(" ")
    return f"{first.lower()}{space}{rest}" if first in ("A", "An", "The") else text
