"""The image and the text tower: masks, pooling, positions."""

import functools

import jax
import numpy as np
import pytest

from tests.big_vlp.models.towers.toy_towers import (
    LENGTH,
    VOCABULARY,
    apply,
    arbitrary,
    ids,
    randn,
    text,
    vit,
)


@pytest.fixture(scope="module")
def image_params():
    return arbitrary(vit(), randn(1, 16, 16, 3))


@pytest.fixture(scope="module")
def text_params():
    return arbitrary(text(), ids())


@pytest.mark.parametrize(
    "make, x",
    [(functools.partial(vit, pool=p, embed_dim=16), randn(1, 16, 16, 3)) for p in ("cls", "map")]
    + [(text, ids())],
)
def test_every_norm_has_the_epsilon(make, x):
    default, other = (
        str(jax.make_jaxpr(model.init)(jax.random.key(0), x))
        for model in (make(), make(norm_epsilon=0.125))
    )
    epsilon = str(np.float32(1e-5).item())[:7]
    assert epsilon in default and epsilon not in other


@pytest.mark.parametrize("causal", [True, False])
def test_causal_mask(text_params, causal):
    model, tokens = text(causal=causal), ids()
    changed = tokens.copy()
    changed[:, 4] = (tokens[:, 4] + 1) % VOCABULARY
    before, after = (apply(model, text_params, t)[0] for t in (tokens, changed))
    moved = np.abs(before - after).max(axis=(0, 2)) > 1e-6
    assert moved.tolist() == [not causal] * 4 + [True] * 3


def test_end_of_text_pooling(text_params):
    tokens = ids(4)
    features, pooled = apply(text(), text_params, tokens)
    assert (features.shape, pooled.shape) == ((4, LENGTH, 16), (4, 12))
    projection = text_params["params"]["proj"]
    assert set(projection) == {"kernel"}
    ends = [row.tolist().index(VOCABULARY - 1) for row in tokens]
    np.testing.assert_allclose(
        pooled, features[np.arange(4), np.array(ends)] @ projection["kernel"], rtol=1e-4, atol=1e-6
    )
    # What follows the end of the text is of no consequence to a causal tower.
    padded = tokens.copy()
    padded[:, max(ends) + 1 :] = 3
    np.testing.assert_allclose(apply(text(), text_params, padded)[1], pooled, atol=1e-6)


def test_last_token_pooling():
    model, tokens = text(causal=False, pool="last"), ids()
    params = arbitrary(model, tokens)
    features, pooled = apply(model, params, tokens)
    projection = params["params"]["proj"]
    np.testing.assert_allclose(
        pooled, features[:, -1] @ projection["kernel"] + projection["bias"], rtol=1e-4, atol=1e-6
    )


def test_shorter_captions_take_the_first_positions(text_params):
    tokens = ids(3, length=5)
    padded = np.pad(tokens, ((0, 0), (0, 2)))
    short, full = (apply(text(), text_params, t) for t in (tokens, padded))
    np.testing.assert_allclose(short[0], full[0][:, :5], atol=1e-6)
    np.testing.assert_allclose(short[1], full[1], atol=1e-6)


@pytest.mark.parametrize(
    "changes, length, message",
    [
        ({}, LENGTH + 1, "8 tokens.*context_length is 7"),
        ({"pool": "cls"}, LENGTH, "'cls'.*eot or last"),
        ({"heads": 3}, LENGTH, "multiple of the 3 heads"),
    ],
)
def test_bad_text_tower(changes, length, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(text(**changes).init, jax.random.key(0), ids(2, length))


@pytest.mark.parametrize("pool, embed_dim", [("cls", 12), ("mean", 12), ("map", 16)])
def test_image_pooling(pool, embed_dim):
    model = vit(pool=pool, embed_dim=embed_dim)
    images = randn(2, 16, 16, 3)
    params = arbitrary(model, images)
    tokens, pooled = apply(model, params, images)
    assert tokens.shape == (2, 16, 16)
    assert pooled.shape == (2, embed_dim)
    parts = set(params["params"])
    class_token_only = {"class_token", "norm_pre"}
    assert (parts & class_token_only) == (class_token_only if pool == "cls" else set())
    assert ("proj" in parts) == (pool != "map")
    assert ("bias" in params["params"]["patch"]) == (pool != "cls")
    if pool == "mean":
        expected = tokens.mean(axis=1) @ params["params"]["proj"]["kernel"]
        np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-6)


def test_mean_beside_a_class_token():
    """CLIPA's form: no norm before the blocks, one behind the mean alone."""
    model = vit(pool="mean", class_token=True, norm_pre=False, norm_after_pool=True, mlp_dim=20)
    images = randn(2, 16, 16, 3)
    variables = arbitrary(model, images)
    tokens, pooled = apply(model, variables, images)
    params = variables["params"]
    assert "class_token" in params and "norm_pre" not in params and "bias" not in params["patch"]
    assert params["transformer"]["blocks"]["mlp"]["fc1"]["kernel"].shape == (2, 16, 20)
    x = np.asarray(tokens.mean(axis=1))
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    x = x * params["norm_post"]["scale"] + params["norm_post"]["bias"]
    np.testing.assert_allclose(pooled, x @ params["proj"]["kernel"], rtol=1e-4, atol=1e-5)


def test_the_rest_of_an_image_can_be_ignored(image_params):
    images = randn(1, 18, 19, 3)
    tokens, pooled = apply(vit(ignore_rest=True), image_params, images)
    expected = apply(vit(), image_params, images[:, :16, :16])
    np.testing.assert_allclose(tokens, expected[0], atol=1e-6)
    np.testing.assert_allclose(pooled, expected[1], atol=1e-6)


def test_patches_are_read_row_by_row(image_params):
    """A change in one patch reaches its own token most; all others only through attention."""
    images = randn(1, 16, 16, 3)
    changed = images.copy()
    changed[:, 4:8, 12:16] += 3  # second row of patches, last column
    before, after = (apply(vit(), image_params, x)[0] for x in (images, changed))
    assert np.abs(before - after)[0].max(axis=1).argmax() == 1 * 4 + 3


@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
def test_other_image_sizes_need_no_other_parameters(image_params, size):
    tokens, pooled = apply(vit(), image_params, randn(2, *size, 3))
    assert tokens.shape == (2, size[0] * size[1] // 16, 16)
    assert np.isfinite(pooled).all()


@pytest.mark.parametrize(
    "changes, size, message",
    [
        ({"pool": "eot"}, 16, "'eot'.*cls, mean or map"),
        ({}, 18, r"\(18, 18\).*multiple of the patch size 4"),
        ({"image_size": 18}, 16, "trained at 18.*multiple of the patch size 4"),
        ({"pool": "map"}, 16, r"embed_dim \(12\) must equal width \(16\)"),
        ({"class_token": False}, 16, "'cls' needs a class token"),
        ({"norm_after_pool": True}, 16, "only the mean can be normalised"),
        ({"heads": 3}, 16, "multiple of the 3 heads"),
    ],
)
def test_bad_image_tower(changes, size, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(vit(**changes).init, jax.random.key(0), randn(1, size, size, 3))


@pytest.mark.parametrize(("scale", "std"), [(None, 1 / 8), (1.0, 1.0), (0.0, 0.0)])
def test_the_position_table_starts_at_its_scale(scale, std):
    model = vit(width=64, image_size=64, position_scale=scale)
    params = jax.jit(model.init)(jax.random.key(0), randn(1, 64, 64, 3))["params"]
    np.testing.assert_allclose(params["position_embedding"].std(), std, rtol=0.05)


@pytest.mark.parametrize("pool, layers, embed_dim", [("cls", 1, 12), ("map", 2, 16)])
def test_each_patch_is_pooled_as_if_alone(pool, layers, embed_dim):
    """Of an image of one patch that is the image's feature, but for the class token's own."""
    tower = vit(pool=pool, layers=layers, embed_dim=embed_dim)
    params = arbitrary(tower, randn(1, 16, 16, 3))
    image = randn(2, 4, 4, 3) if pool != "cls" else randn(2, 8, 12, 3)

    @jax.jit
    def encode(params):
        return [tower.apply(params, image, each, method="encode") for each in (False, True)]

    (tokens, pooled), (both, patches) = encode(params)
    assert patches.shape == (2, *tokens.shape[:2], embed_dim)
    np.testing.assert_allclose(both[0], tokens, atol=1e-5)
    assert abs(both[1] - tokens).max() > 0.01
    if pool == "cls":
        projected = tokens @ params["params"]["proj"]["kernel"]
        np.testing.assert_allclose(patches[0], projected, atol=1e-4)
    else:
        np.testing.assert_allclose(patches[0, :, 0], pooled, atol=1e-5)
