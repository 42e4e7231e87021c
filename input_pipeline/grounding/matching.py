"""Which phrase of a caption a detector's box is of, and which phrases are left out as ambiguous.

The grounding data of CogVLM (arXiv 2311.03079, section 2.3) is made as that of Kosmos-2 (arXiv
2306.14824): noun phrases, a detector's boxes of them above a score, and of boxes that nearly
coincide the one with the highest score. CogVLM leaves out what is ambiguous, such as "another man".
A phrase keeps its boxes only if

- it is named once, or the others refer back to it ("a dog ... the dog");
- each of its boxes can be of no other phrase of the caption;
- there are as many as it says: one for "a dog", two for "two dogs", any number for "dogs";
- no box beside them is of its kind, not even one of a lower score.
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
_WEAK = 0.5  # of the least score: what is below is taken for noise
# Of one phrase. A box takes some 16 tokens of the answer, and a cut one is no answer.
MAX_BOXES = 10
_COINCIDE = 0.8  # overlap of boxes of one thing; not published

Box = tuple[float, float, float, float]
Grounded = dict[str, list[Box]]  # phrase -> its boxes


def ground(
    captions: Sequence[str],
    detections: Sequence[Detection],
    pipeline: Pipeline,
    counts: Counter[str],
    min_score: float = MIN_SCORE,
) -> Grounded:
    """phrase -> its boxes, of an image's captions, in their order.

    A phrase means the same in all captions: with these boxes `conversations.ground` puts them
    behind the right words of each.

    Args:
      captions: all that the record will have.
      detections: of any score.
      counts: is told what became of the phrases, and of boxes of no caption.
      min_score: phrases get boxes of this score or more; lower ones, down to half of it, may be
        further things of a phrase's kind.
    """
    detections = [d for d in detections if _counts(d, captions, counts)]
    kept: dict[str, tuple[str, list[Box]]] = {}
    expected: dict[str, dict[int, list[Box]]] = {}
    for caption in dict.fromkeys(captions):
        own = [d for d in detections if d.caption in (None, caption)]
        expected[caption] = {}
        for phrase, found in match(
            caption, phrases.find(caption, pipeline), own, counts, min_score
        ):
            expected[caption][phrase.end] = found
            kept.setdefault(phrase.text.lower(), (_as_within(phrase.text), found))
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
    min_score: float = MIN_SCORE,
) -> list[tuple[Phrase, list[Box]]]:
    """The phrases of one caption that keep their boxes, with these.

    Args: as `ground`.
    """
    detections = [d for d in detections if d.score >= min(min_score, _WEAK * min_score)]
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
    kept = _without_coinciding(detections, ranks)
    own: dict[int, list[Box]] = {number: [] for number in range(len(found))}
    contested: set[int] = set()
    surrounded: set[int] = set()
    possible: list[tuple[set[int], set[int]]] = []  # phrases of a box: the best, and others
    for i in kept:
        best = min(ranks[i].values())
        nearest = {number for number, rank in ranks[i].items() if rank == best}
        # A label that says more than a phrase is of its kind; one that says less has a better.
        further = {n for n, rank in ranks[i].items() if rank != best and rank[0] == 1}
        if detections[i].score < min_score:
            # Too weak to be had, and perhaps one more of them; "dogs" leaves open how many.
            surrounded.update(n for n in nearest | further if found[n].number is not None)
            continue
        for number in nearest:
            own[number].append(detections[i].box)
        if len(nearest) > 1:
            contested |= nearest
        surrounded |= further
        possible.append((nearest, ranks[i].keys() - nearest - further))
    for nearest, others in possible:
        # What a label does not say may make it another phrase's, which has no box yet: "car", of
        # "a car next to a red car".
        if any(not own[number] for number in others):
            contested |= nearest
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
        elif len(own[number]) > MAX_BOXES:
            reason = f"phrases of more than {MAX_BOXES} boxes"
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
    if phrases.is_same(label.noun, phrase.noun):
        said, asked = (kind.words - set(kind.noun.split()) for kind in (label, phrase))
        if said <= asked:
            return 0, len(asked - said)
        if asked <= said:
            return 1, len(said - asked)
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


def _counts(detection: Detection, captions: Sequence[str], counts: Counter[str]) -> bool:
    """Whether a box is of any caption; counts it if not."""
    if detection.caption is not None and detection.caption not in captions:
        counts["boxes of a caption that is not there"] += 1
        return False
    if detection.span is None:
        return True
    start, end = detection.span
    own = captions if detection.caption is None else [detection.caption]
    if all(end <= len(caption) and caption[start:end].strip() for caption in own):
        return True
    counts["boxes with a span outside the caption"] += 1
    return False


def _without_coinciding(
    detections: Sequence[Detection], ranks: Sequence[dict[int, _Rank]]
) -> list[int]:
    """Of detections that nearly coincide and may be of one phrase the one with the highest score,
    the first of equal ones; in their order. What is of no phrase is left out.

    A man's box and that of his suit may be nearly the same, and yet he is one of two men.
    """
    kept: list[int] = []
    chosen = [i for i, row in enumerate(ranks) if row]
    for i in sorted(chosen, key=lambda i: -detections[i].score):
        rivals = [detections[k].box for k in kept if ranks[i].keys() & ranks[k].keys()]
        others = np.array(rivals).reshape(-1, 4)
        if not (box_text.iou(np.array(detections[i].box), others) > _COINCIDE).any():
            kept.append(i)
    return sorted(kept)


def _as_within(text: str) -> str:
    """A phrase as it stands within a sentence, where it began one with an article."""
    first, space, rest = text.partition(" ")
    return f"{first.lower()}{space}{rest}" if first in ("A", "An", "The") else text
