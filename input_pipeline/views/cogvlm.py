"""Views of CogVLM (arXiv 2311.03079): an image, a prompt and the answer to learn, in one row.

A row is `bos | boi patches eoi | prompt answer eos | padding`. Image slots hold the padding id;
the model puts its image features there. Evaluators lay out their prompts with the same `Rows`.
Without image slots, the rows are those that a language model is pretrained on.
"""

import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.images import crops
from input_pipeline.preprocess import Preprocess
from input_pipeline.records import naming
from input_pipeline.text import conversations, templates
from input_pipeline.text.conversations import Turn
from input_pipeline.text.token_types import LANGUAGE, PADDING, VISION
from input_pipeline.text.tokenizers import LlamaTokenizer, make_tokenizer
from input_pipeline.views.shared import base

# Captions have an empty prompt, as in pretraining.
TEMPLATES = {
    "vqa": "vqa",
    "rec": "chat_old",
    "reg": "chat_old",
    "grounded": "chat_old",
    "conversation": "chat_old",
}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Lays out one image and text as arrays of a fixed length.

    Attributes:
      tokenizer: name of a LLaMA tokenizer, see `make_tokenizer`.
      image_size: side of the squashed image, in pixels.
      context_length: tokens of text: prompt, answer and end of sentence.
      image_token_size: pixels per side of what an image slot stands for: a patch, or more where a
        convolution follows the encoder. None: rows have text only.

    Raises:
      ValueError: another tokenizer, or sizes that do not divide.
    """

    tokenizer: str
    image_size: int
    context_length: int
    image_token_size: int | None = None

    def __post_init__(self):
        if not isinstance(self.text, LlamaTokenizer):
            raise ValueError(
                "CogVLM's rows need a LLaMA tokenizer, 'llama:PATH' or 'llama3:PATH', not "
                f"{self.tokenizer!r}."
            )
        size = self.image_token_size
        if size is not None and (min(self.image_size, size) < 1 or self.image_size % size):
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of image_token_size={size}."
            )
        if self.context_length < 2:
            raise ValueError(f"context_length={self.context_length} leaves no room for text.")

    @classmethod
    def of(cls, preprocess: Preprocess) -> "Rows":
        """The rows of a model with this preprocess record.

        Raises:
          ValueError: it has no LLaMA tokenizer, or crops the image.
        """
        if preprocess.tokenizer is None:
            raise ValueError("This needs text, but the preprocess record names no tokenizer.")
        if preprocess.image_token_size is not None and preprocess.resize != "squash":
            raise ValueError(
                "CogVLM reads whole images: set resize='squash' in the preprocess record, not "
                f"{preprocess.resize!r}."
            )
        return cls(
            preprocess.tokenizer,
            preprocess.image_size,
            preprocess.context_length,
            preprocess.image_token_size,
        )

    @functools.cached_property
    def text(self) -> LlamaTokenizer:
        return make_tokenizer(self.tokenizer)

    @property
    def num_slots(self) -> int:
        """Tokens that an image takes, with boi and eoi."""
        if self.image_token_size is None:
            return 0
        return (self.image_size // self.image_token_size) ** 2 + 2

    @property
    def length(self) -> int:
        return 1 + self.num_slots + self.context_length

    def image(self, data: bytes) -> np.ndarray:
        """u8[1, S, S, 3]: the whole image, squashed by Pillow's bicubic filter as the reference
        does. Nothing is cropped or flipped: boxes and "left of" stay true.

        Raises:
          ValueError: the bytes cannot be decoded.
        """
        return crops.eval_image(data, Preprocess(self.image_size, resize="squash"))[None]

    def prompt(self, prompt: str) -> dict[str, np.ndarray]:
        """{"tokens": i32[T], "token_types": i32[T]} of a prompt to be continued.

        Raises:
          ValueError: it is longer than `context_length`.
        """
        ids = self.text.encode(prompt)
        self._check_room(ids, self.context_length)
        row = self._row(ids, [])
        return {"tokens": row["tokens"], "token_types": row["token_types"]}

    def example(self, template: str, turn: Turn) -> dict[str, np.ndarray]:
        """{"tokens": i32[T], "token_types": i32[T], "loss_mask": bool[T]} of a prompt and its
        answer, tokenized each by itself. The loss mask marks what is to be predicted: answer and
        end of sentence.

        What is too long loses its oldest rounds of history, then the end of its answer and with it
        the end of sentence: nobody learns to stop there. (The reference drops examples whose prompt
        nearly fills the row.)

        Raises:
          ValueError: the prompt without history leaves no room for an answer.
        """
        answer = [*self.text.encode(turn.answer), self.text.eos_id]
        for start in range(len(turn.history) + 1):
            prompt = self.text.encode(
                templates.make_prompt(template, turn.query, turn.history[start:])
            )
            if len(prompt) + len(answer) <= self.context_length:
                break
        self._check_room(prompt, self.context_length - 1)
        return self._row(prompt, answer[: self.context_length - len(prompt)])

    def texts(self, tokens: np.ndarray, loss_mask: np.ndarray) -> tuple[str, str]:
        """Prompt and answer of a row, decoded; "</s>" where the answer ends by itself."""
        ids, learnt = tokens[1 + self.num_slots :], loss_mask[1 + self.num_slots :]
        first = int(learnt.argmax()) if learnt.any() else len(ids)
        prompt, answer = ids[:first], ids[learnt]
        end = "</s>" if self.text.eos_id in answer else ""
        return self.text.decode(prompt), self.text.decode(answer) + end

    def _check_room(self, prompt: list[int], most: int) -> None:
        if len(prompt) > most:
            raise ValueError(
                f"its prompt {self.text.decode(prompt)[:80]!r} has {len(prompt)} tokens; with "
                f"context_length={self.context_length} it may have {most}. Raise context_length, "
                "or leave the record out."
            )

    def _row(self, prompt: list[int], answer: list[int]) -> dict[str, np.ndarray]:
        start = 1 + self.num_slots
        middle, end = start + len(prompt), start + len(prompt) + len(answer)
        tokens = np.full(self.length, self.text.pad_id, np.int32)
        tokens[0] = self.text.bos_id
        tokens[start:end] = [*prompt, *answer]
        types = np.full(self.length, PADDING, np.int32)
        types[:end] = LANGUAGE
        types[1:start] = VISION
        loss_mask = np.zeros(self.length, bool)
        loss_mask[middle:end] = True
        return {"tokens": tokens, "token_types": types, "loss_mask": loss_mask}


@dataclasses.dataclass(kw_only=True, eq=False)
class Views(base.Views):
    """The whole image, squashed, and one task about it, drawn by weight among those that the record
    has the data for; see `input_pipeline.text.conversations` for tasks.

    Without `image_token_size` there is no image, and prompts are learnt like answers.

    Attributes:
      image_size, tokenizer, context_length, image_token_size: see `Rows`.
      tasks: task -> weight.
      templates: task -> template, see `input_pipeline.text.templates`, where it is not that of
        TEMPLATES; captions have none.
      caption_fields: the captions that count; None for all.
      history: see `conversations.make_turn`.

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

    def spec(self) -> base.Spec:
        s, t = self.rows.image_size, self.rows.length
        images = {"images": ((1, s, s, 3), np.dtype(np.uint8))}
        return {
            **(images if self._with_image else {}),
            "tokens": ((t,), np.dtype(np.int32)),
            "token_types": ((t,), np.dtype(np.int32)),
            "loss_mask": ((t,), np.dtype(bool)),
        }

    @property
    def _with_image(self) -> bool:
        return self.rows.image_token_size is not None

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"images": u8[1, S, S, 3], "tokens": i32[T], "token_types": i32[T] (0 language,
        1 vision, -1 padding), "loss_mask": bool[T]}.

        Raises:
          ValueError: the image cannot be decoded, the record has nothing for any of the tasks, what
            it has is malformed, or a prompt alone is too long. All name the record.
        """
        task, turn = self._draw(record, rng)
        with naming(record, " Training does not skip records."):
            row = self.rows.example(self.templates[task], turn)
            if self._with_image:
                return {"images": self.rows.image(record["image"]), **row}
        row["loss_mask"] = row["token_types"] == LANGUAGE
        row["loss_mask"][0] = False  # nothing comes before it
        return row

    def texts(self, batch: dict) -> list[list[str]]:
        """What the model reads and learns to write beside each image: "prompt | answer"."""
        pairs = (self.rows.texts(*row) for row in zip(batch["tokens"], batch["loss_mask"]))
        return [[f"{prompt} | {answer}"] for prompt, answer in pairs]

    def _draw(self, record: dict, rng: random.Random) -> tuple[str, Turn]:
        tasks = dict(self.tasks)
        while tasks:
            (task,) = rng.choices(list(tasks), list(tasks.values()))
            turn = conversations.make_turn(task, record, rng, self.caption_fields, self.history)
            if turn is not None:
                return task, turn
            del tasks[task]
        fields = ", ".join(sorted(set(record) - {"id", "image"}))
        only = "" if self.caption_fields is None else f" (captions: only {self.caption_fields})"
        raise ValueError(
            f"Record {record['id']!r} has nothing for the tasks {list(self.tasks)}{only}; it has "
            f"{fields}. Training does not skip records: choose other tasks, or leave it out."
        )


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
