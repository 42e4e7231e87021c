"""Towers and poolers: equal executions, masks, pooling, positions, initialisation, dtypes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.models.attention import attention, attention_weights
from big_vlp.models.cross_attention import CrossPool
from big_vlp.models.text import TextTransformer
from big_vlp.models.transformer import ACTIVATIONS, Block, BlockInit, Transformer
from big_vlp.models.two_towers import CosmosTowers, TwoTowers, l2_normalise, over_views
from big_vlp.models.vit import ViT, position_weights, resize_positions

VOCABULARY, LENGTH = 40, 7


def randn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ids(batch=2, length=LENGTH, seed=0):
    """Token rows with one end-of-text token, the largest id, somewhere, and zeros after it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCABULARY - 1, (batch, length), dtype=np.int32)
    for row, end in zip(tokens, rng.integers(1, length - 1, batch)):
        row[end], row[end + 1 :] = VOCABULARY - 1, 0
    return tokens


def vit(**changes):
    sizes = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 2, "heads": 2}
    return ViT(**{**sizes, "embed_dim": 12, **changes})


def text(**changes):
    sizes = {"vocab_size": VOCABULARY, "context_length": LENGTH, "width": 16, "layers": 2}
    return TextTransformer(**{**sizes, "heads": 2, "embed_dim": 12, **changes})


def towers(cls=CosmosTowers, **changes):
    image = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "heads": 2}
    words = {"vocab_size": VOCABULARY, "context_length": LENGTH, "width": 8, "layers": 1}
    if cls is CosmosTowers:
        changes = {"pooler_heads": 3, **changes}
    return cls(image=image, text={**words, "heads": 2}, embed_dim=12, **changes)


def init(model, *args, keep=None):
    """Fresh parameters as the model draws them: all, or those of the top-level names in `keep`."""

    def init(key):
        params = model.init(key, *args)["params"]
        return {name: params[name] for name in keep or params}

    # This generator compiles fastest.
    return jax.jit(init)(jax.random.key(0, impl="unsafe_rbg"))


def arbitrary(model, *args):
    """Parameters of the model's structure, none zero; drawing the real ones takes longer."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    return jax.tree.map(lambda x: rng.normal(0.1, 0.3, x.shape).astype(x.dtype), shapes)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, *args):
    return model.apply(params, *args)


@pytest.fixture(scope="module")
def image_params():
    return arbitrary(vit(), randn(1, 16, 16, 3))


@pytest.fixture(scope="module")
def text_params():
    return arbitrary(text(), ids())


@pytest.fixture(scope="module")
def cosmos():
    """Calls a method of the model by its name."""
    model = towers()
    params = arbitrary(model, randn(1, 16, 16, 3), ids(1))

    @functools.cache
    def compiled(method):
        return jax.jit(functools.partial(model.apply, params, method=method))

    return lambda method, *args: compiled(method)(*args)


# Blocks


def transformer(**changes):
    options = {"layers": 2, "heads": 2, "causal": True, "activation": "gelu", "inits": BlockInit()}
    options |= {"dtype": jnp.float32, "unroll": False, "remat": None}
    return Transformer(**{**options, **changes})


@pytest.fixture(scope="module")
def looped():
    """Parameters of the looped form, its output, and its gradients for parameters and input."""
    x = randn(2, 5, 16)
    params = arbitrary(transformer(), x)
    return params, x, run_and_differentiate(transformer(), params, x)


def run_and_differentiate(model, params, x):
    weight = randn(*x.shape, seed=1)

    def fn(params, x):
        y = model.apply(params, x)
        return jnp.sum(weight * y), y

    grads, y = jax.jit(jax.grad(fn, argnums=(0, 1), has_aux=True))(params, x)
    return y, grads


@pytest.mark.parametrize(
    "unroll, remat", [(True, None), (False, "full"), (False, "dots"), (True, "full")]
)
def test_every_execution_computes_the_same(looped, unroll, remat):
    params, x, expected = looped
    found = run_and_differentiate(transformer(unroll=unroll, remat=remat), params, x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_layers_are_stacked_and_applied_in_order(looped):
    params, x, (y, _) = looped
    stacked = params["params"]["blocks"]
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(stacked))
    block = Block(2, True, "gelu", jnp.float32, BlockInit())
    for i in range(2):
        x = apply(block, {"params": jax.tree.map(lambda leaf, i=i: leaf[i], stacked)}, x)
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unroll", [False, True])
def test_block_outputs_are_kept_on_request(looped, unroll):
    params, x, (y, _) = looped
    model = transformer(unroll=unroll)
    again, found = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))(params, x)
    (outputs,) = found["intermediates"]["block_outputs"]
    assert outputs.shape == (2, *x.shape)
    np.testing.assert_array_equal(outputs[-1], again)
    np.testing.assert_allclose(again, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"remat": "everything"}, "everything.*full.*dots"),
        ({"heads": 3}, "multiple of the 3 heads"),
        ({"activation": "relu"}, "relu.*gelu_tanh"),
    ],
)
def test_bad_block_options(changes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(transformer(**changes).init, jax.random.key(0), randn(1, 5, 16))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "quick_gelu"])
def test_activations(name):
    x = np.linspace(-5, 5, 41)
    expected = {
        "gelu": [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x],
        "gelu_tanh": [
            v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2 for v in x
        ],
        "quick_gelu": [v / (1 + math.exp(-1.702 * v)) for v in x],
    }
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.float32(x)), expected[name], atol=2e-6)


# Attention


def softmax_attention(query, key, value, causal=False):
    """(output, weights), one query at a time, float64."""
    batch, length, heads, width = query.shape
    out = np.zeros(query.shape)
    weights = np.zeros((batch, heads, length, key.shape[1]))
    for b, t, h in np.ndindex(batch, length, heads):
        end = t + 1 if causal else key.shape[1]
        logits = key[b, :end, h].astype(np.float64) @ query[b, t, h] / math.sqrt(width)
        w = np.exp(logits - logits.max())
        weights[b, h, t, :end] = w / w.sum()
        out[b, t, h] = weights[b, h, t] @ value[b, :, h]
    return out, weights


@pytest.mark.parametrize("causal, keys", [(False, 5), (False, 9), (True, 5)])
def test_attention_is_a_softmax_average(causal, keys):
    query = 3 * randn(2, 5, 3, 4)
    key, value = randn(2, keys, 3, 4, seed=1), randn(2, keys, 3, 4, seed=2)
    expected, weights = softmax_attention(query, key, value, causal)
    found = jax.jit(attention, static_argnames="causal")(query, key, value, causal=causal)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    if not causal:
        found = jax.jit(attention_weights)(query, key)
        np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-6)


def test_half_precision_attention_has_an_fp32_softmax():
    # Equal logits over many keys: weights of 1/2047 summed in bf16 would be far from 1.
    key, value = np.zeros((1, 2047, 1, 8), jnp.bfloat16), np.ones((1, 2047, 1, 8), jnp.bfloat16)
    out = jax.jit(attention)(key[:, :1], key, value)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), 1, atol=1e-2)
    weights = jax.jit(attention_weights)(key[:, :1], key)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-5)


# Text tower


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


# Image tower


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
        ({"heads": 3}, 16, "multiple of the 3 heads"),
    ],
)
def test_bad_image_tower(changes, size, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(vit(**changes).init, jax.random.key(0), randn(1, size, size, 3))


@pytest.mark.parametrize("size_in, size_out", [(14, 6), (7, 3), (14, 21), (4, 1), (5, 5)])
def test_position_weights(size_in, size_out):
    weights = position_weights(size_in, size_out)
    assert weights.shape == (size_out, size_in)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    for i, row in enumerate(weights):
        centre = (i + 0.5) * size_in / (size_out + 0.1) - 0.5
        expected = np.zeros(size_in)
        for j in range(-3, size_in + 3):  # taps beyond the border read the border
            expected[min(max(j, 0), size_in - 1)] += cubic(abs(centre - j))
        np.testing.assert_allclose(row, expected, atol=1e-6)


def cubic(d, a=-0.75):
    """Keys' kernel, by its defining conditions: 1 at 0, 0 at 1 and 2, slope a at 1."""
    if d < 1:
        return 1 - d * d * ((a + 3) - (a + 2) * d)
    return a * (d - 1) * (d - 2) ** 2 if d < 2 else 0


def test_position_table_of_the_trained_size_is_untouched():
    table = jnp.asarray(randn(25, 3))
    assert resize_positions(table, 5, (5, 5)) is table


def test_positions_are_resized_axis_by_axis():
    table = randn(25, 3)
    found = resize_positions(table, 5, (4, 7)).reshape(4, 7, 3)
    grid = np.float64(table).reshape(5, 5, 3)
    rows, columns = position_weights(5, 4), position_weights(5, 7)
    for i, j in np.ndindex(4, 7):
        expected = sum(rows[i, a] * columns[j, b] * grid[a, b] for a in range(5) for b in range(5))
        np.testing.assert_allclose(found[i, j], expected, atol=1e-5)
    # The same grid lying on its side.
    turned = resize_positions(table.reshape(5, 5, 3).swapaxes(0, 1).reshape(25, 3), 5, (7, 4))
    np.testing.assert_allclose(turned.reshape(7, 4, 3).swapaxes(0, 1), found, atol=1e-6)


# COSMOS' pooler and views


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


# Numbers


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
    assert {x.dtype.name for x in jax.tree.leaves(inner)} == {"bfloat16"}
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
