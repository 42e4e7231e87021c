"""Held-out next-token loss of captions, and how much of it the image explains."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from evaluators.shared import base
from evaluators.shared.records import captions_of
from evaluators.shared.rows import RowMap
from evaluators.shared.written import checked_controls, image_for
from input_pipeline.records import given
from input_pipeline.text.conversations import Turn
from input_pipeline.views.cogvlm import Rows


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(base.Evaluator):
    """Yields `loss`, the mean over all tokens of all captions in nats, also for each control.

    The prompt is empty, as in pretraining; end of sentence counts as a token. `loss_blind` and
    `loss_shuffled` well above `loss` show that the model reads the image; see `shared.written`.

    Calls token_losses(model, {"images": u8[B, 1, S, S, 3], "tokens": i32[B, T], "token_types":
    i32[B, T], "loss_mask": bool[B, T]}) -> (f32[B], i32[B]): each row's summed
    loss of the tokens that the loss mask marks, and their number. Without "images" where the model
    is a language model, whose only control is none.

    Attributes:
      caption_field: its first string is the caption.
      controls: of `shared.written.CONTROLS`; each takes as long as the evaluation itself.

    Raises:
      ValueError: the data has no such captions, the method has no token losses, or an unknown
        control.
    """

    needs = ("token_losses",)

    caption_field: str = "caption"
    controls: Sequence[str] = ("blind", "shuffled")
    batch_size: int = 64

    def __post_init__(self):
        super().__post_init__()
        self._losses = RowMap(self._sums, self.mesh)
        self._rows = Rows.of(self.preprocess)
        with_image = self._rows.image_token_size is not None
        self.controls = checked_controls(self.controls, self.source) if with_image else ()
        self._caption_of(given(self.source.fields([0])[0]))  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        for control in (None, *self.controls):

            def load(row, control=control):
                record = self.source[row]
                turn = Turn("", self._caption_of(record))
                arrays = self._rows.example("base", turn)
                if self._rows.image_token_size is None:
                    return arrays
                image = image_for(row, self.source, self.preprocess, control, record)
                return {"images": image, **arrays}

            sums = self._losses(model, load, len(self.source), self.batch_size)
            total, count = sums.sum(axis=0, dtype=np.float64)
            yield f"loss_{control}" if control else "loss", float(total / count)

    def _sums(self, model, batch):
        """f32[B, 2]: loss and number of tokens."""
        losses, counts = self.predict_fns["token_losses"](model, batch)
        return jnp.stack([losses, counts.astype(losses.dtype)], axis=1)

    def _caption_of(self, record) -> str:
        return captions_of(record, self.caption_field)[0]
