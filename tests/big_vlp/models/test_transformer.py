"""Blocks and attention: equal executions, masks, dtypes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.models.layers.attention import attention, attention_weights
from big_vlp.models.layers.transformer import ACTIVATIONS, Block, BlockInit, Transformer
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
