"""What evaluators of text have in common: asking a model about images, and controls.

Controls show how much of a score needs the image: "blind" replaces every image by its mean
colour, "shuffled" by the image of another record.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from evaluators.shared.base import Evaluator
from evaluators.shared.records import image_of
from evaluators.shared.rows import RowMap
from input_pipeline.preprocess import Preprocess
from input_pipeline.records import naming
from input_pipeline.text.templates import check_template
from input_pipeline.views.cogvlm import Rows

CONTROLS = ("blind", "shuffled")


@dataclasses.dataclass(kw_only=True, eq=False)
class WritingEvaluator(Evaluator):
    """The base of evaluators that score what a model writes.

    Calls generate(model, {"images": u8[B, 1, S, S, 3], "tokens": i32[B, T], "token_types": i32[B,
    T]}) -> i32[B, L]: ids that continue each prompt, to its end of sentence. Where it has
    `weights`, it is called with generate.weights(model), made for each pass over the questions.

    Attributes:
      template: of the prompt, see `input_pipeline.text.templates`.
      controls: of CONTROLS; each takes as long as the evaluation itself.

    Raises:
      ValueError: also an unknown name, or preprocessing that does not fit.
    """

    needs = ("generate",)

    template: str
    controls: Sequence[str] = ()
    batch_size: int = 64

    def __post_init__(self):
        check_template(self.template)
        super().__post_init__()
        self._rows = rows_with_images(self.preprocess)
        generate = self.predict_fns["generate"]
        self._weights = getattr(generate, "weights", lambda model: model)
        self._generate = RowMap(generate, self.mesh)
        self.controls = checked_controls(self.controls, self.source)

    def write(
        self, model, ask: Callable[[int], tuple[int, dict, str]], count: int, control: str | None
    ) -> list[str]:
        """What the model writes, stripped, to questions 0..count-1, on every host.

        Args:
          ask: number of a question -> (row of its record, the record, the prompt); from threads.
          control: one of CONTROLS, or None.
        """

        def load(number):
            row, record, prompt = ask(number)
            with naming(record):
                arrays = self._rows.prompt(prompt)
            image = image_for(row, record, self.source, self.preprocess, control)
            return {"images": image, **arrays}

        outputs = self._generate(self._weights(model), load, count, self.batch_size)
        return [self._text(ids) for ids in outputs]

    def _text(self, ids: np.ndarray) -> str:
        ends = np.flatnonzero(ids == self._rows.text.eos_id)
        return self._rows.text.decode(ids[: ends[0]] if len(ends) else ids).strip()


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


def image_for(row: int, record, source, preprocess, control: str | None) -> np.ndarray:
    """u8[1, S, S, 3]: the record's evaluation image, or what a control puts in its place.

    "shuffled" takes the record half the source away: neighbours may share an image.
    """
    if control == "blind":
        size = preprocess.image_size
        mean = np.round(255 * np.array(preprocess.mean)).astype(np.uint8)
        return np.broadcast_to(mean, (1, size, size, 3))
    if control == "shuffled":
        record = source[(row + len(source) // 2) % len(source)]
    return image_of(record, preprocess)[None]
