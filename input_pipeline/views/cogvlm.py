"""Views of CogVLM (arXiv 2311.03079): images, prompts and the answers to learn, in one row.

A row is `bos | boi patches eoi | prompt answer eos | padding`. Image slots hold the padding id;
the model puts its image features there. Evaluators lay out their prompts with the same `Rows`.
Without image slots, the rows are those that a language model is pretrained on. With `max_images`
rows come as the records do: images where the text has them, or none, and several examples of a
pack, each behind a bos of its own.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.records import images_of, naming
from input_pipeline.text import conversations, templates
from input_pipeline.text.conversations import Turn
from input_pipeline.text.token_types import LANGUAGE, VISION
from input_pipeline.views.shared import base
from input_pipeline.views.shared.rows import Example, Rows

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
        if "examples" in record or "images" in record:
            raise ValueError(
                f"Record {record['id']!r} has several images, or is a pack: set "
                "config.views.max_images, and config.method.layout='general'."
            )
        task, turn = self._draw(record, rng)
        with naming(record, " Training does not skip records."):
            row = self.rows.example(self.templates[task], turn, self.every_round)
            if self.image_token_size is not None:
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
        """A few examples of a record, always the same; a pack has room for each of them.

        Raises:
          ValueError: as a call.
        """
        return [self._drawn(record, _draw_of(record, number)) for number in range(_DRAWS)]

    def _as_it_comes(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        encoded, examples, shown = images_of(record), [], []
        for one in record.get("examples", (record,)):
            example = self._drawn(one, rng, one.get("room"))
            own = encoded[: _count(one)]
            encoded = encoded[len(own) :]
            examples.append(example)
            shown += [own[number] for number in example.images]
        with naming(record, " Training does not skip records."):
            row = self.rows.row(examples, self.max_images)
            return {"images": self.rows.images(shown, self.max_images), **row}

    def _drawn(self, record: Mapping, rng: random.Random, room: int | None = None) -> Example:
        """An example. Where a pack has this much room for it, one that fits: the next draw, or
        the first of `draws`."""
        whole = 1 + self.context_length
        for _ in range(1 if room is None else _DRAWS):
            example = self._fitted(record, rng, whole)
            if room is None or example.text <= room:
                return example
        return self._fitted(record, _draw_of(record, 0), room)

    def _fitted(self, record: Mapping, rng: random.Random, room: int) -> Example:
        task, turn = self._draw(record, rng)
        template, images = self.templates[task], _count(record)
        if not images and task != "caption":
            template = None
        with naming(record, " Training does not skip records."):
            return self.rows.fitted(
                template,
                turn,
                every_round=self.every_round,
                images=images,
                most=self.max_images,
                room=room,
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


def _count(record: Mapping) -> int:
    """Images of a record, or of an example of a pack, which tells their number."""
    images = record.get("images")
    return images if isinstance(images, int) else len(images_of(record))


def _draw_of(record: Mapping, number: int) -> random.Random:
    return random.Random(f"{record['id']}/{number}")


def _checked_tasks(tasks: Mapping[str, float]) -> dict[str, float]:
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
