"""What evaluators call `generate`: a batch of images and prompts in, ids out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from big_vlp import __version__, trees
from big_vlp.augment.photometric import normalise
from big_vlp.generation.beams import Beams
from big_vlp.generation.sampling import generate
from big_vlp.parallel import meshes
from input_pipeline.views.cogvlm import Rows

# Of keys, values and logits of the rows that a device works on at once: on a TPU of 16 GiB there is
# room for them beside a training state. CogVLM-17B at 490 pixels takes 0.7 GiB a row.
ROW_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class Generate:
    """Writes answers, greedily or by beam search.

    Attributes:
      method: has `network`, the model, `preprocess`, `lora_active` and `for_writing`.
      rows: what lays out the batches, see `Rows.prompt`.
      max_new_tokens: of an answer.
      row_bytes: as ROW_BYTES; the other rows of a batch wait. No answer depends on it.
    """

    method: Any
    rows: Rows
    max_new_tokens: int
    beams: Beams | None = None
    row_bytes: int = ROW_BYTES

    def __call__(self, params, batch) -> jax.Array:
        """Answers to {"images": u8[B, 1, S, S, 3], "tokens": i32[B, T], "token_types": i32[B, T]},
        or without images: i32[B, max_new_tokens], see `sampling.generate`. Its parameters are the
        model's or those of `weights`."""
        with self.method.lora_active():
            most = self._rows_at_once(params, batch["tokens"].shape[1])
            return in_turns(lambda rows: self._write(params, rows), batch, most)

    @property
    def settings(self) -> str:
        """All that answers depend on besides weights and rows, as a text."""
        method, decoding = self.method, (self.max_new_tokens, self.beams)
        return repr((__version__, method.network, method.lora, *decoding))

    def weights(self, params):
        """The model's parameters as they write fastest, to be made once for many batches."""
        return self.method.for_writing(params)

    def _write(self, params, batch):
        model, preprocess = self.method.network, self.method.preprocess
        features = None
        if "images" in batch:
            images = normalise(batch["images"], preprocess.mean, preprocess.std)
            features = model.apply(trees.variables(params), images, method="encode_images")
        return generate(
            model,
            params,
            batch["tokens"],
            batch["token_types"],
            features,
            max_new_tokens=self.max_new_tokens,
            eos_id=self.rows.text.eos_id,
            pad_id=self.rows.text.pad_id,
            strategy=self.beams,
            layout="static",
        )

    def _rows_at_once(self, params, length: int) -> int:
        """On one device; `length` of a prompt's keys and values."""
        model, written = self.method.network, self.beams.count if self.beams else 1

        def of_row(params):
            empty = lambda *sizes: model.apply(  # noqa: E731
                trees.variables(params), *sizes, method="empty_cache"
            )
            logits = jnp.zeros((written, model.text["vocab_size"]))
            return empty(1, length), empty(written, self.max_new_tokens), logits

        *caches, logits = jax.eval_shape(of_row, params)
        leaves = jax.tree.leaves(caches)
        tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
        parts = tensor if leaves[0].shape[3] % tensor == 0 else 1
        taken = sum(x.size * x.dtype.itemsize for x in leaves) // parts + 4 * logits.size
        return max(1, self.row_bytes // taken)


def in_turns(fn: Callable, batch, most: int):
    """`fn(batch)`, an array, for at most so many rows of each device at a time.

    Args:
      fn: of a batch; its rows do not depend on each other.
      batch: arrays [B, ...]; over the devices of an ambient mesh as `meshes.over_batch` has it.
    """
    size = len(jax.tree.leaves(batch)[0])
    devices = meshes.over_devices(size) or 1
    own = size // devices
    turns = -(-own // most)
    if turns == 1:
        return fn(batch)
    each = -(-own // turns)

    def cut(x):  # [B, ...] -> [turns, rows of all devices, ...]; every row stays on its device
        x = x.reshape(devices, own, *x.shape[1:])
        more = [(0, 0), (0, turns * each - own), *[(0, 0)] * (x.ndim - 2)]
        x = jnp.pad(x, more, mode="edge")
        x = x.reshape(devices, turns, each, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(turns, devices * each, *x.shape[3:])

    found = jax.lax.map(fn, jax.tree.map(cut, batch))
    found = found.reshape(turns, devices, each, *found.shape[2:]).swapaxes(0, 1)
    found = found.reshape(devices, turns * each, *found.shape[3:])[:, :own]
    return found.reshape(size, *found.shape[2:])
