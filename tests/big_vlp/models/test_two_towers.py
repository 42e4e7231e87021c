"""COSMOS' poolers and views, initialisation, and dtypes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.models.heads.cross_attention import CrossPool
from big_vlp.models.layers import attention
from big_vlp.models.two_towers import CosmosTowers, TwoTowers, l2_normalise, over_views
from tests.big_vlp.models.towers.toy_towers import (
    LENGTH,
    VOCABULARY,
    arbitrary,
    ids,
    init,
    randn,
    text,
    towers,
    vit,
)


@pytest.fixture(scope="module")
def cosmos():
    """Calls a method of the model by its name."""
    model = towers()
    params = arbitrary(model, randn(1, 16, 16, 3), ids(1))

    @functools.cache
    def compiled(method):
        return jax.jit(functools.partial(model.apply, params, method=method))

    return lambda method, *args: compiled(method)(*args)


@pytest.fixture(scope="module")
def pooler():
    model = CrossPool(heads=3, dtype=jnp.float32)
    params = arbitrary(model, randn(2, 5, 12), randn(2, 4, 12))
    return jax.jit(functools.partial(model.apply, params), static_argnames="return_weights")


def test_queries_of_a_pooler_share_keys_but_nothing_else(pooler):
    tokens, queries = randn(2, 5, 12), randn(2, 4, 12, seed=1)
    pooled = pooler(tokens, queries)
    assert pooled.shape == queries.shape
    # One query per row, and the keys and values tiled to it.
    alone = pooler(np.repeat(tokens, 4, axis=0), queries.reshape(8, 1, 12))
    np.testing.assert_allclose(pooled, alone.reshape(2, 4, 12), rtol=1e-5, atol=1e-6)


def test_every_token_is_pooled_from(pooler):
    tokens, queries = randn(1, 5, 12), randn(1, 1, 12, seed=1)
    for i in range(5):
        changed = tokens.copy()
        changed[:, i] = randn(12, seed=2)
        assert np.abs(pooler(changed, queries) - pooler(tokens, queries)).max() > 1e-4
    order = np.array([3, 1, 0, 4, 2])
    np.testing.assert_allclose(
        pooler(tokens[:, order], queries), pooler(tokens, queries), rtol=1e-5, atol=1e-6
    )


def test_pooler_weights(pooler):
    tokens, queries = randn(2, 5, 12), randn(2, 4, 12, seed=1)
    weights = pooler(tokens, queries, return_weights=True)
    assert weights.shape == (2, 3, 4, 5)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)


def test_a_query_may_attend_to_nothing():
    """As with one more token, whose key and value are zeros."""
    model, zero = (CrossPool(3, jnp.float32, zero_attention=z) for z in (False, True))
    params = arbitrary(model, randn(2, 5, 12), randn(2, 4, 12))
    tokens, queries = randn(2, 5, 12), randn(2, 4, 12, seed=1)
    weights, more = (m.apply(params, tokens, queries, return_weights=True) for m in (model, zero))
    share = more.sum(axis=-1, keepdims=True)
    assert more.shape == weights.shape and (share < 1).all()
    np.testing.assert_allclose(more / share, weights, rtol=1e-4)
    # Nothing else has a part in the sum, so the output falls with the share that is left.
    none = {"params": {**params["params"], "query": jax.tree.map(jnp.zeros_like,
            params["params"]["query"])}}  # fmt: skip
    even, fewer = (m.apply(none, tokens, queries) for m in (model, zero))
    bias = params["params"]["out"]["bias"]
    np.testing.assert_allclose(fewer - bias, (even - bias) * 5 / 6, rtol=1e-4, atol=1e-5)


def test_the_kernel_of_whole_rows_may_attend_to_nothing_too(monkeypatch):
    """Its keys are one more than the tokens: 37 for 36 patches."""
    model = CrossPool(3, jnp.float32, zero_attention=True)
    tokens, queries = randn(2, 36, 12), randn(2, 8, 12, seed=1)
    params = arbitrary(model, tokens, queries)

    def found():
        loss = lambda *x: jnp.sin(model.apply(*x)).sum()  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, tokens, queries))

    expected = found()
    monkeypatch.setattr(attention, "pick", lambda *_, **__: "rows")
    kernel = functools.partial(attention.rows.attention, interpret=True)
    monkeypatch.setattr(attention.rows, "attention", kernel)
    for array, other in zip(found(), expected):
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_pooler_heads_must_divide():
    with pytest.raises(ValueError, match=r"embed_dim 12.*multiple of the 8 heads"):
        CrossPool(8, jnp.float32).init(jax.random.key(0), randn(1, 5, 12), randn(1, 1, 12))


VIEWS = randn(2, 2, 16, 16, 3), randn(2, 3, 8, 8, 3), ids(8).reshape(2, 4, LENGTH)


def test_views_are_unit_vectors(cosmos):
    features = cosmos("encode_views", *VIEWS)
    shapes = {name: x.shape for name, x in features.items()}
    images, captions = (2, 5, 12), (2, 4, 12)
    assert shapes == {
        "image": images, "cross_image": images, "text": captions, "cross_text": captions
    }  # fmt: skip
    for x in features.values():
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        features["image"][:, 1], cosmos("encode_image", VIEWS[0][:, 1]), atol=1e-6
    )
    np.testing.assert_allclose(
        features["text"][:, 3], cosmos("encode_text", VIEWS[2][:, 3]), atol=1e-6
    )


@pytest.mark.parametrize("part, first", [(0, True), (0, False), (1, False), (2, True), (2, False)])
def test_only_the_first_global_views_are_pooled_from(cosmos, part, first):
    """What a change of the first or of the last view of a kind reaches."""
    changed = [x.copy() for x in VIEWS]
    changed[part][:, 0 if first else -1] = np.flip(changed[part][:, 0 if first else -1], axis=1)
    before, after = (cosmos("encode_views", *views) for views in (VIEWS, changed))
    moved = {k: (np.abs(before[k] - after[k]).max(axis=(0, 2)) > 1e-6) for k in before}
    own, other = ("image", "text") if part < 2 else ("text", "image")
    index = {0: 0 if first else 1, 1: 4, 2: 0 if first else 3}[part]
    assert np.flatnonzero(moved[own]).tolist() == [index]
    assert moved[f"cross_{own}"][index]
    assert not moved[other].any()
    assert (moved[f"cross_{other}"] == first).all()


def test_no_local_crops(cosmos):
    all_views = cosmos("encode_views", *VIEWS)
    without = cosmos("encode_views", VIEWS[0], VIEWS[1][:, :0], VIEWS[2])
    for name, x in without.items():
        rows = 2 if "image" in name else 4
        np.testing.assert_allclose(x, all_views[name][:, :rows], atol=1e-6)


def test_attention_maps(cosmos):
    over_patches, over_words = cosmos("attention_maps", VIEWS[0][:, 0], VIEWS[2][:, 0])
    assert (over_patches.shape, over_words.shape) == ((2, 3, 16), (2, 3, LENGTH))
    for weights in (over_patches, over_words):
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)


def test_views_keep_their_order():
    x = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (found,) = over_views(lambda rows: (rows.sum(axis=1),), x)
    np.testing.assert_array_equal(found, x.sum(axis=2))


def test_normalisation():
    x, normalise = 5 * randn(3, 4), jax.jit(l2_normalise)
    np.testing.assert_allclose(
        normalise(x), x / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-6
    )
    assert normalise(x.astype(jnp.bfloat16)).dtype == jnp.float32
    zeros = np.zeros((2, 4), np.float32)
    np.testing.assert_array_equal(normalise(zeros), 0)
    gradient = jax.jit(jax.grad(lambda x: l2_normalise(x)[:, 0].sum()))(zeros)
    assert np.isfinite(gradient).all()


def test_bf16_computes_in_bf16_and_gives_fp32_features():
    full, half = (towers(TwoTowers, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    images, tokens = randn(2, 16, 16, 3), ids()
    params = arbitrary(half, images, tokens)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    inner = jax.eval_shape(
        lambda *args: half.apply(*args, method=lambda m, x, y: (m.image_tower(x), m.text_tower(y))),
        params, images, tokens,
    )  # fmt: skip
    for tokens_of, pooled in inner:
        assert (tokens_of.dtype, pooled.dtype) == (jnp.bfloat16, jnp.float32)
    for a, b in zip(*(jax.jit(model.apply)(params, images, tokens) for model in (half, full))):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.05)
        assert np.abs(a - b).max() > 1e-5
        np.testing.assert_allclose(np.linalg.norm(a, axis=-1), 1, rtol=1e-5)


def drawn(x, **expected):
    """Checks a tensor against `std` of a normal, or the `bound` of a uniform, distribution."""
    x = np.asarray(x)
    if "std" in expected:
        np.testing.assert_allclose(x.std(), expected["std"], rtol=0.12)
        assert np.abs(x).max() > 2 * expected["std"]  # no uniform
    else:
        assert np.abs(x).max() <= expected["bound"] * (1 + 1e-6)
        assert np.abs(x).max() > 0.95 * expected["bound"]
        np.testing.assert_allclose(x.std(), expected["bound"] / math.sqrt(3), rtol=0.12)
    np.testing.assert_allclose(x.mean(), 0, atol=4 * x.std() / math.sqrt(x.size))


def test_image_initialisation():
    width, patch = 48, 4
    images = randn(1, 32, 32, 3)
    params = init(vit(image_size=32, width=width, heads=4, embed_dim=32), images)
    blocks = params["transformer"]["blocks"]
    for x in (params["position_embedding"], params["proj"]["kernel"]):
        drawn(x, std=width**-0.5)
    assert params["class_token"].std() == pytest.approx(width**-0.5, rel=0.4)
    drawn(params["patch"]["kernel"], bound=(3 * patch**2) ** -0.5)
    drawn(blocks["attn"]["qkv"]["kernel"], bound=math.sqrt(6 / (width + 3 * width)))
    drawn(blocks["attn"]["out"]["kernel"], bound=width**-0.5)
    drawn(blocks["mlp"]["fc1"]["kernel"], bound=width**-0.5)
    drawn(blocks["mlp"]["fc1"]["bias"], bound=width**-0.5)
    drawn(blocks["mlp"]["fc2"]["kernel"], bound=(4 * width) ** -0.5)
    for part in ("qkv", "out"):
        assert not blocks["attn"][part]["bias"].any()
    for norm in (blocks["norm1"], blocks["norm2"], params["norm_pre"], params["norm_post"]):
        assert (norm["scale"] == 1).all()
        assert (norm["bias"] == 0).all()
    first, second = blocks["mlp"]["fc1"]["kernel"]
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


def test_text_initialisation():
    width, layers = 48, 3
    params = init(text(width=width, heads=4, layers=layers, vocab_size=400), ids())
    blocks = params["transformer"]["blocks"]
    drawn(params["token_embedding"]["embedding"], std=0.02)
    drawn(params["position_embedding"], std=0.01)
    drawn(params["proj"]["kernel"], std=width**-0.5)
    drawn(blocks["attn"]["qkv"]["kernel"], std=width**-0.5)
    drawn(blocks["attn"]["out"]["kernel"], std=width**-0.5 * (2 * layers) ** -0.5)
    drawn(blocks["mlp"]["fc1"]["kernel"], std=(2 * width) ** -0.5)
    drawn(blocks["mlp"]["fc2"]["kernel"], std=width**-0.5 * (2 * layers) ** -0.5)
    drawn(blocks["mlp"]["fc2"]["bias"], bound=(4 * width) ** -0.5)


def test_cosmos_initialisation():
    image = {"image_size": 8, "patch_size": 4, "width": 32, "layers": 1, "heads": 2}
    words = {"vocab_size": VOCABULARY, "context_length": LENGTH, "width": 16, "layers": 1}
    model = CosmosTowers(image=image, text={**words, "heads": 2}, embed_dim=48)
    poolers = ("image_pooler", "text_pooler")
    scales = ("logit_scale", "distill_logit_scale")
    names = (*poolers, *scales, "image_token_mapping", "text_token_mapping")
    params = init(model, randn(1, 8, 8, 3), ids(1), keep=names)
    for name in poolers:
        pooler = params[name]
        assert pooler["query"]["kernel"].shape == (48, 8, 6)
        for part in ("query", "key_value"):  # Xavier over the fused [D, 3 * D]
            drawn(pooler[part]["kernel"], bound=math.sqrt(6 / (48 + 3 * 48)))
            assert not pooler[part]["bias"].any()
        drawn(pooler["out"]["kernel"], bound=48**-0.5)
        assert not pooler["out"]["bias"].any()
    drawn(params["image_token_mapping"]["kernel"], bound=32**-0.5)
    drawn(params["text_token_mapping"]["kernel"], bound=16**-0.5)
    for name in scales:
        assert params[name] == pytest.approx(math.log(1 / 0.07))
    siglip = towers(TwoTowers, init_scale=10.0, init_bias=-10.0)
    params = init(siglip, randn(1, 16, 16, 3), ids(1), keep=("logit_scale", "logit_bias"))
    assert params["logit_scale"] == pytest.approx(math.log(10))
    assert params["logit_bias"] == -10
