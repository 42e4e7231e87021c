"""What evaluators of text have in common: asking a model about images, and controls.

Controls show how much of a score needs the image: "blind" replaces every image by its mean
colour, "shuffled" by the image of another record.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluators.shared.base import Evaluator
from evaluators.shared.records import image_of
from evaluators.shared.resuming import Parts, weights_digest
from evaluators.shared.rows import RowMap
from input_pipeline.files.buckets import storage_path
from input_pipeline.files.listing import contents_digest
from input_pipeline.preprocess import Preprocess
from input_pipeline.text.templates import check_template
from input_pipeline.text.token_types import LANGUAGE
from input_pipeline.views.cogvlm import Rows

CONTROLS = ("blind", "shuffled")
_MOST_LENGTHS = 4


class Question(NamedTuple):
    """What a model is to continue.

    Attributes:
      row: of the record whose image goes with it.
      prompt: as the template has it.
      tokens: how many the prompt has.
    """

    row: int
    prompt: str
    tokens: int


@dataclasses.dataclass(kw_only=True, eq=False)
class WritingEvaluator(Evaluator):
    """The base of evaluators that score what a model writes.

    Calls generate(model, {"images": u8[B, 1, S, S, 3], "tokens": i32[B, T], "token_types": i32[B,
    T]}) -> i32[B, L]: ids that continue each prompt, to its end of sentence. T is that of the
    model's rows, or as much less as `prompt_lengths` says. Where it has `weights`, it is called
    with generate.weights(model), made for each pass over the questions.

    Attributes:
      template: of the prompt, see `input_pipeline.text.templates`.
      controls: of CONTROLS; each takes as long as the evaluation itself.
      predictions: a file for what the model writes. Beside it all that is written is kept until the
        evaluation is done, see `resuming`: one that was ended goes on there. Not so where the
        function has no `settings`, a text that says all else that its answers depend on.

    Raises:
      ValueError: also an unknown name, or preprocessing that does not fit.
    """

    needs = ("generate",)

    template: str
    controls: Sequence[str] = ()
    predictions: str | None = None
    batch_size: int = 64

    def __post_init__(self):
        check_template(self.template)
        super().__post_init__()
        self._rows = rows_with_images(self.preprocess)
        generate = self.predict_fns["generate"]
        self._weights = getattr(generate, "weights", lambda model: model)
        self._settings = getattr(generate, "settings", None)
        self._generate, self._digest = RowMap(generate, self.mesh), None
        self.controls = checked_controls(self.controls, self.source)

    def tokens_of(self, prompt: str) -> int:
        """How many tokens a prompt has. Raises ValueError where it is longer than rows are."""
        types = self._rows.prompt(prompt)["token_types"]
        return int((types == LANGUAGE).sum()) - 1  # the one before the image

    def begin(self, model) -> None:
        """Before what a model writes is to be kept: once for all that `write` asks of it."""
        if self.predictions is not None and self._settings is not None:
            self._digest = weights_digest(model, self.mesh)

    def write(self, model, questions: Sequence[Question], control: str | None) -> list[str]:
        """What the model writes to each, stripped, on every host.

        Questions of like length are asked together, the longest first: what needs most memory
        fails at once.

        Args:
          control: one of CONTROLS, or None.
        """
        parts, texts = self._parts(questions, control), {}
        if parts is not None:
            texts = parts.found(len(questions))
        left = list(self._left(questions, texts))
        if left:
            model = self._weights(model)
        try:
            for length, numbers in left:
                for new, is_last in self._written(model, questions, control, length, numbers):
                    texts.update(new)
                    if parts is not None:
                        parts.add(new, is_last)
        finally:
            if parts is not None:
                parts.close()
        return [texts[number] for number in range(len(questions))]

    def _parts(self, questions: Sequence[Question], control: str | None) -> Parts | None:
        """None where nothing is kept."""
        if self._digest is None:
            return None

        def about():
            tokenizer = contents_digest(storage_path(self._rows.text.path)).hex()
            what = f"{self._digest} {tokenizer} {self.preprocess!r} {self._settings} {control} "
            return what, self._fingerprint, json.dumps(questions)

        return Parts(self.predictions, self.mesh, about)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return self.source.fingerprint()

    def _written(
        self, model, questions: Sequence[Question], control, length: int, numbers: Sequence[int]
    ) -> Iterator[tuple[dict[int, str], bool]]:
        """Yields what the model writes to some questions, number -> text of a batch, and whether it
        is the last; prompts are padded to `length` tokens."""
        last = 1 + self._rows.num_slots + length

        def load(place):
            question = questions[numbers[place]]
            arrays = self._rows.prompt(question.prompt)
            image = image_for(question.row, self.source, self.preprocess, control)
            return {"images": image, **{key: value[:last] for key, value in arrays.items()}}

        done = 0
        for output in self._generate.stream(model, load, len(numbers), self.batch_size):
            end = done + len(output)
            yield dict(zip(numbers[done:end], map(self._text, output))), end == len(numbers)
            done = end

    def _left(
        self, questions: Sequence[Question], texts: Mapping[int, Any]
    ) -> Iterator[tuple[int, list[int]]]:
        """Yields (tokens that prompts are padded to, numbers of the questions without a text).

        What is left of a pass runs in the same batches as if nothing were there: programs for other
        numbers of rows might round otherwise.
        """
        for length, numbers in self._by_length([question.tokens for question in questions]):
            size = self._generate.rows_of_batch(len(numbers), self.batch_size)
            batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
            left = [n for batch in batches if not texts.keys() >= set(batch) for n in batch]
            if left:
                missing = min(size, len(numbers)) - len(left)
                yield length, left + [left[-1]] * missing

    def _by_length(self, tokens: Sequence[int]) -> list[tuple[int, list[int]]]:
        """(tokens that prompts are padded to, numbers of the questions), the longest first. Too few
        for a batch go with those that are longer: to compile for them takes longer."""
        lengths, found = prompt_lengths(self._rows.context_length), []
        which = np.searchsorted(lengths, tokens)
        for place, length in reversed(list(enumerate(lengths))):
            numbers = np.flatnonzero(which == place).tolist()
            if found and len(numbers) < self.batch_size:
                found[-1][1].extend(numbers)
            elif numbers:
                found.append((length, numbers))
        return found

    def _text(self, ids: np.ndarray) -> str:
        ends = np.flatnonzero(ids == self._rows.text.eos_id)
        return self._rows.text.decode(ids[: ends[0]] if len(ends) else ids).strip()


def prompt_lengths(context_length: int) -> list[int]:
    """What prompts are padded to, in tokens, ascending: to few lengths, each of which is compiled
    for, and each about half of the next."""
    return sorted({-(-context_length // 2**i) for i in range(_MOST_LENGTHS)})


def rows_with_images(preprocess: Preprocess) -> Rows:
    """How rows of a model that sees images are laid out.

    Raises:
      ValueError: the model sees none.
    """
    rows = Rows.of(preprocess)
    if rows.image_token_size is None:
        raise ValueError(
            "This evaluator asks about images; the model has none (image_token_size is None)."
        )
    return rows


def checked_controls(controls: Sequence[str], source) -> tuple[str, ...]:
    """The controls; raises ValueError where one is unknown or cannot be had of this source."""
    unknown = sorted(set(controls) - set(CONTROLS))
    if unknown or isinstance(controls, str):
        raise ValueError(f"controls={controls!r}: give a list of some of {CONTROLS}.")
    if "shuffled" in controls and len(source) < 2:
        raise ValueError("The control 'shuffled' needs data of two records or more.")
    return tuple(controls)


def image_for(
    row: int, source, preprocess, control: str | None, record: Mapping[str, Any] | None = None
) -> np.ndarray:
    """u8[1, S, S, 3]: the record's evaluation image, or what a control puts in its place.

    "shuffled" takes the record half the source away: neighbours may share an image.

    Args:
      record: that of the row, where it was read already.
    """
    if control == "blind":
        size = preprocess.image_size
        mean = np.round(255 * np.array(preprocess.mean)).astype(np.uint8)
        return np.broadcast_to(mean, (1, size, size, 3))
    if control == "shuffled":
        record = source[(row + len(source) // 2) % len(source)]
    return image_of(source[row] if record is None else record, preprocess)[None]
