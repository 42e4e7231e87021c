"""LLaMA: against Hugging Face's, and its own cache; attention with shared heads and masks."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.models.decoder import RMSNorm
from big_vlp.models.layers.attention import attention, attention_over_cache
from big_vlp.models.layers.rope import rope_angles, rotate
from big_vlp.models.llama import Llama
from tests.big_vlp.models.towers.toy_towers import randn

SIZES = {"vocab_size": 40, "width": 32, "layers": 3, "heads": 4, "mlp_dim": 24}


def positions_of(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


def logits_of(module, tokens):
    return module.logits(module(module.embed(tokens), positions_of(tokens))[0])


def run(model, params, *args, method):
    return jax.jit(lambda params, *args: model.apply(params, *args, method=method))(params, *args)


def fresh(model):
    """Parameters none of which is zero."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda key: model.init(key, tokens, method=logits_of), jax.random.key(0)
    )
    return jax.tree.map(lambda x: rng.normal(0.1, 0.2, x.shape).astype(x.dtype), shapes)


def from_hugging_face(state, layers, heads, kv_heads):
    """Their state dict -> our parameters."""
    width = state["model.norm.weight"].size

    def kernel(i, name):
        return state[f"model.layers.{i}.{name}.weight"].T

    def block(i):
        q, k, v = (kernel(i, f"self_attn.{n}_proj") for n in "qkv")
        if heads == kv_heads:
            qkv = np.stack([x.reshape(width, heads, -1) for x in (q, k, v)], axis=1)
            attn = {"qkv": {"kernel": qkv}}
        else:
            key_value = np.stack([x.reshape(width, kv_heads, -1) for x in (k, v)], axis=1)
            attn = {"query": {"kernel": q.reshape(width, heads, -1)}}
            attn |= {"key_value": {"kernel": key_value}}
        attn |= {"out": {"kernel": kernel(i, "self_attn.o_proj").reshape(heads, -1, width)}}
        mlp = {n: {"kernel": kernel(i, f"mlp.{n}_proj")} for n in ("gate", "up", "down")}
        return {
            "norm1": {"scale": state[f"model.layers.{i}.input_layernorm.weight"]},
            "norm2": {"scale": state[f"model.layers.{i}.post_attention_layernorm.weight"]},
            "language": {"attn": attn, "mlp": mlp},
        }

    return {
        "token_embedding": {"embedding": state["model.embed_tokens.weight"]},
        "blocks": jax.tree.map(lambda *x: np.stack(x), *(block(i) for i in range(layers))),
        "norm": {"scale": state["model.norm.weight"]},
        "head": {"kernel": state["lm_head.weight"].T},
    }


@pytest.mark.parametrize("kv_heads, base", [(4, 10000.0), (2, 500000.0), (1, 10000.0)])
def test_hugging_faces_llama_gives_the_same_logits(kv_heads, base, monkeypatch):
    torch = pytest.importorskip("torch")
    # transformers imports torchvision where it is found, though it may not fit torch.
    monkeypatch.setitem(sys.modules, "torchvision", None)
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.1 if parameter.ndim == 1 else 0.0, 0.3)
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    tokens = np.random.default_rng(0).integers(1, 40, (2, 30))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    model = Llama(**SIZES, kv_heads=kv_heads, rope_base=base)
    params = {"params": from_hugging_face(state, 3, 4, kv_heads)}
    found = run(model, params, jnp.asarray(tokens), method=logits_of)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "kv_heads, unroll",
    [
        (4, False),
        (2, True),
        pytest.param(4, True, marks=pytest.mark.slow),
        pytest.param(2, False, marks=pytest.mark.slow),
    ],
)
def test_decoding_continues_rows_of_different_lengths(kv_heads, unroll):
    model = Llama(**SIZES, kv_heads=kv_heads, unroll=unroll)
    params = fresh(model)
    tokens = jnp.asarray(np.random.default_rng(1).integers(1, 40, (3, 9)))
    expected = run(model, params, tokens, method=logits_of)
    lengths = jnp.array([2, 5, 3])

    def prefill(module, tokens):
        return module(module.embed(tokens), positions_of(tokens), keep_cache=True)[1]

    # What stands behind a row's length must not matter.
    cache = run(model, params, tokens[:, :5].at[0, 2:].set(7).at[2, 3:].set(9), method=prefill)
    assert cache["key"].shape == cache["value"].shape == (3, 3, 5, kv_heads, 8)
    written = model.apply(params, 3, 4, method="empty_cache")
    rows = jnp.arange(3)
    for step in range(4):
        at = lengths + step
        logits, written = run(
            *(model, params, cache, written, tokens[rows, at], at, lengths, step), method="decode"
        )
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, expected[rows, at], rtol=1e-4, atol=1e-4)


def test_padding_embeddings_have_no_gradient():
    tokens = jnp.array([[0, 3, 0, 5]])

    def gradient(pad_id):
        model = Llama(**SIZES, pad_id=pad_id)
        params = fresh(model)["params"]
        loss = lambda p: model.apply({"params": p}, tokens, method=logits_of).sum()  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(params)["token_embedding"]["embedding"])

    with_padding, without = gradient(0), gradient(None)
    assert not with_padding[0].any() and without[0].any()
    np.testing.assert_array_equal(with_padding[1:], without[1:])


def test_rotation_depends_on_distance_only():
    query, key = randn(1, 1, 2, 8), randn(1, 1, 2, 8, seed=1)

    def score(q_position, k_position):
        q = rotate(query, rope_angles(jnp.array([[q_position]]), 8, 100.0))
        k = rotate(key, rope_angles(jnp.array([[k_position]]), 8, 100.0))
        return np.asarray((q * k).sum(-1))

    np.testing.assert_allclose(score(7, 3), score(1004, 1000), atol=1e-4)
    assert np.abs(score(7, 3) - score(7, 4)).max() > 0.1


def test_rms_norm_is_rounded_once():
    x = randn(3, 16).astype(jnp.bfloat16)
    scale = 1 + 0.3 * randn(16, seed=1)
    wide = np.float64(x)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * scale
    found = RMSNorm(1e-5, jnp.bfloat16).apply({"params": {"scale": scale}}, x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(np.float32).astype(jnp.bfloat16))


def test_half_precision_keeps_logits_in_fp32():
    tokens = jnp.ones((1, 4), jnp.int32)
    logits = run(
        Llama(**SIZES, dtype=jnp.bfloat16), fresh(Llama(**SIZES)), tokens, method=logits_of
    )
    assert logits.dtype == jnp.float32 and jnp.isfinite(logits).all()


@pytest.mark.parametrize("causal", [False, True])
def test_query_heads_share_keys_in_groups(causal):
    query = randn(2, 5, 6, 4)
    key, value = randn(2, 5, 2, 4, seed=1), randn(2, 5, 2, 4, seed=2)
    expected = attention(query, key.repeat(3, axis=2), value.repeat(3, axis=2), causal=causal)
    np.testing.assert_allclose(attention(query, key, value, causal=causal), expected, atol=1e-6)


@pytest.mark.parametrize("heads", [2, 6])
def test_attention_over_caches(heads):
    """Of four rows two each share a prompt; what a cache does not hold yet must not matter."""
    lengths, written = np.array([0, 4]), 2
    query, key, value = randn(4, 1, heads, 4), *(randn(4, 1, 2, 4, seed=i) for i in (1, 2))
    prompts = [randn(2, 5, 2, 4, seed=i) for i in (3, 4)]
    behind = [randn(4, 3, 2, 4, seed=i) for i in (5, 6)]
    expected = []
    for row in range(4):
        length = lengths[row // 2]
        seen = [
            np.concatenate([a[row // 2, :length], b[row, :written], c[row]])[None]
            for a, b, c in zip(prompts, behind, (key, value))
        ]
        expected.append(attention(query[[row]], *seen)[0])
    found = jax.jit(attention_over_cache)(query, key, value, prompts, behind, lengths, written)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kv_heads": 3}, "kv_heads=3"),
        ({"heads": 5}, "heads=5"),
        ({"expert_parts": ("qkv", "head")}, "head.*choose out of"),
        ({"expert_every": 2}, "expert_every=2 must divide layers=3"),
        ({"expert_every": 0}, "expert_every=0 must divide layers=3"),
        ({"remat": "most"}, "most.*full.*dots"),
    ],
)
def test_bad_options(changes, message):
    model = Llama(**{**SIZES, **changes})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32), method=logits_of)
        )
