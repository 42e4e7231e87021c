"""Dropout of a language model's attention: what is dropped, how often, and that a row's draws
depend on nothing but its key."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.models.decoder import EXPERT_PARTS, Places
from big_vlp.models.layers import axes
from big_vlp.models.layers.attention import attention, drop, using, written
from big_vlp.models.llama import Llama
from big_vlp.parallel import meshes, placing
from tests.big_vlp.models.towers.toy_towers import randn
from tests.eight_devices import on_eight_devices

RATE = 0.25
LAYERS, ROWS, LENGTH, WIDTH = 4, 4, 7, 16
IMAGE = (1, 4)  # the span of image tokens
KEYS = jax.random.split(jax.random.key(5), ROWS)


def llama(**changes):
    sizes = {"vocab_size": 9, "width": WIDTH, "layers": LAYERS, "heads": 4, "mlp_dim": 8}
    return Llama(**{**sizes, "dropout": RATE, **changes})


POSITIONS = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))


def parameters(model):
    """Parameters none of which is zero."""
    x = jnp.zeros((ROWS, LENGTH, WIDTH))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, POSITIONS)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.normal(0.1, 0.3, a.shape).astype(a.dtype), shapes)


def output(model, params, x, keys, route=None):
    return model.apply(params, x, POSITIONS[: len(x)], route, dropout_keys=keys)[0]


def run(model, params, x, keys, route=None):
    return np.asarray(jax.jit(functools.partial(output, model, route=route))(params, x, keys))


def gradients(model, params, x, keys, route=None):
    def loss(params):
        out = output(model, params, x, keys, route)
        return (out * randn(*x.shape, seed=1)).sum(), out

    return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("causal, spans", [(False, None), (True, None), (True, (1, 4))])
def test_with_rate_zero_it_is_the_kernel(kv_heads, causal, spans):
    query = randn(ROWS, 5, 6, 4)
    key, value = randn(ROWS, 5, kv_heads, 4, seed=1), randn(ROWS, 5, kv_heads, 4, seed=2)

    def of(dropout):
        def loss(*arrays):
            out = attention(*arrays, causal=causal, spans=spans, dropout=dropout)
            return (out * randn(*out.shape, seed=3)).sum(), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(query, key, value)

    expected_gradients, expected = of(None)
    found_gradients, found = of((0.0, KEYS))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for gradient, other in zip(found_gradients, expected_gradients):
        np.testing.assert_allclose(gradient, other, atol=2e-6)


def test_dropped_attention_is_the_plain_one_on_average():
    """Mean and variance over many keys; independent draws of each weight have this variance."""
    draws = 4000
    keys = jax.random.split(jax.random.key(0), draws)
    query, key, value = randn(1, 5, 4, 3), randn(1, 5, 2, 3, seed=1), randn(1, 5, 2, 3, seed=2)
    many = (jnp.broadcast_to(a, (draws, *a.shape[1:])) for a in (query, key, value))
    found = np.asarray(attention(*many, causal=True, dropout=(RATE, keys)), np.float64)
    expected = np.asarray(attention(query, key, value, causal=True))[0]
    logits = np.einsum("thd,shd->hts", query[0], key[0].repeat(2, axis=1)) / np.sqrt(3)
    weights = np.exp(logits) * np.tri(5)
    weights /= weights.sum(axis=-1, keepdims=True)
    squares = np.einsum("hts,shd->thd", weights**2, value[0].repeat(2, axis=1) ** 2)
    variance = RATE / (1 - RATE) * squares
    # 60 means of 4000 draws: none is five standard errors off in 99.99% of seeds.
    assert (np.abs(found.mean(axis=0) - expected) < 5 * np.sqrt(variance / draws)).all()
    np.testing.assert_allclose(found.var(axis=0), variance, rtol=0.2)


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_share_that_is_kept(rate, dtype):
    x = jnp.full((ROWS, 50, 40), 3, dtype)
    found = drop(x, (rate, KEYS))
    assert found.dtype == dtype
    kept = np.asarray(found != 0)
    share = 1 - round(rate * 2**16) / 2**16
    np.testing.assert_array_equal(found, jnp.where(kept, x / share, 0))
    # Of a row's 2000 entries, and of all: five standard deviations of a binomial.
    spread = np.sqrt(rate * (1 - rate) / 2000)
    assert (np.abs(kept.mean(axis=(1, 2)) - (1 - rate)) < 5 * spread).all()
    assert abs(kept.mean() - (1 - rate)) < 5 * spread / 2
    agree = np.mean(kept[0] == kept[1])  # two rows: independent
    both = rate**2 + (1 - rate) ** 2
    assert abs(agree - both) < 5 * np.sqrt(both * (1 - both) / 2000)


def test_a_positions_draws_do_not_depend_on_what_is_drawn_beside_it():
    x = jnp.ones((ROWS, 6, 5))
    places = jnp.array([4, 0, 5])
    whole, parts = drop(x, (RATE, KEYS)), drop(x[:, :3], (RATE, KEYS), places)
    np.testing.assert_array_equal(parts, whole[:, places])


def test_probabilities_and_output_are_dropped_anew_in_every_layer_and_row():
    model, rows = llama(heads=1), 64
    params = parameters(model)
    mlps = params["params"]["blocks"]["language"]["mlp"]["down"]
    mlps["kernel"] = np.zeros_like(mlps["kernel"])
    # All rows are the same; with no MLP a layer adds what is left of its attention.
    x = jnp.broadcast_to(randn(1, LENGTH, WIDTH), (rows, LENGTH, WIDTH))
    positions = jnp.broadcast_to(POSITIONS[:1], (rows, LENGTH))
    keys = jax.random.split(jax.random.key(0), rows)
    _, sown = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))(
        params, x, positions, dropout_keys=keys
    )
    (outputs,) = sown["intermediates"]["block_outputs"]
    zero = np.asarray(outputs == jnp.concatenate([x[None], outputs[:-1]]))  # [L, B, T, W]

    def is_the_rate(zeros):  # within five standard deviations
        return abs(zeros.mean() - RATE) < 5 * np.sqrt(RATE * (1 - RATE) / zeros.size)

    # The first position sees itself only: without that one probability nothing is left.
    nothing = zero[:, :, 0].all(axis=-1)
    assert is_the_rate(nothing)
    assert is_the_rate(zero[:, :, 0][~nothing])
    # That the last loses all of its seven is rare.
    assert is_the_rate(zero[:, :, -1])
    assert len(np.unique(zero.reshape(LAYERS * rows, -1), axis=0)) == LAYERS * rows


def test_nothing_else_is_dropped():
    model = llama()
    params = parameters(model)
    out = params["params"]["blocks"]["language"]["attn"]["out"]
    out["kernel"] = np.zeros_like(out["kernel"])
    x = randn(ROWS, LENGTH, WIDTH)
    np.testing.assert_array_equal(run(model, params, x, KEYS), run(model, params, x, None))


def test_keys_or_a_rate_alone_drop_nothing():
    x, params = randn(ROWS, LENGTH, WIDTH), parameters(llama())
    expected = run(llama(dropout=0.0), params, x, None)
    np.testing.assert_array_equal(run(llama(dropout=0.0), params, x, KEYS), expected)
    np.testing.assert_array_equal(run(llama(), params, x, None), expected)
    assert np.abs(run(llama(), params, x, KEYS) - expected).max() > 0.1


def test_a_row_depends_on_its_own_key_only():
    model = llama()
    x, params = randn(ROWS, LENGTH, WIDTH), parameters(model)
    whole = run(model, params, x, KEYS)
    halves = [run(model, params, x[rows], KEYS[rows]) for rows in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-5)
    np.testing.assert_allclose(
        run(model, params, x, KEYS.at[1].set(jax.random.key(0)))[[0, 2, 3]],
        whole[[0, 2, 3]],
        atol=1e-5,
    )
    # The keys' bare data do as well.
    np.testing.assert_array_equal(run(model, params, x, jax.random.key_data(KEYS)), whole)


@pytest.mark.slow
def test_every_execution_drops_the_same():
    """Written out or in a loop, kept or drawn again; image tokens by a span or row by row."""
    changes = {"kv_heads": 2, "expert_parts": EXPERT_PARTS, "expert_every": 2}
    image = np.arange(*IMAGE)
    order = np.append(np.delete(np.arange(LENGTH), image), image)
    order = np.broadcast_to(order, (ROWS, LENGTH))
    places = Places(order, np.argsort(order, axis=1), LENGTH - len(image))
    x, params = randn(ROWS, LENGTH, WIDTH), parameters(llama(**changes))
    expected_gradients, expected = gradients(
        llama(unroll=True, **changes), params, x, KEYS, route=places
    )
    for execution in (
        {"remat": None},
        {"remat": "full"},
        {"remat": "dots"},
        {"remat": "full", "unroll": True},
    ):
        model = llama(**changes, **execution)
        found_gradients, found = gradients(model, params, x, KEYS, route=IMAGE)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        for gradient, other in zip(*map(jax.tree.leaves, (found_gradients, expected_gradients))):
            np.testing.assert_allclose(gradient, other, atol=1e-5 * np.abs(other).max())


def test_draws_are_not_kept_for_the_backward_pass():
    # Long rows, so that only probabilities and draws are so large.
    length = 64
    x, positions = jnp.zeros((2, length, WIDTH)), jnp.zeros((2, length), jnp.int32)

    def largest_kept(**changes):
        model = llama(**changes)

        def backward(params):
            run = lambda p: model.apply(p, x, positions, dropout_keys=KEYS[:2])[0]  # noqa: E731
            return jax.vjp(run, params)[1]

        kept = jax.eval_shape(backward, parameters(model))
        return max(leaf.size for leaf in jax.tree.leaves(kept))

    probabilities = 2 * 4 * length * length
    assert largest_kept() >= probabilities
    for remat in ("full", "dots"):
        for unroll in (False, True):
            assert largest_kept(remat=remat, unroll=unroll) < probabilities


@pytest.mark.slow
def test_every_mesh_drops_the_same():
    assert on_eight_devices(__file__).split() == ["8,1,1", "2,2,2"]


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_is_no_share(rate):
    with pytest.raises(ValueError, match=f"dropout={rate} must be at least 0 and below 1"):
        parameters(llama(dropout=rate))


@pytest.mark.parametrize("keys", [KEYS[:1], KEYS[0], jax.random.split(KEYS[0], 5)])
def test_keys_that_are_not_one_a_row(keys):
    model = llama()
    params = parameters(model)
    with pytest.raises(ValueError, match="do not fit 4 rows: give one key a row"):
        output(model, params, jnp.zeros((ROWS, LENGTH, WIDTH)), keys)


def compare_meshes():
    """On eight devices; prints the meshes that give the values and gradients of one device."""
    jax.config.update("jax_default_matmul_precision", "highest")
    rows = 8
    model = llama(expert_parts=EXPERT_PARTS, remat="full")
    params, x = parameters(model), randn(rows, LENGTH, WIDTH)
    weights = randn(rows, LENGTH, WIDTH, seed=1)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (rows, LENGTH))

    def loss(params, x, key):
        keys = jax.random.split(key, rows)
        out = model.apply(params, x, positions, IMAGE, dropout_keys=keys)[0]
        return (out * weights).sum(), out

    splits = axes.traced(model.init, jax.random.key(0), x, positions)[1].splits
    step = jax.jit(jax.grad(loss, has_aux=True))
    expected, expected_out = step(params, x, jax.random.key(2))
    written.QUERIES = 3
    for sizes in ((8, 1, 1), (2, 2, 2)):
        mesh = meshes.make_mesh(*sizes)
        # By blocks, where the one device held all weights.
        with jax.set_mesh(mesh), using("blocks"):
            placed = jax.device_put(params, placing.place(params, mesh, splits))
            split = jax.device_put(x, meshes.over_batch(mesh))
            found, out = step(placed, split, jax.random.key(2))
        np.testing.assert_allclose(out, expected_out, atol=1e-4)
        for gradient, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            np.testing.assert_allclose(gradient, other, atol=1e-5 * np.abs(other).max())
        print(",".join(map(str, sizes)))


if __name__ == "__main__":
    compare_meshes()
