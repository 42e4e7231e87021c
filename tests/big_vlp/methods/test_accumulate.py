"""Micro-batches change neither the loss nor its gradient, whatever their number."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import losses, trees
from big_vlp.methods import make_method
from big_vlp.methods.shared.accumulate import over_micro_batches, sum_over_micro_batches
from big_vlp.telemetry import products
from input_pipeline.preprocess import Preprocess

BATCH = 8
PREPROCESS = Preprocess(image_size=8, tokenizer="clip", context_length=5)
MODEL = {
    "image": {"patch_size": 4, "width": 8, "layers": 1, "heads": 2},
    "text": {"vocab_size": 20, "width": 8, "layers": 1, "heads": 2},
    "embed_dim": 8,
}
COLOURS = {"brightness": 0.3, "contrast": 0, "saturation": 0, "hue": 0, "blur_prob": 0}


def randn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_contrastive_gradient_is_that_of_the_whole_batch(steps):
    batch = {"x": randn(BATCH, 5), "y": randn(BATCH, 6, seed=1)}
    params = {"x": randn(5, 4, seed=2), "y": randn(6, 4, seed=3)}

    def loss(params, steps):
        def encode(rows):
            features = {k: jnp.tanh(rows[k] @ params[k]) for k in rows}
            return {k: x / jnp.linalg.norm(x, axis=-1, keepdims=True) for k, x in features.items()}

        features = over_micro_batches(encode, batch, steps)
        return losses.softmax_loss(features["x"], features["y"], 5.0)

    whole, parts = (
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, n) for n in (1, steps)
    )
    assert parts[0] == pytest.approx(float(whole[0]), rel=2e-6)
    for k in params:
        size = np.abs(whole[1][k]).max()
        np.testing.assert_allclose(parts[1][k], whole[1][k], rtol=0, atol=2e-6 * size)


def test_rows_are_strided_and_come_back_in_order():
    """Micro-batch i holds rows i, i + steps, ...: of each device's contiguous block a part."""
    batch = {"row": jnp.arange(BATCH), "pair": jnp.arange(2 * BATCH).reshape(BATCH, 2)}

    def fn(rows):
        first = jnp.broadcast_to(rows["row"][0], rows["row"].shape)
        return {"first": first, "row": rows["row"], "pair": rows["pair"] + 1}

    found = over_micro_batches(fn, batch, 4)
    np.testing.assert_array_equal(found["row"], batch["row"])
    np.testing.assert_array_equal(found["pair"], batch["pair"] + 1)
    np.testing.assert_array_equal(found["first"], np.arange(BATCH) % 4)


@pytest.mark.parametrize("steps", [0, 3, 16])
def test_steps_must_divide_the_batch(steps):
    with pytest.raises(ValueError, match=f"accumulate_steps={steps} does not divide.*batch of 8"):
        over_micro_batches(lambda rows: rows, {"row": np.arange(BATCH)}, steps)


LAYERS = {
    name: {"kernel": randn(6, 6, seed=i), "bias": randn(6, seed=9)} for i, name in enumerate("abc")
}
COUNTS = np.arange(BATCH, dtype=np.float32) ** 2 + 1


def summed(layers, rows, steps, dtype="float32"):
    """A sum over rows, which count unevenly and are dropped in part: (loss, other sums)."""

    def part(layers, rows):
        x = rows["x"]
        for name in "abc":
            kernel, bias = layers[name]["kernel"], layers[name]["bias"]
            x = jnp.tanh(x.astype(dtype) @ kernel.astype(dtype) + bias)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.7, (6,)))(rows["keys"])
        of_rows = jnp.where(kept, x, 0).sum(axis=1) * rows["counts"] / COUNTS.sum()
        return of_rows.sum(), {"rows": jnp.float32(x.shape[0])}

    return sum_over_micro_batches(part, layers, rows, steps, dtype)


def rows_to_sum():
    keys = jax.random.split(jax.random.key(0), BATCH)
    return {"keys": keys, "counts": COUNTS, "x": randn(BATCH, 6, seed=8)}


def with_gradient(loss):
    """loss(layers, rows) -> a function that gives its value, and its gradient with respect to all
    layers but the first, which is frozen, and to the vectors of the rows."""

    def run(layers, rows):
        frozen, learnt = {"a": layers["a"]}, {name: layers[name] for name in "bc"}

        def fn(learnt, x):
            return loss(frozen | learnt, {**rows, "x": x})

        return jax.value_and_grad(fn, argnums=(0, 1), has_aux=True)(learnt, rows["x"])

    return run


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("steps", [2, 8])
def test_a_sum_over_rows_is_that_of_the_whole_batch(steps):
    whole, parts = (
        jax.jit(with_gradient(functools.partial(summed, steps=n)))(LAYERS, rows_to_sum())
        for n in (1, steps)
    )
    assert parts[0][1]["rows"] == BATCH
    jax.tree.map(close, parts, whole)


def test_a_sum_over_rows_computes_nothing_twice():
    """With its gradient or without; what is frozen has no backward pass of its own."""

    def counted(loss):
        return [
            products.flops(loss(functools.partial(summed, steps=steps)), LAYERS, rows_to_sum())
            for steps in (1, 4)
        ]

    product = 2 * BATCH * 6 * 6
    assert counted(lambda loss: loss) == [3 * product] * 2
    assert counted(with_gradient) == [(2 + 3 + 3) * product] * 2


def test_gradients_in_half_precision_add_up_in_single():
    """As if each layer cast its kernel, each micro-batch had a gradient, and these were added."""
    steps, rows = 4, rows_to_sum()
    in_half = functools.partial(summed, dtype="bfloat16")
    _, found = jax.jit(with_gradient(functools.partial(in_half, steps=steps)))(LAYERS, rows)
    alone = jax.jit(with_gradient(functools.partial(in_half, steps=1)))
    total = jax.tree.map(jnp.zeros_like, found[0])
    for i in range(steps):
        _, (of_layers, of_rows) = alone(LAYERS, {name: x[i::steps] for name, x in rows.items()})
        np.testing.assert_array_equal(found[1][i::steps], of_rows)
        total = jax.tree.map(jnp.add, total, of_layers)
    jax.tree.map(np.testing.assert_array_equal, found[0], total)


def test_kernels_come_into_the_loop_in_the_dtype_of_the_computation():
    """Cast once for all micro-batches, which is what devices then gather of them; the gradients
    stay in single precision."""
    run = with_gradient(functools.partial(summed, steps=4, dtype="bfloat16"))
    program = jax.make_jaxpr(run)(LAYERS, rows_to_sum())
    (loop,) = (e.params["jaxpr"].jaxpr for e in program.eqns if e.primitive.name == "scan")
    kernels = [x.aval.dtype.name for x in loop.invars if x.aval.shape == (6, 6)]
    assert sorted(kernels) == 3 * ["bfloat16"] + 2 * ["float32"]


def method(name, **changes):
    options = {"preprocess": PREPROCESS, "model": MODEL, "dtype": "float32", "unroll": True}
    if name == "cosmos":
        model = {**MODEL, "pooler_heads": 2}
        views = ("global_1", "global_2", "local")
        photometric = {view: {**COLOURS, "solarize_prob": 0.5} for view in views}
        options |= {"ema_decay": 0.9, "model": model, "photometric": photometric}
    else:
        options |= {"photometric": COLOURS}
    return make_method(name, **{**options, **changes})


def make_batch(name):
    rng = np.random.default_rng(0)

    def pixels(*shape):
        return rng.integers(0, 256, (BATCH, *shape, 3), dtype=np.uint8)

    if name == "cosmos":
        images = {"global_images": pixels(2, 8, 8), "local_images": pixels(1, 4, 4)}
        return {**images, "tokens": rng.integers(1, 20, (BATCH, 3, 5), dtype=np.int32)}
    return {"image": pixels(8, 8), "tokens": rng.integers(1, 20, (BATCH, 5), dtype=np.int32)}


def loss_and_gradient(method, batch):
    """Of the last layers only, which is quicker to compile."""
    shapes = method.shapes
    rng = np.random.default_rng(0)
    trees_of_arrays = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes)
    (trainable, frozen), (averaged, _) = (
        trees.split(tree, re.compile("proj|pooler|mapping|logit").search)
        for tree in trees_of_arrays[:2]
    )

    def loss(trainable):
        key = jax.random.key(3)
        return method.loss(trainable, frozen, averaged, {}, batch, rng=key, step=0)[0]

    return jax.jit(jax.value_and_grad(loss))(trainable)


@pytest.mark.parametrize("name", ["clip", pytest.param("cosmos", marks=pytest.mark.slow)])
def test_methods_draw_augmentation_per_row(name):
    """Every row keeps its colours, so the result does not tell how the batch was divided."""
    loss, gradient = loss_and_gradient(method(name), make_batch(name))
    found_loss, found = loss_and_gradient(method(name, accumulate_steps=4), make_batch(name))
    assert found_loss == pytest.approx(float(loss), rel=2e-6)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(gradient)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("name", ["clip", "cosmos"])
def test_augmentation_matters_and_follows_the_key(name):
    made, batch = method(name), make_batch(name)
    plain = method(name, photometric=None)
    draw = jax.jit(lambda seed: made.model_images(batch, jax.random.split(jax.random.key(seed), 8)))
    first, again, other = draw(0), draw(0), draw(1)
    untouched = plain.model_images(batch, None) if name == "clip" else None
    for kind, x in first.items():
        assert x.dtype == jnp.float32
        assert x.shape[:1] == (BATCH,)
        np.testing.assert_array_equal(x, again[kind])
        # Each row, and each view of it, has colours of its own.
        assert (np.abs(x - other[kind]).max(axis=(2, 3, 4)) > 1e-3).all()
        if untouched:
            assert np.abs(x - untouched[kind]).max() > 0.1
