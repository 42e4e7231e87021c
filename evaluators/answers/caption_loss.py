"""Held-out next-token loss of captions, and how much of it the image explains."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evaluators.answers.vqa import checked_controls, image_for
from evaluators.shared import common
from input_pipeline.text.conversations import Turn
from input_pipeline.views.cogvlm import Rows


class Evaluator:
    """Yields `loss`, the mean over all tokens of all captions in nats, also for each control.

    The prompt is empty, as in pretraining; end of sentence counts as a token. `loss_blind` and
    `loss_shuffled` well above `loss` show that the model reads the image; see `answers.vqa`.

    Calls token_losses(model, {"images": u8[B, 1, S, S, 3], "tokens": i32[B, T], "token_types":
    i32[B, T], "loss_mask": bool[B, T]}) -> (f32[B], i32[B]): each row's summed
    loss of the tokens that the loss mask marks, and their number. Without "images" where the model
    is a language model, whose only control is none.
    """

    def __init__(
        self,
        predict_fns,
        preprocess,
        mesh: jax.sharding.Mesh,
        *,
        data: Mapping[str, Any],
        caption_field: str = "caption",
        controls: Sequence[str] = ("blind", "shuffled"),
        batch_size: int = 64,
    ):
        """Args as every evaluator's, and:

        data: name and arguments of a data source whose records have captions.
        caption_field: its first string is the caption.
        controls: of `evaluators.answers.vqa.CONTROLS`; each takes as long as the evaluation itself.
        batch_size: on all devices together; has no influence on the values.

        Raises:
          ValueError: the data has no such captions, the method has no token losses, or an unknown
            control.
        """
        common.require(predict_fns, "token_losses")
        self._source = common.open_source(data)
        self._field = caption_field
        self._token_losses = predict_fns["token_losses"]
        self._losses = common.RowMap(self._sums, mesh)
        self._rows = Rows.of(preprocess)
        self._preprocess = preprocess
        self._batch_size = batch_size
        with_image = self._rows.image_token_size is not None
        self._controls = checked_controls(controls, self._source) if with_image else ()
        self._caption_of(self._source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        for control in (None, *self._controls):

            def load(row, control=control):
                record = self._source[row]
                turn = Turn("", self._caption_of(record))
                arrays = self._rows.example("base", turn)
                if self._rows.image_token_size is None:
                    return arrays
                image = image_for(row, record, self._source, self._preprocess, control)
                return {"images": image, **arrays}

            sums = self._losses(model, load, len(self._source), self._batch_size)
            total, count = sums.sum(axis=0, dtype=np.float64)
            yield f"loss_{control}" if control else "loss", float(total / count)

    def _sums(self, model, batch):
        """f32[B, 2]: loss and number of tokens."""
        losses, counts = self._token_losses(model, batch)
        return jnp.stack([losses, counts.astype(losses.dtype)], axis=1)

    def _caption_of(self, record) -> str:
        return common.captions_of(record, self._field)[0]
