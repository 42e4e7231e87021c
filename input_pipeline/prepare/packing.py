"""Packs: several examples in one record, for rows that leave little room unused.

A record of the prepared set is a pack, so a run's position is still its step. Which examples go
together depends on the records of a shard alone. Within windows of them, the largest comes first
and goes into the first pack with room for its text and its images (first-fit decreasing).
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar, NamedTuple

import numpy as np

from input_pipeline.checks import arguments
from input_pipeline.command_line import written_arguments
from input_pipeline.prepare import cost
from input_pipeline.prepare.filters import Tally
from input_pipeline.records import images_of
from input_pipeline.text import conversations
from input_pipeline.views.cogvlm import Views

_WINDOW = 1000  # records that are in memory at once


class _Measured(NamedTuple):
    """An example of a pack; the tokens of text and the images that it has room for."""

    fields: dict[str, Any]
    encoded: list[bytes]
    text: int
    images: int


@dataclasses.dataclass(frozen=True)
class Packer:
    """Makes packs for rows of these views.

    Attributes:
      arguments: of `views.cogvlm.Views`; `max_images` and `context_length` are the room of a pack.

    Raises:
      ArgumentError, ValueError: `max_images` is not among them, or a value is wrong.
    """

    arguments: Mapping[str, Any]

    def __post_init__(self):
        if self.views.max_images is None:
            raise ValueError("it needs max_images, how many images a row has room for.")

    @functools.cached_property
    def views(self) -> Views:
        return arguments.call("", Views, self.arguments)

    fields: ClassVar = {"id": "str", "captions": [], "examples": "list", "images": "list"}

    def argument(self) -> str:
        """The value of --pack, without the tokenizer's folder."""
        kind, _, path = self.views.tokenizer.partition(":")
        name = PurePosixPath(path).name
        return written_arguments({**self.arguments, "tokenizer": f"{kind}:{name}"})

    def pack(
        self, records: Iterable[dict[str, Any]], tally: Tally, counts: Counter
    ) -> Iterator[dict[str, Any]]:
        """Yields packs; counts what they hold, see `report`, and drops records that fit no
        row, or have nothing to learn."""
        views, records = self.views, iter(records)
        while window := list(itertools.islice(records, _WINDOW)):
            if examples := [*_measured(views, window, tally, counts)]:
                yield from _packs(examples, views, counts)


def _measured(
    views: Views, window: list[dict], tally: Tally, counts: Counter
) -> Iterator[_Measured]:
    joins = views.every_round and views.tasks.keys() & set(conversations.ASKING)
    for fields, encoded in _joined(views, window) if joins else map(_apart, window):
        try:
            draws = views.draws(fields)
        except ValueError as error:
            tally.drop(fields["id"], "cannot be laid out", str(error))
            continue
        text = max(draw.text for draw in draws)
        images = max(len(draw.images) for draw in draws)
        learnt = round(sum(draw.learnt for draw in draws) / len(draws))
        counts["rounds left out"] += max(draw.rounds_left_out for draw in draws)
        counts["answers cut"] += any(draw.cut for draw in draws)
        counts["examples"] += 1
        counts["tokens"] += learnt
        counts[f"length {text}"] += 1
        counts[f"learnt {text}"] += learnt
        counts[f"images {images}"] += 1
        yield _Measured({**fields, "room": [text, images]}, encoded, text, images)


def _apart(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """What an example of a pack holds of a record, and its images. Of arrays only boxes are kept:
    the others, and bytes, are for models of other kinds."""
    images = images_of(record)
    try:
        numbered = conversations.numbered(record)
    except ValueError:
        numbered = dict(record)  # which no draw takes
    fields = {
        name: value.tolist() if name == "boxes" and isinstance(value, np.ndarray) else value
        for name, value in numbered.items()
        if name not in ("image", "images") and (name == "boxes" or not _is_binary(value))
    }
    held = {"images": len(images)} if "images" in record or not images else {"image": True}
    return fields | held, images


def _is_binary(value: Any) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, bytes) for item in value)
    return isinstance(value, np.ndarray | bytes)


# What the questions about an image have in common; all else goes with each of them.
_SHARED = ("captions", "phrases", "boxes", "conversation", "image", "images")


def _joined(views: Views, window: list[dict]) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """The records; those that ask about the same image, of which the same else is known, become
    one, as long as it fits a row."""
    open_: dict[bytes, int] = {}
    found: list[tuple[dict[str, Any], list[bytes]]] = []
    for record in window:
        fields, images = _apart(record)
        if images and fields.get("question") and not fields.get("questions"):
            shared = {name: fields[name] for name in _SHARED if name in fields}
            key = b"".join((*images, json.dumps(shared, sort_keys=True).encode()))
            key = hashlib.blake2b(key, digest_size=16).digest()
            if (place := open_.get(key)) is not None:
                first, asked = found[place][0], [_question(fields)]
                before = first.get("questions") or [_question(first)]
                whole = {"id": first["id"], **shared, "questions": before + asked}
                if _fits(views, whole):
                    found[place] = whole, images
                    continue
            open_[key] = len(found)
        found.append((fields, images))
    return iter(found)


def _question(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in _SHARED}


def _fits(views: Views, example: Mapping[str, Any]) -> bool:
    try:
        return not any(draw.rounds_left_out or draw.cut for draw in views.draws(example))
    except ValueError:
        return False


def _packs(examples: list[_Measured], views: Views, counts: Counter) -> Iterator[dict[str, Any]]:
    most = np.array([1 + views.context_length, views.max_images])
    sizes = np.array([(one.text, one.images) for one in examples])
    # Of equal ones the earlier first.
    order = np.argsort(-(sizes / most).max(axis=1), kind="stable")
    left = np.zeros((0, 2), int)
    packs: list[list[int]] = []
    for number in order.tolist():
        fits = (left >= sizes[number]).all(axis=1)
        if fits.any():
            place = int(fits.argmax())
        else:
            place = len(packs)
            packs.append([])
            left = np.concatenate([left, most[None]])
        packs[place].append(number)
        left[place] -= sizes[number]
    for pack in sorted(map(sorted, packs)):
        counts["rows"] += 1
        held = [examples[number] for number in pack]
        yield {
            "id": f"{held[0].fields['id']}+{len(held) - 1}",
            "captions": {},
            "examples": [one.fields for one in held],
            "images": [image for one in held for image in one.encoded],
        }


def report(counts: Mapping[str, int], packer: Packer) -> tuple[dict[str, Any], list[str]]:
    """What dataset.json says of packs, and lines for people: FLOPs per learnt token of CogVLM-17B
    in rows of one example and in packs, see `cost`."""
    views, rows = packer.views, packer.views.rows
    sizes = rows.image_size, rows.num_slots
    lengths = {
        int(name.split()[1]): (count, counts[name.replace("length", "learnt")])
        for name, count in counts.items()
        if name.startswith("length ")
    }
    shown = {int(name.split()[1]): n for name, n in counts.items() if name.startswith("images ")}
    tokens, examples, number = counts["tokens"], counts["examples"], counts["rows"]
    longest, images = max(lengths), max(1, *shown)
    layout = "static" if shown.keys() == {1} else "general"
    text = sum(length * count for length, (count, _) in lengths.items()) / number
    alone = cost.row_flops(longest, images, *sizes, layout) * examples / tokens
    context, least, cut = cost.cheapest(lengths, images, *sizes, layout)
    room = 1 + rows.context_length, views.max_images
    packed = cost.row_flops(*room, *sizes, "general") * number / tokens
    found = {
        "views": views.options(),
        "rows": number,
        "examples": examples,
        "rounds_left_out": counts.get("rounds left out", 0),
        "answers_cut": counts.get("answers cut", 0),
        "learnt_tokens": tokens,
        "gflops_per_token": {
            "packed": round(packed / 1e9, 1),
            "alone": round(alone / 1e9, 1),
            "alone_cheapest": round(least / 1e9, 1),
        },
    }
    held = sum(images * count for images, count in shown.items()) / number
    if packed < least:
        verdict = f"Packing pays: {alone / packed:.2f} and {least / packed:.2f} times fewer."
    elif packed < alone:
        verdict = f"Packing pays ({alone / packed:.2f} times fewer) only if nothing may be cut off."
    else:
        verdict = (
            "Packing does not pay here: train on the records as they are, or choose other "
            "max_images and context_length."
        )
    return found, [
        f"Packs: {examples:,} examples in {number:,} rows, which hold {held:.1f} of "
        f"{views.max_images} images and {text:,.0f} of {1 + rows.context_length:,} tokens of text; "
        f"too long were {found['rounds_left_out']:,} rounds, which are left out, and "
        f"{found['answers_cut']:,} answers, which are cut.",
        f"GFLOPs of the 17B per learnt token ({rows.image_size} pixels): {packed / 1e9:,.1f} in "
        f"packs; {alone / 1e9:,.1f} with one example a row (layout={layout!r}, room for {images} "
        f"images), context_length={longest - 1}; about {least / 1e9:,.1f} with {context}, which "
        f"cuts off {cut:.1%} of the tokens, if all prompts fit.",
        verdict,
    ]
