"""Rows of CogVLM (arXiv 2311.03079): text and images as arrays of a fixed length."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from input_pipeline.images import crops
from input_pipeline.preprocess import Preprocess
from input_pipeline.text import places, templates
from input_pipeline.text.conversations import Turn
from input_pipeline.text.token_types import LANGUAGE, PADDING, VISION
from input_pipeline.text.tokenizers import LlamaTokenizer, make_tokenizer


class NoRoomError(ValueError):
    """A prompt is too long for a row, or has more images than it."""


class Part(NamedTuple):
    """Consecutive tokens of one kind.

    Attributes:
      learnt: whether they are to be predicted.
      image: the number of the image whose slots they are, among those of its example; None: text.
    """

    ids: Sequence[int]
    learnt: bool = False
    image: int | None = None


class Example(NamedTuple):
    """What a row has of one example, behind its bos.

    Attributes:
      rounds_left_out: for want of room.
      cut: whether its answer has lost its end.
    """

    parts: list[Part]
    rounds_left_out: int = 0
    cut: bool = False

    @property
    def text(self) -> int:
        """Tokens of text, with bos."""
        return 1 + sum(len(part.ids) for part in self.parts if part.image is None)

    @property
    def learnt(self) -> int:
        """Tokens to be predicted."""
        return sum(len(part.ids) for part in self.parts if part.learnt)

    @property
    def images(self) -> list[int]:
        """Numbers of its images, in the order of their slots."""
        return [part.image for part in self.parts if part.image is not None]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Lays out images and text as arrays of a fixed length.

    Attributes:
      tokenizer: name of a LLaMA tokenizer, see `make_tokenizer`.
      image_size: side of the squashed image, in pixels.
      context_length: tokens of text behind the first bos: prompt, answer and end of sentence.
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
        return self.length_of(1)

    def length_of(self, images: int) -> int:
        """Tokens of a row with room for so many images."""
        return 1 + images * self.num_slots + self.context_length

    def image(self, data: bytes) -> np.ndarray:
        """u8[1, S, S, 3]: the whole image, squashed by Pillow's bicubic filter as the reference
        does. Nothing is cropped or flipped: boxes and "left of" stay true.

        Raises:
          ValueError: the bytes cannot be decoded.
        """
        return crops.eval_image(data, Preprocess(self.image_size, resize="squash"))[None]

    def images(self, encoded: Sequence[bytes], places: int) -> np.ndarray:
        """u8[places, S, S, 3]: the images, and zeros in the places that are left; see `image`.

        Raises:
          ValueError: there are more than places, or one cannot be decoded.
        """
        if len(encoded) > places:
            raise ValueError(f"a row has room for {places} images, and this has {len(encoded)}.")
        shape = (places, self.image_size, self.image_size, 3)
        pixels = np.zeros(shape, np.uint8)
        for number, data in enumerate(encoded):
            pixels[number] = self.image(data)[0]
        return pixels

    def prompt(self, prompt: str) -> dict[str, np.ndarray]:
        """{"tokens": i32[T], "token_types": i32[T]} of a prompt to be continued.

        Raises:
          NoRoomError: it is longer than `context_length`.
        """
        ids = self.text.encode(prompt)
        self._check_room(ids, self.context_length)
        row = self._one([Part(ids)])
        return {"tokens": row["tokens"], "token_types": row["token_types"]}

    def example(
        self, template: str, turn: Turn, every_round: bool = False
    ) -> dict[str, np.ndarray]:
        """{"tokens": i32[T], "token_types": i32[T], "loss_mask": bool[T]} of one image, a prompt
        and its answer, see `fitted`."""
        return self._one(self.fitted(template, turn, every_round=every_round).parts)

    def fitted(
        self,
        template: str | None,
        turn: Turn,
        *,
        every_round: bool = False,
        images: Iterable[int] = (),
        in_text: bool = True,
        most: int = 1,
    ) -> Example:
        """A prompt and its answer, tokenized each by itself. To be predicted are answer and end of
        sentence.

        What is too long loses its oldest rounds of history, then the end of its answer and with it
        the end of sentence: nobody learns to stop there. (The reference drops examples whose prompt
        nearly fills the row.)

        Args:
          template: see `text.templates`.
          every_round: learn the answer of each round, and an end of sentence behind each. Then the
            later rounds have tokens of their own behind that end, where history is part of the
            prompt's text, and what is too long loses its last rounds.
          images, in_text: those that are shown, see `text.places.place`. An image of a round that
            is left out in front stands before the text; with `every_round` it is left out, too.
          most: images that the row has room for.

        Raises:
          NoRoomError: the prompt without history leaves no room for an answer, or has more images
            than the row.
        """
        rounds = (*turn.history, (turn.query, turn.answer))
        shown = list(images), in_text
        if every_round:
            starts = templates.openings(template, [query for query, _ in rounds])
            # All are placed: an image of a round that is left out is none of the first.
            whole = self._parts([(s, answer) for s, (_, answer) in zip(starts, rounds)], *shown)
            shorter = (whole[: len(whole) - count] for count in range(len(whole)))
        else:
            later = (turn.history[count:] for count in range(len(rounds)))
            prompts = (templates.make_prompt(template, turn.query, history) for history in later)
            shorter = (self._parts([(prompt, turn.answer)], *shown) for prompt in prompts)
        for count, made in enumerate(shorter):
            example = Example([part for one in made for part in one], count)
            if example.text <= 1 + self.context_length and len(example.images) <= most:
                return example
        return self._cut(example, most)

    def row(self, examples: Sequence[Example], images: int) -> dict[str, np.ndarray]:
        """One row of several examples, each behind a bos, with room for so many images.

        Returns {"tokens": i32[T], "token_types": i32[T], "loss_mask": bool[T], "segments": i32[T]
        (0 padding, else the number of the example, from 1)}.

        Raises:
          ValueError: they are too long.
        """
        segments = np.zeros(self.length_of(images), np.int32)
        parts, end = [], 0
        for number, example in enumerate(examples, 1):
            parts += [Part([self.text.bos_id]), *example.parts]
            start, end = end, sum(len(part.ids) for part in parts)
            segments[start:end] = number
        return {**self._row(parts, images), "segments": segments}

    def texts(self, tokens: np.ndarray, loss_mask: np.ndarray) -> tuple[str, str]:
        """Prompt and answer of a row, decoded; "</s>" where the answer ends by itself."""
        ids, learnt = tokens[1 + self.num_slots :], loss_mask[1 + self.num_slots :]
        first = int(learnt.argmax()) if learnt.any() else len(ids)
        runs = self._runs(ids[first:], learnt[first:])
        return self.text.decode(ids[:first]), " | ".join(runs)

    def texts_of(
        self,
        tokens: np.ndarray,
        token_types: np.ndarray,
        loss_mask: np.ndarray,
        segments: np.ndarray,
    ) -> list[str]:
        """Each example of a row decoded, <image> for each image: "prompt | answer | ..."."""
        found = []
        for number in range(1, segments.max(initial=0) + 1):
            ids, types, learnt = (
                x[segments == number][1:] for x in (tokens, token_types, loss_mask)
            )
            texts = []
            for _, run in itertools.groupby(range(len(ids)), learnt.__getitem__):
                kinds = itertools.groupby(run, types.__getitem__)
                texts.append(
                    "".join(
                        "<image>" if kind == VISION else self._decoded(ids[list(where)])
                        for kind, where in kinds  # no two images are neighbours
                    )
                )
            found.append(" | ".join(texts))
        return found

    def _runs(self, ids: np.ndarray, learnt: np.ndarray) -> Iterable[str]:
        """Texts of what is learnt and what is not, by turns; not of what follows the last."""
        ids = ids[: len(learnt) - int(learnt[::-1].argmax())] if learnt.any() else ids[:0]
        for _, run in itertools.groupby(range(len(ids)), learnt.__getitem__):
            yield self._decoded(ids[list(run)])

    def _decoded(self, ids: np.ndarray) -> str:
        return self.text.decode(ids) + ("</s>" if self.text.eos_id in ids else "")

    def _parts(
        self, rounds: Sequence[tuple[str, str]], images: list[int], in_text: bool
    ) -> list[list[Part]]:
        """The parts of each round of a prompt and the answer to learn."""
        texts = [text for both in rounds for text in both]
        placed = iter(places.place(texts, images, in_text))
        found: list[list[Part]] = []
        after_image = False
        for _ in rounds:
            parts: list[Part] = []
            for learnt, pieces in zip((False, True), (next(placed), next(placed))):
                for piece in pieces:
                    is_image = isinstance(piece, int)
                    if is_image and after_image:  # two images need a token between them
                        parts.append(Part(self.text.encode("\n")))
                    if is_image:
                        parts.append(self._image_part(piece))
                    else:
                        parts.append(Part(self.text.encode(piece), learnt))
                    after_image = is_image
            found.append([*parts, Part([self.text.eos_id], True)])
            after_image = False
        return found

    def _cut(self, example: Example, most: int) -> Example:
        """As much of it as there is room for, up to a token that is learnt."""
        before = list(itertools.takewhile(lambda part: not part.learnt, example.parts))
        prompt = [i for part in before if part.image is None for i in part.ids]
        self._check_room(prompt, self.context_length - 1)
        if (count := sum(part.image is not None for part in before)) > most:
            raise NoRoomError(
                f"its prompt has {count} images; with max_images={most} a row has room for {most}. "
                "Raise max_images, or leave the record out."
            )
        kept, left = [], self.context_length
        for part in example.parts:
            if not left or (part.image is not None and not most):
                break
            if part.image is None:
                part = part._replace(ids=part.ids[:left])
                left -= len(part.ids)
            else:
                most -= 1
            kept.append(part)
        while not kept[-1].learnt:
            kept.pop()
        return Example(kept, example.rounds_left_out, True)

    def _check_room(self, prompt: list[int], most: int) -> None:
        if len(prompt) > most:
            raise NoRoomError(
                f"its prompt {self.text.decode(prompt)[:80]!r} has {len(prompt)} tokens; with "
                f"context_length={self.context_length} it may have {most}. Raise context_length, "
                "or leave the record out."
            )

    def _one(self, parts: Sequence[Part]) -> dict[str, np.ndarray]:
        """A row of one image, if there are any, and text."""
        image = [] if self.image_token_size is None else [self._image_part(0)]
        return self._row([Part([self.text.bos_id]), *image, *parts], 1)

    def _image_part(self, number: int) -> Part:
        return Part([self.text.pad_id] * self.num_slots, image=number)

    def _row(self, parts: Sequence[Part], images: int) -> dict[str, np.ndarray]:
        length = self.length_of(images)
        tokens = np.full(length, self.text.pad_id, np.int32)
        types = np.full(length, PADDING, np.int32)
        loss_mask = np.zeros(length, bool)
        start = 0
        for part in parts:
            end = start + len(part.ids)
            if end > length:
                raise ValueError(f"a row has {length} tokens, and this needs more.")
            tokens[start:end] = part.ids
            types[start:end] = LANGUAGE if part.image is None else VISION
            loss_mask[start:end] = part.learnt
            start = end
        return {"tokens": tokens, "token_types": types, "loss_mask": loss_mask}
