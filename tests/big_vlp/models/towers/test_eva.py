"""CogVLM's image tower: other sizes, the place of its norms, its position table."""

import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.models.towers.eva import EvaTower, bicubic_weights, resize_positions
from tests.big_vlp.models.towers.toy_towers import apply, arbitrary, randn
from tests.big_vlp.models.toy_cogvlm import IMAGE


def tower(**changes):
    return EvaTower(**{**IMAGE, **changes})


def test_the_image_tower_takes_other_sizes():
    images = randn(2, 12, 12, 3)
    params = arbitrary(tower(), images[:, :8, :8])
    assert params["params"]["position_embedding"].shape == (5, 12)
    assert apply(tower(), params, images).shape == (2, 9, 12)
    with pytest.raises(ValueError, match="multiple of 4 pixels"):
        apply(tower(), params, images[:, :11])


def test_the_image_tower_norms_what_its_branches_return():
    images = randn(1, 8, 8, 3)
    params = arbitrary(tower(layers=1), images)
    # A norm without a scale turns any branch into its bias.
    flat = trees.flatten(params["params"])
    for name in ("norm1", "norm2"):
        flat[f"transformer/blocks/{name}/scale"] *= 0
    shift = sum(flat[f"transformer/blocks/{name}/bias"][0] for name in ("norm1", "norm2"))
    params = {"params": trees.unflatten(flat)}
    embedded = tower(layers=1).apply(params, images, method="embed")
    found = tower(layers=1).apply(params, embedded, method="encode")
    np.testing.assert_allclose(found, embedded + shift, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size_in, size_out", [(4, 7), (16, 35), (35, 16), (3, 3)])
def test_positions_are_resized_as_pytorch_does(size_in, size_out):
    weights = bicubic_weights(size_in, size_out)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    torch = pytest.importorskip("torch")
    table = randn(1 + size_in**2, 5)
    grid = torch.from_numpy(table[1:].reshape(1, size_in, size_in, 5)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        grid, size=(size_out, size_out + 1), mode="bicubic", align_corners=False
    )
    found = resize_positions(jnp.asarray(table), (size_out, size_out + 1))
    np.testing.assert_array_equal(found[0], table[0])
    expected = resized[0].numpy().reshape(5, -1).T
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)
