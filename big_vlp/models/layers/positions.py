"""Position tables, and maps, stretched to other sizes: one matrix for each axis."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np


def half_pixel(size_in: int, size_out: int, excess: float = 0.0) -> np.ndarray:
    """Where the centres of `size_out` pixels lie among `size_in`, f64[size_out].

    Args:
      excess: added to `size_out` where the step is taken.
    """
    return (np.arange(size_out) + 0.5) * size_in / (size_out + excess) - 0.5


def linear(distance):
    """The kernel of linear interpolation, of distances >= 0."""
    return np.maximum(1 - distance, 0)


def cubic(distance, a: float = -0.75):
    """Keys' kernel with the slope `a` at 1 that PyTorch takes, of distances >= 0."""
    d = distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def resize_weights(centres, size_in: int, kernel: Callable) -> np.ndarray:
    """What each output takes of each input, without antialiasing; beyond the border is the border.

    Args:
      centres: [size_out], where the outputs lie among the inputs, within -0.5..size_in - 0.5.
      kernel: `linear` or `cubic`.

    Returns:
      f32[size_out, size_in], rows with the sum 1.
    """
    # In fp64: weights made in fp32 move entries of large tables by up to 4e-5.
    beyond = 2
    inputs = np.arange(-beyond, size_in + beyond)
    taps = kernel(np.abs(np.asarray(centres)[:, None] - inputs))
    weights = taps[:, beyond:-beyond]
    weights[:, 0] += taps[:, :beyond].sum(axis=1)
    weights[:, -1] += taps[:, -beyond:].sum(axis=1)
    return weights.astype(np.float32)


def resize_grid(table, grid: tuple[int, int], excess: float = 0.0):
    """Bicubic: position table [n * n, W] -> [rows * cols, W], fp32, row after row.

    One more entry in front, the class token's, stays as it is. So does a table of the right size.

    Args:
      grid: rows and columns.
      excess: see `half_pixel`; 0 is PyTorch's interpolation, 0.1 DINO's rule.
    """
    side = math.isqrt(table.shape[0])
    if grid == (side, side):
        return table
    rows, cols = (resize_weights(half_pixel(side, n, excess), side, cubic) for n in grid)
    first, width = table.shape[0] - side * side, table.shape[1]
    positions = table[first:].reshape(side, side, width)
    resized = jnp.einsum("ai,bj,ijw->abw", rows, cols, positions, precision="float32")
    return jnp.concatenate([table[:first], resized.reshape(-1, width)])


def resize_sequence(table, count: int):
    """Linear, along the sequence: position table [N, W] -> [count, W], fp32.

    A table of the right size stays as it is.
    """
    size = table.shape[0]
    if count == size:
        return table
    weights = resize_weights(half_pixel(size, count), size, linear)
    return jnp.einsum("ij,jw->iw", weights, table, precision="float32")
