"""PAMR, against the definition written out in loops."""

import numpy as np

from evaluators.shared import pamr


def refined_in_loops(scores, image, steps, dilations):
    height, width, channels = image.shape

    def at(x, y):
        return min(max(y, 0), height - 1), min(max(x, 0), width - 1)

    for_pixel = {}
    for y in range(height):
        for x in range(width):
            neighbours, around = [], []
            for d in dilations:
                for down in (-d, 0, d):
                    for right in (-d, 0, d):
                        place = at(x + right, y + down)
                        around.append(image[place])
                        if (down, right) != (0, 0):
                            neighbours.append(place)
            spread = np.std(around, axis=0, ddof=1)
            alike = [
                np.mean(
                    [
                        -abs(image[y, x, c] - image[place][c]) / (1e-8 + 0.1 * spread[c])
                        for c in range(channels)
                    ]
                )
                for place in neighbours
            ]
            weights = np.exp(np.array(alike) - max(alike))
            for_pixel[y, x] = neighbours, weights / weights.sum()
    for _ in range(steps):
        before, scores = scores, np.zeros_like(scores)
        for (y, x), (neighbours, weights) in for_pixel.items():
            for place, weight in zip(neighbours, weights):
                scores[:, y, x] += weight * before[:, *place]
    return scores


def test_it_is_the_definition():
    rng = np.random.default_rng(0)
    image, scores = rng.random((7, 9, 3)), rng.normal(size=(4, 7, 9))
    expected = refined_in_loops(scores, image, 3, (1, 2))
    found = pamr.refine(np.float32(scores), np.float32(image), (7, 9), 3, (1, 2))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected - scores).max() > 0.5


def test_what_lies_beside_the_image_does_not_matter():
    rng = np.random.default_rng(1)
    image, scores = rng.random((8, 8, 3), np.float32), rng.random((2, 8, 8), np.float32)
    whole = pamr.refine(scores[:, :6, :5], image[:6, :5], (6, 5), 2)
    padded = pamr.refine(scores, image, (6, 5), 2)
    np.testing.assert_allclose(padded[:, :6, :5], whole, atol=1e-6)


def test_scores_stop_at_an_edge():
    image = np.zeros((6, 8, 3), np.float32)
    image[:, 4:] = 1
    scores = np.stack([image[..., 0]] * 2)
    scores[1, 2, 1] = 1  # a pixel that looks like those around it
    found = pamr.refine(scores, image, (6, 8), 4, (1,))
    np.testing.assert_allclose(found[0], scores[0], atol=0.01)
    assert found[1, 2, 1] < 0.1
