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
from evaluators.shared.records import image_of
from evaluators.shared.rows import RowMap, gather_rows, num_outputs, own_device
from input_pipeline.checks.fields import mask_of

NO_CLASS = -1
# Masks are padded to multiples of this, so that few sizes have to be compiled.
PAD = 256
# Rows of a mask whose logits are on a device at once.
BLOCK_ROWS = 32


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
            counts[row] = _sparse(count_pixels(mask, label_map(logits, *mask.shape), num_classes))
        total = np.zeros((3, num_classes), np.int64)
        for classes, *sums in gather_rows(counts, count):
            total[:, np.array(classes, int)] += np.array(sums, np.int64)
        yield from metrics(*total)


def metrics(
    intersection: np.ndarray, predicted: np.ndarray, target: np.ndarray
) -> Iterator[tuple[str, float]]:
    """The evaluator's metrics from pixel counts i64[C] over the data set, see `count_pixels`.

    Raises:
      ValueError: no pixel counts.
    """
    if not target.any():
        raise ValueError("Every pixel of these masks is 0, which does not count.")
    present = target > 0
    union = predicted + target - intersection
    most_frequent = float(target.max() / target.sum())
    yield "mean_iou", float(np.mean(intersection[present] / union[present]))
    yield "pixel_accuracy", float(intersection.sum() / target.sum())
    yield "mean_iou_baseline", most_frequent / int(present.sum())
    yield "pixel_accuracy_baseline", most_frequent
    yield "num_classes_present", int(present.sum())


def count_pixels(mask: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class where the mask is not 0.

    Args:
      mask: integers [H, W], 0 or 1 + class.
      labels: integers [H, W], class or NO_CLASS.

    Returns:
      i64[3, C]: of the class in both, in `labels`, in `mask`.
    """
    counted = mask > 0
    true, given = mask[counted].astype(np.int64) - 1, labels[counted].astype(np.int64)
    sets = (true[true == given], given[given != NO_CLASS], true)
    return np.stack([np.bincount(values, minlength=num_classes) for values in sets])


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
        highest = ~(scores < scores.max(axis=-1, keepdims=True))  # so is every NaN
        return jnp.where(highest.sum(axis=-1) == 1, highest.argmax(axis=-1), NO_CLASS)

    blocks = jax.lax.map(block, rows.reshape(-1, BLOCK_ROWS))
    return blocks.reshape(len(rows), len(columns))


def _mix(a, b, share):
    return a * (1 - share) + b * share


def _neighbours(positions, size: int):
    """i32, i32, f32 of the shape of `positions`: the two nearest samples, the second's weight."""
    first = jnp.clip(jnp.floor(positions), 0, max(size - 2, 0)).astype(jnp.int32)
    return first, jnp.minimum(first + 1, size - 1), positions - first


def _sparse(counts: np.ndarray) -> list[list[int]]:
    """i64[3, C] as JSON data: the classes that have pixels, and their counts."""
    classes = np.flatnonzero(counts.any(axis=0))
    return [classes.tolist(), *counts[:, classes].tolist()]
