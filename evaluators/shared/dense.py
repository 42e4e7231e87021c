"""The classes of pixels, of the similarities between an image's patches and names of classes."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evaluators.shared import pamr
from evaluators.shared.pixels import BLOCK_ROWS, PAD, sole_highest
from evaluators.shared.rows import own_device
from evaluators.shared.windows import mean_of_windows


class Rule(NamedTuple):
    """What decides the class of a pixel, see `maps.zeroshot_segmentation.Evaluator`.

    Attributes:
      class_of: of each name, the class.
      copies: of each name, whether it is one of those before it.
    """

    class_of: tuple[int, ...]
    copies: tuple[bool, ...]
    logit_scale: float = 40.0
    probability_threshold: float = 0.0
    area_threshold: float | None = None
    pamr_steps: int = 0


def label_map(
    maps: Sequence[jax.Array],
    way: int,
    size: Sequence[int],
    output: Sequence[int],
    window: int,
    stride: int,
    rule: Rule,
    guide: np.ndarray | None = None,
) -> np.ndarray:
    """The class of every pixel.

    Args:
      maps: f32[ways, names, h, w] of each window, on one device, row after row: similarities.
      way: which of `maps` to take.
      size: (height, width) of the image that the windows are cut from.
      output: (height, width) of the label map.
      window, stride: pixels.
      rule: what decides.
      guide: f32[*output, C], an image, where the rule has PAMR.

    Returns:
      i32[*output], NO_CLASS where no class is above all others.
    """
    rows, columns = axes(maps, size, output, window, stride)
    if rule.pamr_steps:
        padding = [(0, len(axis) - length) for axis, length in zip((rows, columns), output)]
        guide = np.pad(guide, [*padding, (0, 0)])
    with own_device(maps[0]):
        found = _labels(list(maps), way, rows, columns, np.array(output), guide, rule)
    return np.asarray(found)[: output[0], : output[1]]


def axes(maps, size, output, window: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """What rows and columns of pixels take of the cells of all windows, see `mean_of_windows`."""
    rows, columns = (
        mean_of_windows(pixels, window, stride, cells, length, -(-length // PAD) * PAD)
        for pixels, cells, length in zip(size, maps[0].shape[2:], output)
    )
    return rows, columns


def lines(maps, way: int, rows, columns):
    """f32[names, h, W]: the windows' maps beside each other, each row stretched to the pixels."""
    maps = jnp.stack(maps)[:, way]  # [windows, names, h, w]
    names, height, width = maps.shape[1:]
    grid = maps.reshape(rows.shape[1] // height, -1, names, height, width)
    grid = grid.transpose(2, 0, 3, 1, 4).reshape(names, rows.shape[1], columns.shape[1])
    return jnp.einsum("nij,xj->nix", grid, columns, precision="highest")


def stretch(rows, lines):
    """f32[names, H, W] of `lines` and some of the `rows` of pixels."""
    return jnp.einsum("yi,nix->nyx", rows, lines, precision="highest")


def class_probabilities(scores, rule: Rule):
    """f32[names, H, W] -> f32[classes, H, W]: of each class the most probable name's."""
    found = jax.nn.softmax(scores * rule.logit_scale, axis=0)
    copies = np.array(rule.copies)[:, None, None]
    found = jnp.where(copies, jnp.nextafter(found, -jnp.inf), found)
    classes = max(rule.class_of) + 1
    if classes == len(found):
        return found
    most = jax.ops.segment_max(found, np.array(rule.class_of), classes, indices_are_sorted=True)
    return jnp.where(jnp.isnan(found[0]), jnp.nan, most)  # a maximum may pass over NaN


@functools.partial(jax.jit, static_argnames="rule")
def _labels(maps, way, rows, columns, output, guide, rule: Rule):
    """i32[H, W], padded."""
    stretched = lines(maps, way, rows, columns)
    if rule.pamr_steps:
        whole = pamr.refine(stretch(rows, stretched), guide, output, rule.pamr_steps)
        blocks = whole.reshape(len(whole), -1, BLOCK_ROWS, len(columns)).swapaxes(0, 1)
    else:  # all scores at the mask's size would take gigabytes
        blocks = rows.reshape(-1, BLOCK_ROWS, rows.shape[1])

    def labels(kept, threshold):
        def of(block):
            scores = block if rule.pamr_steps else stretch(block, stretched)
            found = jnp.where(kept[:, None, None], class_probabilities(scores, rule), 0)
            # Computed once: rounded in two ways, the highest might equal none.
            found = jax.lax.optimization_barrier(found)
            improbable = (found < threshold).all(axis=0)  # not of NaN
            return jnp.where(improbable, 0, sole_highest(found, 0))

        return jax.lax.map(of, blocks).reshape(len(rows), len(columns))

    classes = max(rule.class_of) + 1
    kept = jnp.ones(classes, bool)
    if rule.area_threshold is not None:
        found = labels(kept, 0.0)
        counts = (jnp.arange(len(rows)) < output[0])[:, None] & (
            jnp.arange(len(columns)) < output[1]
        )
        in_front = jnp.where(counts & (found > 0), found, classes)
        areas = jnp.bincount(in_front.ravel(), length=classes + 1)[:classes]
        kept = (areas > rule.area_threshold * areas.sum()).at[0].set(True)
    return labels(kept, rule.probability_threshold)
