"""Blocks: equal executions, what the backward pass keeps, activations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.models.layers.activations import ACTIVATIONS
from big_vlp.models.layers.transformer import Block, BlockInit, Transformer
from tests.big_vlp.models.towers.toy_towers import apply, arbitrary, randn


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
    "unroll, remat",
    [
        (True, None),
        (False, "full"),
        (False, "dots"),
        (True, "full"),
        (2, "qkv,attention,out,hidden"),
        (False, "out,host:hidden"),
    ],
)
def test_every_execution_computes_the_same(looped, unroll, remat):
    params, x, expected = looped
    found = run_and_differentiate(transformer(unroll=unroll, remat=remat), params, x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_what_is_named_is_kept(looped):
    """And nothing else than what goes into a block."""
    params, _, _ = looped
    x = jnp.zeros((7, 5, 16))  # of two heads

    def kept(remat):
        def backward(x):
            return jax.vjp(lambda x: transformer(remat=remat).apply(params, x), x)[1]

        leaves = jax.tree.leaves(jax.eval_shape(backward, x))
        return {leaf.shape for leaf in leaves if leaf.shape[:2] == (2, 7)}  # [layers, rows, ...]

    inputs = {(2, *x.shape)}
    assert kept("full") == inputs
    for name, shape in (
        ("qkv", (5, 3, 2, 8)),
        ("attention", (5, 2, 8)),
        ("hidden", (5, 64)),
        ("host:hidden", (5, 64)),
    ):
        assert kept(name) == inputs | {(2, 7, *shape)}
    assert kept("qkv, out,hidden") == inputs | {(2, 7, 5, 3, 2, 8), (2, 7, 5, 64)}


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
        ({"remat": "everything"}, "everything.*full.*dots.*qkv.*host:"),
        ({"remat": "qkv,qkv"}, "'qkv,qkv'; choose .* each once"),
        ({"remat": "qkv,host:"}, "'qkv,host:'; choose"),
        ({"unroll": 0}, "unroll=0: give True, False, or 1 or more"),
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
