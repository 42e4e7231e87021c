"""CogVLM's image tower: other sizes, the place of its norms."""

import numpy as np
import pytest

from big_vlp import trees
from big_vlp.models.towers.eva import Tower as EvaTower
from tests.big_vlp.models.towers.toy_towers import apply, arbitrary, randn
from tests.big_vlp.models.toy_cogvlm import IMAGE


def tower(**changes):
    return EvaTower(**{**IMAGE, **changes})


def test_the_image_tower_takes_other_sizes():
    images = randn(2, 12, 12, 3)
    params = arbitrary(tower(), images[:, :8, :8])
    assert params["params"]["position_embedding"].shape == (5, 12)
    assert apply(tower(), params, images)[0].shape == (2, 9, 12)
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
    tokens, pooled = tower(layers=1).apply(params, images)
    np.testing.assert_allclose(tokens, embedded[:, 1:] + shift, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pooled, embedded[:, 0] + shift, rtol=1e-5, atol=1e-5)
