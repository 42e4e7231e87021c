"""Sliding windows: where they lie, who gets them, and the mean of what is found in them."""

import collections

import numpy as np
import pytest

from evaluators.shared import windows as w


def test_windows_overlap_and_end_at_the_border():
    assert w.starts(224, 224, 112) == [0]
    assert w.starts(225, 224, 112) == [0, 1]
    assert w.starts(336, 224, 112) == [0, 112]
    assert w.starts(448, 224, 112) == [0, 112, 224]
    assert w.starts(460, 224, 112) == [0, 112, 224, 236]
    assert w.starts(10, 4, 6) == [0, 6]  # they need not overlap
    assert w.windows(5, (4, 6), 4, 2) == [w.Window(5, 0, 0), w.Window(5, 0, 2)]


@pytest.mark.parametrize("parts, rows", [(1, 4), (2, 3), (8, 1), (3, 16)])
def test_windows_of_an_image_stay_on_one_part_in_order(parts, rows):
    counts = np.random.default_rng(0).integers(1, 9, 23)
    images = [[w.Window(i, k, 0) for k in range(count)] for i, count in enumerate(counts)]
    order = w.dealt(images, parts, rows)
    assert len(order) % (parts * rows) == 0
    of_images = collections.defaultdict(list)
    places = collections.defaultdict(set)
    for row, window in enumerate(order):
        if window is not None:
            of_images[window.image].append(window)
            places[window.image].add(row % (parts * rows) // rows)
    assert [of_images[i] for i in range(23)] == images
    assert all(len(found) == 1 for found in places.values())
    # No part has more than an image's windows above another.
    loads = collections.Counter({part: 0 for part in range(parts)})
    for image, [part] in places.items():
        loads[part] += counts[image]
    assert max(loads.values()) - min(loads.values()) <= 8


@pytest.mark.parametrize("size, output", [(7, 11), (4, 4), (10, 3)])
def test_means_are_those_of_a_loop_over_windows(size, output):
    window, stride, cells = 4, 2, 2
    rng = np.random.default_rng(0)
    first = w.starts(size, window, stride)
    found = rng.random((len(first), cells))
    total, count = np.zeros(size), np.zeros(size)
    for start, values in zip(first, found):
        at = np.clip((np.arange(window) + 0.5) * cells / window - 0.5, 0, cells - 1)
        total[start : start + window] += np.interp(at, range(cells), values)
        count[start : start + window] += 1
    at = np.clip((np.arange(output) + 0.5) * size / output - 0.5, 0, size - 1)
    expected = np.interp(at, range(size), total / count)
    matrix = w.mean_of_windows(size, window, stride, cells, output, 16)
    np.testing.assert_allclose(matrix[:output] @ found.ravel(), expected, atol=1e-6)
    assert matrix.shape == (16, found.size) and not matrix[output:].any()


def test_stretching_equals_torchs():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).random((1, 1, 5, 7))
    expected = torch.nn.functional.interpolate(torch.tensor(x), size=(12, 3), mode="bilinear")
    found = w.stretched(5, 12) @ x[0, 0] @ w.stretched(7, 3).T
    np.testing.assert_allclose(found, expected[0, 0], atol=1e-12)
