"""Words about a procedural scene: caption, sentences, wrong captions, a question. All exactly true.

"a small red circle" claims that there is one; "left of" claims that the two boxes do not share any
column; counts are exact. Sentences carry no full stop: text crops join them with one.
"""

import itertools
import random
from collections import Counter
from typing import NamedTuple

from input_pipeline.scenes.layout import (
    COLOURS,
    OPPOSITE,
    SHAPES,
    Layout,
    Object,
    pick,
    relations,
    shuffled,
)

_NUMBERS = ("no", "one", "two", "three", "four", "five")

# The largest object is `first` in the forward templates and the end of `rest` in the backward
# ones. No two templates can make the same string, so a caption tells which object is the largest.
_FORWARD = (
    "{first} is {relation} {second}, with {rest} on a {background} background",
    "on a {background} background {first} is {relation} {second}, and there is {rest}",
    "the picture shows {first} {relation} {second}, and also {rest}, on a {background} background",
)
_BACKWARD = (
    "there is {rest}, and {first} is {relation} {second}, on a {background} background",
    "we see {rest} on a {background} background, and {first} {relation} {second}",
    "this picture has a {background} background, {first} {relation} {second}, and {rest}",
)


class _Claims(NamedTuple):
    """What a caption says; changing one attribute and composing again makes a hard negative."""

    template: str
    objects: tuple[Object, ...]  # in the caption's order; the relation is between the first two
    relation: str
    background: str

    def compose(self) -> str:
        first, second, *rest = [o.phrase for o in self.objects]
        return self.template.format(
            first=first,
            second=second,
            rest=_listed(rest),
            relation=self.relation,
            background=self.background,
        )

    def change(self, i: int, **attribute) -> "_Claims":
        objects = list(self.objects)
        objects[i] = objects[i]._replace(**attribute)
        return self._replace(objects=tuple(objects))


def write_caption(rng: random.Random, layout: Layout) -> tuple[str, list[str]]:
    """The caption, and five wrong versions of it.

    The wrong ones differ in, in this order: one object's colour; one object's shape; one object's
    size; the colours of two objects, exchanged; the relation, turned round.
    """
    backward = rng.random() < 0.5
    objects = layout.objects[::-1] if backward else layout.objects
    claims = _Claims(
        template=pick(rng, _BACKWARD if backward else _FORWARD),
        objects=objects,
        relation=pick(rng, relations(*objects[:2])),
        background=layout.background,
    )
    kinds = {(o.colour, o.shape) for o in objects}
    count = len(objects)

    i = int(rng.random() * count)
    free = [c for c in COLOURS if (c, objects[i].shape) not in kinds]
    colour = claims.change(i, colour=pick(rng, free))

    i = int(rng.random() * count)
    free = [s for s in SHAPES if (objects[i].colour, s) not in kinds]
    shape = claims.change(i, shape=pick(rng, free))

    # Not the largest: a caption without a large object could be told wrong without the image.
    i = pick(rng, [i for i in range(count) if objects[i] is not layout.objects[0]])
    size = claims.change(i, size="large" if objects[i].size == "small" else "small")

    i, j = pick(
        rng,
        [
            (i, j)
            for i, j in itertools.permutations(range(count), 2)
            if objects[i].shape != objects[j].shape
            and objects[i].colour != objects[j].colour
            and (objects[j].colour, objects[i].shape) not in kinds
        ],
    )
    exchanged = claims.change(i, colour=objects[j].colour).change(j, colour=objects[i].colour)

    turned = claims._replace(relation=OPPOSITE[claims.relation])
    wrong = [c.compose() for c in (colour, shape, size, exchanged, turned)]
    return claims.compose(), wrong


def write_sentences(rng: random.Random, layout: Layout) -> list[str]:
    """Short sentences, all different: one per object, three relations, counts, the background."""
    sentences = [_about(rng, o) for o in layout.objects]
    for pair in shuffled(rng, list(itertools.combinations(layout.objects, 2)))[:3]:
        a, b = shuffled(rng, pair)
        relation = pick(rng, relations(a, b))
        if rng.random() < 0.5:
            sentences.append(f"{a.phrase} is {relation} {b.phrase}")
        else:
            sentences.append(f"{a.name} is {relation} {b.name}")
    sentences.append(_there_are(len(layout.objects), "object"))
    counts = _counts(layout)
    sentences.append(_there_are(*pick(rng, [(counts[n], n) for n in _SIZE_NOUNS if counts[n]])))
    several = [(k, noun) for noun, k in counts.items() if k > 1 and noun not in _SIZE_NOUNS]
    if several:
        sentences.append(_there_are(*pick(rng, several)))
    largest = layout.objects[0]
    sentences.append(f"the largest object is a {largest.colour} {largest.shape}")
    sentences.append(f"the background is {layout.background}")
    return sentences


def write_question(rng: random.Random, layout: Layout) -> tuple[str, str]:
    """A question about the scene and its only right answer; six kinds, equally often.

    Numbers are digits, as VQA scoring expects. Answers are spread so that the question alone helps
    little: yes and no are equally likely, so are the two sides, and counts are drawn before what is
    counted.
    """
    objects = layout.objects
    kind = int(6 * rng.random())
    if kind == 0:
        return "how many objects are there?", str(len(objects))
    if kind == 1:
        counts = _counts(layout)
        wanted = pick(rng, sorted(set(counts.values())))
        noun = pick(rng, [n for n, k in counts.items() if k == wanted])
        return f"how many {_plural(noun)} are there?", str(wanted)
    if kind == 2:
        o = pick(rng, objects)
        alone = [p.shape for p in objects].count(o.shape) == 1
        if alone:
            return f"what colour is the {o.shape}?", o.colour
        return "what colour is the largest object?", objects[0].colour
    if kind == 3:
        o = pick(rng, objects)
        alone = [p.colour for p in objects].count(o.colour) == 1
        if alone:
            return f"what shape is the {o.colour} object?", o.shape
        return "what shape is the largest object?", objects[0].shape
    if kind == 4:
        o = pick(rng, objects)
        if rng.random() < 0.5:
            return f"is there {o.phrase}?", "yes"
        kinds = {(p.colour, p.shape) for p in objects}
        near = [(c, o.shape) for c in COLOURS] + [(o.colour, s) for s in SHAPES]
        colour, shape = pick(rng, [k for k in near if k not in kinds])
        return f"is there a {o.size} {colour} {shape}?", "no"
    a, b = shuffled(rng, objects)[:2]
    relation = pick(rng, relations(a, b))
    choice = "left or right of" if relation in ("left of", "right of") else "above or below"
    return f"is {a.name} {choice} {b.name}?", relation.removesuffix(" of")


_SIZE_NOUNS = ("small object", "large object")


def _counts(layout: Layout) -> dict[str, int]:
    """How many of everything countable, zeros included: "red object", "circle", "large object"."""
    seen = Counter()
    for o in layout.objects:
        seen.update((f"{o.colour} object", o.shape, f"{o.size} object"))
    nouns = (*(f"{c} object" for c in COLOURS), *SHAPES, *_SIZE_NOUNS)
    return {noun: seen[noun] for noun in nouns}


def _about(rng: random.Random, o: Object) -> str:
    """One sentence; a place is named only if the whole object lies in that half of the image."""
    x0, y0, x1, y1 = o.box
    places = [
        place
        for place, inside in (
            ("on the left", x1 < 0.5),
            ("on the right", x0 > 0.5),
            ("at the top", y1 < 0.5),
            ("at the bottom", y0 > 0.5),
        )
        if inside
    ]
    if places and rng.random() < 0.5:
        return f"{o.phrase} is {pick(rng, places)}"
    form = pick(rng, ("there is {}", "the picture has {}", "we see {}", "{} is in the picture"))
    return form.format(o.phrase)


def _there_are(count: int, noun: str) -> str:
    if count == 1:
        return f"there is one {noun}"
    return f"there are {_NUMBERS[count]} {_plural(noun)}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _listed(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"
