"""EVA02-CLIP's image tower: numbers of timm's, its size, and its rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.convert.cogvlm.starts import eva02_tower
from big_vlp.models.towers.eva02 import Tower, grid_angles, rotate_pairs
from big_vlp.recipes import EVA2_L
from tests.big_vlp.models.towers.toy_towers import apply, randn
from tests.parity.fixtures import fixtures

HEAD_DIM, GRID = 8, 4  # of the fixture
PUBLISHED = 304_105_152


@pytest.fixture(scope="module", params=fixtures("eva02_*.npz"), ids=lambda path: path.stem)
def arrays(request):
    return dict(np.load(request.param))


@pytest.mark.parametrize("size", ["small", "large"])
def test_tokens_are_timms(arrays, size):
    """At the size that rotary positions were trained with, and at a larger one."""
    state = {k.removeprefix("sd/"): v for k, v in arrays.items() if k.startswith("sd/")}
    state["pos_embed"] = arrays.get(f"{size}/pos_embed", state["pos_embed"])
    params, sizes = eva02_tower(state, HEAD_DIM)
    params = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, params))
    tower = Tower(**sizes, rope_grid=GRID)
    images = arrays[f"{size}/images"].transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        tokens, pooled = apply(tower, {"params": params}, images)
    for found, expected in (
        (tokens, arrays[f"{size}/tokens"]),
        (pooled, arrays[f"{size}/class_token"]),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * np.abs(expected).max())
    others, _ = apply(tower.clone(rope_grid=GRID + 1), {"params": params}, images)
    assert np.abs(others - tokens).max() > 1e-2


def test_the_true_size():
    """timm's count of eva02_large_patch14_clip_224, which has a block more, the last norm and a
    projection to 768."""
    tower = Tower(image_size=224, **{**EVA2_L, "layers": EVA2_L["layers"] + 1})
    shapes = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    norm, projection = 2 * 1024, (1024 + 1) * 768
    count = sum(x.size for x in jax.tree.leaves(shapes)) + norm + projection
    assert count == PUBLISHED


def test_positions_are_relative_and_scaled():
    angles = grid_angles((2, 3), 8, 3)
    assert angles[0].shape == angles[1].shape == (7, 1, 4)
    np.testing.assert_array_equal(angles[0][0], 1)  # the class token does not turn
    np.testing.assert_allclose(grid_angles((6, 6), 8, 3)[1][1::2][:3], angles[1][1:4], rtol=1e-6)
    # Products of a query and a key go by how far they are apart on each axis.
    cos, sin = (x[1:] for x in grid_angles((4, 4), 8, 4))
    query, key = randn(2, 1, 1, 1, 8)
    turned = [rotate_pairs(jnp.tile(x, (1, 16, 1, 1)), (cos, sin))[0, :, 0] for x in (query, key)]
    products = np.asarray(turned[0] @ turned[1].T).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(products[0, 1, 2, 3], products[1, 0, 3, 2], rtol=1e-4)
    assert abs(products[0, 1, 2, 3] - products[1, 0, 2, 3]) > 1e-3


def test_heads_that_two_axes_do_not_divide():
    tower = Tower(image_size=8, patch_size=4, width=12, layers=1, heads=2, mlp_dim=8)
    with pytest.raises(ValueError, match="a multiple of 4 times the 2 heads"):
        jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
