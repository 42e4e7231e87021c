"""Semantic segmentation: mean intersection over union at the size of the masks.

As the reference implementation of CatLIP (arXiv 2404.15653) evaluates ADE20K: the image is resized
to the model's square, the logits are resized to the mask (bilinear, corners aligned), each pixel
takes the highest, and intersections and unions are summed over the whole data set. One rule is
stricter: a pixel without a single highest logit, by a tie or NaN, is given to no class.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from evaluators.shared import base
from evaluators.shared.pixels import (
    BLOCK_ROWS,
    PAD,
    count_pixels,
    metrics,
    sole_highest,
    sparse,
    summed,
)
from evaluators.shared.records import image_of
from evaluators.shared.rows import RowMap, gather_rows, num_outputs, own_device
from input_pipeline.checks.fields import mask_of


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(base.Evaluator):
    """Yields `mean_iou`, `pixel_accuracy`, their `_baseline`, and `num_classes_present`.

    Calls `segment`, see `shared.base`; its logits may have any resolution (the reference
    resizes those of stride 8 to the mask in one go). Masks hold 0 where a pixel does not count, and
    1 + class elsewhere. The mean is over the classes that occur in the masks. The baseline gives
    every pixel to the most frequent class.

    Attributes:
      data: its records have `mask`, integers [H, W].

    Raises:
      ValueError: the data has no masks, the method cannot segment, or the preprocessing crops.
    """

    needs = ("segment",)

    batch_size: int = 16

    def __post_init__(self):
        super().__post_init__()
        if self.preprocess.resize != "squash":
            raise ValueError(
                "Segmentation needs the whole image: set resize='squash' in the preprocess record, "
                f"not {self.preprocess.resize!r}."
            )
        self._logits = RowMap(self.predict_fns["segment"], self.mesh)
        mask_of(self.source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a mask has a class that the head lacks, or no pixel counts."""
        num_classes = num_outputs(self.predict_fns["segment"], model, self.preprocess, self.mesh)
        masks, counts = {}, {}

        def load(row):
            record = self.source[row]
            masks[row] = mask_of(record, num_classes)
            return {"image": image_of(record, self.preprocess)}

        count = len(self.source)
        for row, logits in self._logits.local(model, load, count, self.batch_size):
            mask = masks.pop(row)
            counts[row] = sparse(count_pixels(mask, label_map(logits, *mask.shape), num_classes))
        yield from metrics(*summed(gather_rows(counts, count), num_classes))


def label_map(logits: jax.Array, height: int, width: int) -> np.ndarray:
    """The class with the highest logit at every pixel of an image of this size.

    Args:
      logits: f32[h, w, C] on one device; resized bilinearly with corners aligned.

    Returns:
      i32[height, width], NO_CLASS where no logit is above all others.
    """
    rows, columns = (
        _positions(-(-size // PAD) * PAD, size, source)
        for size, source in zip((height, width), logits.shape)
    )
    with own_device(logits):
        labels = _label_map(logits, rows, columns)
    return np.asarray(labels)[:height, :width]


def _positions(padded: int, size: int, source: int) -> np.ndarray:
    """f32[padded]: where the pixels lie between 0 and source - 1; padding lies at the end."""
    scale = np.float32((source - 1) / (size - 1) if size > 1 else 0)
    return np.minimum(np.arange(padded, dtype=np.float32) * scale, np.float32(source - 1))


@jax.jit
def _label_map(logits, rows, columns):
    logits = logits.astype(jnp.float32)
    left, right, to_right = _neighbours(columns, logits.shape[1])

    def block(rows):  # f32[r] -> i32[r, W]: all logits at the mask's size would take gigabytes
        top, bottom, down = _neighbours(rows, logits.shape[0])
        lines = _mix(logits[top], logits[bottom], down[:, None, None])  # [r, w, C]
        scores = _mix(lines[:, left], lines[:, right], to_right[:, None])  # [r, W, C]
        # Computed once: rounded in two ways, the highest might equal none.
        scores = jax.lax.optimization_barrier(scores)
        return sole_highest(scores, -1)

    blocks = jax.lax.map(block, rows.reshape(-1, BLOCK_ROWS))
    return blocks.reshape(len(rows), len(columns))


def _mix(a, b, share):
    return a * (1 - share) + b * share


def _neighbours(positions, size: int):
    """i32, i32, f32 of the shape of `positions`: the two nearest samples, the second's weight."""
    first = jnp.clip(jnp.floor(positions), 0, max(size - 2, 0)).astype(jnp.int32)
    return first, jnp.minimum(first + 1, size - 1), positions - first
