"""Views of CogVLM (arXiv 2311.03079): images, prompts and the answers to learn, in one row.

A row is `bos | boi patches eoi | prompt answer eos | padding`. Image slots hold the padding id;
the model puts its image features there. Evaluators lay out their prompts with the same `Rows`.
Without image slots, the rows are those that a language model is pretrained on. With `max_images`
rows come as the records do: images where the text has them, or none, and several examples of a
pack, each behind a bos of its own.
"""

import contextlib
import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.files import listing
from input_pipeline.files.buckets import storage_path
from input_pipeline.records import images_of, naming
from input_pipeline.text import conversations, templates
from input_pipeline.text.conversations import Turn
from input_pipeline.text.token_types import LANGUAGE, VISION
from input_pipeline.views.shared import base
from input_pipeline.views.shared.rows import Example, NoRoomError, Rows

__all__ = ["LANGUAGE", "TEMPLATES", "VISION", "Rows", "Views"]

# Captions have an empty prompt, as in pretraining.
TEMPLATES = {
    "vqa": "vqa",
    "rec": "chat_old",
    "reg": "chat_old",
    "grounded": "chat_old",
    "conversation": "chat_old",
    "vqa_boxes": "vqa",
    "pointing": "chat_old",
    "cot": "chat_old",
}
# How often an example of a pack is drawn to find one that fits the room that it has there.
_DRAWS = 8
_ADVICE = " Training does not skip records."


@dataclasses.dataclass(kw_only=True, eq=False)
class Views(base.Views):
    """Images, squashed, and one task about them, drawn by weight among those that the record has
    the data for; see `input_pipeline.text.conversations` for tasks.

    Without `image_token_size` there is no image, and prompts are learnt like answers.

    Attributes:
      image_size, tokenizer, context_length, image_token_size: see `Rows`.
      tasks: task -> weight.
      templates: task -> template, see `input_pipeline.text.templates`, where it is not that of
        TEMPLATES; captions have none.
      caption_fields: the captions that count; None for all.
      history: see `conversations.make_turn`; with "turns" all answers of a record are learnt.
      varied_instructions: whether to draw the words in which boxes are asked for.
      max_images: None: one image behind bos, the layout "static" of models. A number: rows have up
        to so many images where the text has them (`text.places`), records without one have Vicuna's
        prompt, and a pack's examples stand behind each other; the layout "general".

    Raises:
      ValueError: a value is out of range or unknown.
    """

    tokenizer: str
    context_length: int
    image_token_size: int | None = None
    tasks: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"caption": 1.0})
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    caption_fields: Sequence[str] | None = None
    history: str = "all"
    varied_instructions: bool = False
    max_images: int | None = None

    def __post_init__(self):
        self.rows = Rows(
            self.tokenizer, self.image_size, self.context_length, self.image_token_size
        )
        self.tasks = _checked_tasks(self.tasks)
        self.templates = {"caption": "base", **_checked_templates(self.templates)}
        if isinstance(self.caption_fields, str):
            raise ValueError(
                f"caption_fields={self.caption_fields!r}: give a list of fields, or None."
            )
        if self.caption_fields is not None:
            self.caption_fields = tuple(self.caption_fields)
        conversations.check_history(self.history)
        for task in self.tasks if self.every_round else ():
            if task != "caption" and not templates.has_rounds(self.templates[task]):
                raise ValueError(
                    f"history='turns' learns several rounds, which the template of {task!r}, "
                    f"{self.templates[task]!r}, does not know."
                )
        if self.max_images is not None and (self.image_token_size is None or self.max_images < 1):
            raise ValueError(
                f"max_images={self.max_images} must be 1 or more, or None, and needs an image "
                "tower (image_token_size)."
            )

    @property
    def every_round(self) -> bool:
        """Whether the answer of each round is learnt."""
        return self.history == "turns"

    def spec(self) -> base.Spec:
        s, places = self.rows.image_size, self.max_images or 1
        t = self.rows.length_of(places)
        spec = {
            "tokens": ((t,), np.dtype(np.int32)),
            "token_types": ((t,), np.dtype(np.int32)),
            "loss_mask": ((t,), np.dtype(bool)),
        }
        if self.image_token_size is not None:
            spec = {"images": ((places, s, s, 3), np.dtype(np.uint8))} | spec
        if self.max_images is not None:
            spec["segments"] = (t,), np.dtype(np.int32)
        return spec

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"images": u8[I, S, S, 3], "tokens": i32[T], "token_types": i32[T] (0 language,
        1 vision, -1 padding), "loss_mask": bool[T]}; with `max_images` also "segments": i32[T] (0
        padding, else the number of the example in its row, from 1), and images that are not there
        are zeros.

        Raises:
          ValueError: the image cannot be decoded, the record has nothing for any of the tasks, what
            it has is malformed, or a prompt alone is too long. All name the record.
        """
        if self.max_images is not None:
            return self._as_it_comes(record, rng)
        has_tower = self.image_token_size is not None
        if "examples" in record or ("image" not in record if has_tower else record.get("images")):
            raise ValueError(
                f"Record {record['id']!r} is a pack, or has several images or none: set "
                "config.views.max_images, and config.method.layout='general'."
            )
        task, turn = self._draw(record, rng)
        with naming(record, _ADVICE):
            row = self.rows.example(self.templates[task], turn, self.every_round)
            if has_tower:
                return {"images": self.rows.image(record["image"]), **row}
        row["loss_mask"] = row["token_types"] == LANGUAGE
        row["loss_mask"][0] = False  # nothing comes before it
        return row

    def texts(self, batch: dict) -> list[list[str]]:
        """What the model reads and learns to write beside each image: "prompt | answer"; with
        `max_images` a text for each example of a row."""
        if self.max_images is not None:
            names = ("tokens", "token_types", "loss_mask", "segments")
            return [self.rows.texts_of(*row) for row in zip(*(batch[name] for name in names))]
        pairs = (self.rows.texts(*row) for row in zip(batch["tokens"], batch["loss_mask"]))
        return [[f"{prompt} | {answer}"] for prompt, answer in pairs]

    def draws(self, record: Mapping) -> list[Example]:
        """A few examples of a record, always the same; a pack has room for each of them. Draws that
        fit no row are left out.

        Raises:
          ValueError: as a call, where none fits.
        """
        found = []
        for number in range(_DRAWS):
            task, turn = self._draw(record, _draw_of(record, number))
            try:
                found.append(self._fitted(record, task, turn))
            except NoRoomError as error:
                refused = error
        if not found:
            with naming(record):
                raise refused
        return found

    def options(self) -> dict[str, Any]:
        """What decides the packs for these views, as JSON: their arguments but for the image size,
        and of the tokenizer its kind and contents."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        contents = listing.fingerprint(storage_path(self.rows.text.path).read_bytes())
        given["tokenizer"] = self.tokenizer.partition(":")[0], contents
        del given["image_size"]
        return json.loads(json.dumps(given, default=dict))

    def check_source(self, source) -> None:
        """Raises ValueError where packs of the source were made for other views."""
        for made in source.packed:
            others = [name for name, value in self.options().items() if made.get(name) != value]
            if others:
                told = ", ".join(f"{name}={made.get(name)!r}" for name in others)
                raise ValueError(
                    f"the packs of the data were made for other views, with {told}. Set the same, "
                    "or make them again with --pack."
                )

    def _as_it_comes(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        encoded, examples, shown = images_of(record), [], []
        if "examples" not in record:
            task, turn = self._draw(record, rng)
            with naming(record, _ADVICE):
                examples.append(self._fitted(record, task, turn))
            shown = [encoded[number] for number in examples[0].images]
        for one in record.get("examples", ()):
            examples.append(self._of_pack(one, rng))
            own = encoded[: conversations.count_of(one)]
            encoded = encoded[len(own) :]
            shown += [own[number] for number in examples[-1].images]
        with naming(record, _ADVICE):
            row = self.rows.row(examples, self.max_images)
            return {"images": self.rows.images(shown, self.max_images), **row}

    def _of_pack(self, one: Mapping, rng: random.Random) -> Example:
        """An example that fits the room that its pack has for it: the next draw, or the first of
        `draws`."""
        text, images = one["room"]
        for draw in (*[rng] * _DRAWS, *(_draw_of(one, number) for number in range(_DRAWS))):
            task, turn = self._draw(one, draw)
            with contextlib.suppress(NoRoomError):
                example = self._fitted(one, task, turn)
                if example.text <= text and len(example.images) <= images:
                    return example
        raise ValueError(
            f"Record {one['id']!r}: its pack has room for {text} tokens and {images} images, which "
            "none of its draws fits: the packs were made for other views. Make them again."
        )

    def _fitted(self, record: Mapping, task: str, turn: Turn) -> Example:
        count, template = conversations.count_of(record), self.templates[task]
        if not count and task != "caption":
            template = None
        shown = (number for number in range(count) if number not in turn.hidden)
        return self.rows.fitted(
            template,
            turn,
            every_round=self.every_round,
            images=shown,
            in_text="images" in record,
            most=self.max_images,
        )

    def _draw(self, record: Mapping, rng: random.Random) -> tuple[str, Turn]:
        tasks = dict(self.tasks)
        while tasks:
            (task,) = rng.choices(list(tasks), list(tasks.values()))
            turn = conversations.make_turn(
                task, record, rng, self.caption_fields, self.history, self.varied_instructions
            )
            if turn is not None:
                return task, turn
            del tasks[task]
        fields = ", ".join(sorted(set(record) - {"id", "image"}))
        only = "" if self.caption_fields is None else f" (captions: only {self.caption_fields})"
        raise ValueError(
            f"Record {record['id']!r} has nothing for the tasks {list(self.tasks)}{only}; it has "
            f"{fields}. Training does not skip records: choose other tasks, or leave it out."
        )


def _draw_of(record: Mapping, number: int) -> random.Random:
    return random.Random(f"{record['id']}/{number}")


def _checked_tasks(tasks: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(tasks, Mapping):
        raise ValueError(f'tasks={tasks!r}: give weights of tasks, such as {{"vqa": 1.0}}.')
    for task in tasks:
        conversations.check_task(task)
    wanted = {task: weight for task, weight in tasks.items() if weight}
    if not wanted or min(wanted.values()) < 0:
        raise ValueError(f"tasks={dict(tasks)}: give weights, none below 0 and one above.")
    return wanted


def _checked_templates(given: Mapping[str, str]) -> dict[str, str]:
    for task, template in given.items():
        if task not in TEMPLATES:
            raise ValueError(f"templates names {task!r}; those are for {list(TEMPLATES)}.")
        templates.check_template(template)
    return {**TEMPLATES, **given}
