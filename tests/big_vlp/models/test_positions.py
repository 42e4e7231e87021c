"""Position tables at other sizes: the kernels, the borders, and what stays as it is."""

import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.models.layers.positions import (
    cubic,
    half_pixel,
    linear,
    resize_grid,
    resize_sequence,
    resize_weights,
)
from tests.big_vlp.models.towers.toy_towers import randn


def keys_kernel(d, a=-0.75):
    """By its defining conditions: 1 at 0, 0 at 1 and 2, slope a at 1."""
    if d < 1:
        return 1 - d * d * ((a + 3) - (a + 2) * d)
    return a * (d - 1) * (d - 2) ** 2 if d < 2 else 0


def tent(d):
    return max(0, 1 - d)


@pytest.mark.parametrize("kernel, scalar", [(cubic, keys_kernel), (linear, tent)])
@pytest.mark.parametrize("excess", [0.0, 0.1])
@pytest.mark.parametrize("size_in, size_out", [(14, 6), (7, 3), (14, 21), (4, 1), (1, 3), (5, 5)])
def test_weights(size_in, size_out, excess, kernel, scalar):
    weights = resize_weights(half_pixel(size_in, size_out, excess), size_in, kernel)
    assert weights.shape == (size_out, size_in)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    for i, row in enumerate(weights):
        centre = (i + 0.5) * size_in / (size_out + excess) - 0.5
        expected = np.zeros(size_in)
        for j in range(-3, size_in + 3):  # taps beyond the border read the border
            expected[min(max(j, 0), size_in - 1)] += scalar(abs(centre - j))
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_tables_of_the_right_size_are_untouched():
    table = jnp.asarray(randn(25, 3))
    assert resize_grid(table, (5, 5)) is table
    assert resize_sequence(table, 25) is table
    with_class_token = jnp.asarray(randn(26, 3))
    assert resize_grid(with_class_token, (5, 5)) is with_class_token


def test_a_grid_is_resized_axis_by_axis():
    table = randn(25, 3)
    found = resize_grid(table, (4, 7), 0.1).reshape(4, 7, 3)
    grid = np.float64(table).reshape(5, 5, 3)
    rows, columns = (resize_weights(half_pixel(5, n, 0.1), 5, cubic) for n in (4, 7))
    for i, j in np.ndindex(4, 7):
        expected = sum(rows[i, a] * columns[j, b] * grid[a, b] for a in range(5) for b in range(5))
        np.testing.assert_allclose(found[i, j], expected, atol=1e-5)
    # The same grid lying on its side.
    turned = resize_grid(table.reshape(5, 5, 3).swapaxes(0, 1).reshape(25, 3), (7, 4), 0.1)
    np.testing.assert_allclose(turned.reshape(7, 4, 3).swapaxes(0, 1), found, atol=1e-6)


def test_the_class_token_keeps_its_entry():
    table = randn(26, 3)
    found = resize_grid(table, (4, 7))
    np.testing.assert_array_equal(found[0], table[0])
    np.testing.assert_array_equal(found[1:], resize_grid(table[1:], (4, 7)))


@pytest.mark.parametrize("size_in, size_out", [(4, 7), (16, 35), (35, 16), (3, 3)])
def test_a_grid_is_resized_as_pytorch_does(size_in, size_out):
    torch = pytest.importorskip("torch")
    table = randn(size_in**2, 5)
    grid = torch.from_numpy(table.reshape(1, size_in, size_in, 5)).permute(0, 3, 1, 2)
    size = (size_out, size_out + 1)
    resized = torch.nn.functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    expected = resized[0].numpy().reshape(5, -1).T
    np.testing.assert_allclose(resize_grid(jnp.asarray(table), size), expected, atol=1e-5)


def test_a_sequence_is_stretched_along_itself():
    weights = resize_weights(half_pixel(4, 8), 4, linear)
    np.testing.assert_allclose(weights @ np.arange(4), [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    table = randn(4, 3)
    np.testing.assert_allclose(resize_sequence(table, 8), weights @ table, rtol=1e-6, atol=1e-6)
