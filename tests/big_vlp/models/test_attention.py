"""Attention: a softmax average whatever computes it, what is chosen, and what is never held."""

import functools
import importlib.util
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from big_vlp import determinism
from big_vlp.models.layers import attention as layer
from big_vlp.models.layers.attention import (
    attention,
    attention_weights,
    correlative_attention,
    flash,
    rows,
    self_attention,
    split,
    written,
)
from big_vlp.models.two_towers import TwoTowers
from big_vlp.parallel import meshes
from tests.big_vlp.models.towers.toy_towers import randn

DROPOUT = (0.25, jax.random.split(jax.random.key(5), 2))
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 3, 3, 3]], np.int32)
NUMBERS = np.array([[0, 1, 1, 0, 2, 2, 2], [3, 3, 3, 0, 0, 1, 1]], np.int32)


def sees(causal, spans, row, query, key):
    if spans is None:
        return not causal or key <= query
    if isinstance(spans, tuple):
        inside = all(spans[0] <= position < spans[1] for position in (query, key))
    else:
        inside = spans[row][query] == spans[row][key] > 0
    return key <= query or inside


def softmax_attention(query, key, value, causal=False, spans=None, kept=None, segments=None):
    """(output, weights), one query at a time, float64; `kept` [B, T, H, S] are factors."""
    batch, length, heads, width = query.shape
    group = heads // key.shape[2]
    out, weights = np.zeros(query.shape), np.zeros((batch, heads, length, key.shape[1]))
    for b, t, h in np.ndindex(batch, length, heads):
        seen = np.array([sees(causal, spans, b, t, s) for s in range(key.shape[1])])
        if segments is not None:
            seen &= segments[b] == segments[b][t]
        logits = key[b, :, h // group].astype(np.float64) @ query[b, t, h] / math.sqrt(width)
        w = np.exp(logits - logits.max()) * seen
        weights[b, h, t] = w / w.sum()
        factors = 1 if kept is None else kept[b, t, h]
        out[b, t, h] = (weights[b, h, t] * factors) @ value[b, :, h // group]
    return out, weights


def inputs(length, keys=None, heads=4, kv_heads=2, width=3, rows=2):
    shape = (rows, keys or length, kv_heads, width)
    return 3 * randn(rows, length, heads, width), randn(*shape, seed=1), randn(*shape, seed=2)


@pytest.mark.parametrize("backend", ["xla", "blocks"])
@pytest.mark.parametrize(
    "causal, keys, spans",
    [(False, 7, None), (False, 9, None), (True, 7, None), (True, 7, (1, 5)), (True, 7, NUMBERS)],
)
def test_attention_is_a_softmax_average(monkeypatch, backend, causal, keys, spans):
    monkeypatch.setattr(written, "QUERIES", 3)
    arrays = inputs(7, keys)
    expected, weights = softmax_attention(*arrays, causal, spans)
    with layer.using(backend):
        found = attention(*arrays, causal=causal, spans=spans)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
    if not causal:
        whole = np.repeat(arrays[1], 2, axis=2)
        np.testing.assert_allclose(
            attention_weights(arrays[0], whole), weights, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("backend", ["xla", "blocks"])
@pytest.mark.parametrize("dropout", [None, DROPOUT])
@pytest.mark.parametrize(
    "causal, spans", [(False, None), (True, None), (True, (1, 5)), (True, NUMBERS)]
)
def test_segments_of_a_row_do_not_see_each_other(monkeypatch, backend, dropout, causal, spans):
    monkeypatch.setattr(written, "QUERIES", 3)
    arrays = inputs(7)
    kept = None
    if dropout is not None:
        kept, share = written.draws(*dropout, jnp.arange(7), (4, 7))
        kept = np.asarray(kept) / share
    expected, _ = softmax_attention(*arrays, causal, spans, kept, SEGMENTS)
    with layer.using(backend):
        found = attention(*arrays, causal=causal, spans=spans, segments=SEGMENTS, dropout=dropout)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_correlative_attention_is_the_sum_of_two():
    qkv = randn(2, 5, 3, 4, 6)
    query, key, value = (qkv[:, :, part] for part in range(3))
    expected = sum(softmax_attention(x, x, value)[0] for x in (query, key))
    np.testing.assert_allclose(correlative_attention(qkv), expected, atol=1e-5)


def test_half_precision_attention_has_an_fp32_softmax():
    # Equal logits over many keys: weights of 1/2047 summed in bf16 would be far from 1.
    key, value = np.zeros((1, 2047, 1, 8), jnp.bfloat16), np.ones((1, 2047, 1, 8), jnp.bfloat16)
    out = jax.jit(attention)(key[:, :1], key, value)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), 1, atol=1e-2)
    weights = jax.jit(attention_weights)(key[:, :1], key)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-5)


def differentiated(fn, arrays, **options):
    """(output, gradients)"""

    def loss(*arrays):
        out = fn(*arrays, **options)
        return (out * randn(*out.shape, seed=3)).sum(), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return out, *gradients


def test_what_is_dropped_does_not_depend_on_blocks(monkeypatch):
    """And it is what the draws say."""
    arrays, options = inputs(7), {"causal": True, "spans": NUMBERS, "dropout": DROPOUT}
    kept, share = written.draws(*DROPOUT, jnp.arange(7), (4, 7))
    expected = differentiated(written.whole, arrays, **options)
    plain, _ = softmax_attention(*arrays, True, NUMBERS, np.asarray(kept) / share)
    np.testing.assert_allclose(expected[0], plain, rtol=1e-5, atol=2e-6)
    for size in (1, 3, 7):
        monkeypatch.setattr(written, "QUERIES", size)
        found = differentiated(written.by_blocks, arrays, **options)
        for array, other in zip(found, expected):
            np.testing.assert_allclose(array, other, rtol=1e-5, atol=2e-6)


def test_gradients_of_keys_are_summed_in_fp32():
    """In bf16 a sum of many blocks would stand still."""
    length = 4096
    query, key, value = (jnp.ones((1, length, 1, 8), jnp.bfloat16) for _ in range(3))

    def loss(value):
        return written.by_blocks(query, key, value, causal=False).astype(jnp.float32).sum()

    found = jax.jit(jax.grad(loss))(value)
    np.testing.assert_allclose(np.float32(found), 1, atol=1e-2)


@pytest.mark.parametrize(
    "length, keys, causal, spans, segments",
    [
        (130, 130, True, None, None),
        (130, 130, True, (1, 40), None),
        (9, 130, False, None, None),
        (130, 130, True, (1, 40), [[1] * 50 + [2] * 70 + [0] * 10, [1] * 130]),
        (128, 128, True, None, [[1] * 5 + [2] * 123, [1] * 127 + [0]]),
    ],
)
def test_the_kernel_for_tpus_computes_the_same(monkeypatch, length, keys, causal, spans, segments):
    monkeypatch.setattr(flash, "BLOCKS", (128,))
    segments = None if segments is None else jnp.array(segments)
    arrays = inputs(length, keys, width=8, rows=1 if segments is None else 2)
    options = {"causal": causal, "spans": spans, "segments": segments}
    expected = differentiated(written.whole, arrays, **options)
    kernel = functools.partial(flash.attention, interpret=True)
    found = differentiated(kernel, arrays, **options)
    for array, other in zip(found, expected):
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize(
    "length, keys, causal, batch", [(37, 37, True, 6), (21, 37, False, 1), (16, 9, False, 11)]
)
def test_the_kernel_of_whole_rows_computes_the_same(monkeypatch, length, keys, causal, batch):
    monkeypatch.setattr(rows, "MOST_ROWS", 4)
    arrays = inputs(length, keys, kv_heads=4, width=24, rows=batch)
    expected = differentiated(written.whole, arrays, causal=causal)
    kernel = functools.partial(rows.attention, interpret=True)
    found = differentiated(kernel, arrays, causal=causal)
    for array, other in zip(found, expected):
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
    if length == keys:
        qkv = np.stack(arrays, axis=2)

        def of_parts(*arrays, causal):
            return rows.self_attention(jnp.stack(arrays, axis=2), causal=causal, interpret=True)

        for array, other in zip(differentiated(of_parts, arrays, causal=causal), found):
            np.testing.assert_array_equal(array, other)
        monkeypatch.setattr(layer, "pick", lambda *_, **__: "rows")
        of_rows = functools.partial(rows.self_attention, interpret=True)
        monkeypatch.setattr(rows, "self_attention", of_rows)
        np.testing.assert_array_equal(self_attention(qkv, causal=causal), found[0])


@pytest.mark.parametrize(
    "length, keys, rate, spans", [(37, 37, 0.25, (3, 20)), (33, 16, 0.5, None)]
)
def test_the_kernel_of_whole_rows_drops_and_sees_the_same(length, keys, rate, spans):
    arrays = inputs(length, keys, kv_heads=4, width=24, rows=3)
    dropout = rate, jax.random.split(jax.random.key(5), 3)
    options = {"causal": spans is not None, "spans": spans, "dropout": dropout}
    expected = differentiated(written.whole, arrays, **options)
    kernel = functools.partial(rows.attention, interpret=True)
    for array, other in zip(differentiated(kernel, arrays, **options), expected):
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
    undropped = functools.partial(kernel, *arrays, causal=False)
    none = jax.jit(lambda: undropped(dropout=(0.0, dropout[1])))()
    np.testing.assert_array_equal(none, jax.jit(undropped)())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("length, width, rate", [(rows.LONGEST, rows.WIDEST, 0.1), (317, 112, 0)])
def test_the_kernel_of_whole_rows_fits_a_core(monkeypatch, length, width, rate):
    """Compiled for the TPU with the least memory on chip."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    device = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[0]
    mesh = meshes.make_mesh(devices=[device])
    query = jax.ShapeDtypeStruct((8, length, 4, width), jnp.bfloat16)
    keys = jax.ShapeDtypeStruct((8, 2), jnp.uint32)

    def loss(query, keys):
        dropout = (rate, keys)
        out = attention(query, query, query, causal=True, spans=(1, 40), dropout=dropout)
        return (out.astype(jnp.float32) ** 2).sum()

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(query, keys).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2


def test_the_kernel_of_whole_rows_in_half_precision():
    arrays = [x.astype(jnp.bfloat16) for x in inputs(40, kv_heads=4, width=16)]
    exact = [np.asarray(x, np.float32) for x in arrays]
    expected = differentiated(written.whole, exact, causal=True)
    kernel = functools.partial(rows.attention, interpret=True)
    for array, other in zip(differentiated(kernel, arrays, causal=True), expected):
        assert array.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.float32(array), other, rtol=2e-2, atol=2e-2 * np.abs(other).max()
        )


@pytest.mark.parametrize("length", [1, 256, 257, 577, 641, 1291, 4097])
def test_rows_are_padded_to_whole_blocks(length):
    padded = flash._padded(length)
    assert length <= padded < length + min(max(length, 256), 384)
    assert padded % flash._block(padded) == 0


@pytest.mark.parametrize(
    "platform, asked, length, changes, expected, said",
    [
        ("gpu", "auto", 197, {}, "cudnn", None),
        ("gpu", "auto", 197, {"width": 112}, "cudnn", None),
        ("gpu", "auto", 197, {"width": 132}, "xla", "head sizes"),
        ("gpu", "auto", 197, {"width": 68}, "xla", "head sizes"),
        ("gpu", "auto", 197, {"dtype": jnp.float32}, "xla", "bfloat16"),
        ("gpu", "auto", 197, {"dropout": DROPOUT}, "xla", "no dropout"),
        ("gpu", "auto", 600, {"dropout": DROPOUT}, "blocks", "no dropout"),
        ("gpu", "auto", 600, {"spans": (1, 4)}, "blocks", "no spans"),
        ("gpu", "auto", 600, {"segments": SEGMENTS}, "blocks", "rows of one segment"),
        ("gpu", "auto", 1, {}, "xla", None),  # a pooler's one query: none was wanted
        ("gpu", "cudnn", 1, {}, "xla", "more than one query"),
        ("gpu", "xla", 600, {}, "xla", None),
        ("gpu", "blocks", 197, {}, "blocks", None),
        ("gpu", "flash", 600, {}, "blocks", "TPUs"),
        ("cpu", "auto", 600, {"dtype": jnp.float32}, "blocks", None),
        ("cpu", "auto", 197, {}, "xla", None),
        ("cpu", "cudnn", 197, {}, "xla", "GPUs"),
        ("tpu", "auto", 700, {}, "flash", None),
        ("tpu", "auto", 600, {}, "rows", None),
        ("tpu", "auto", 600, {"spans": (1, 4)}, "rows", None),
        ("tpu", "auto", 700, {"spans": (1, 4)}, "flash", None),
        ("tpu", "auto", 600, {"spans": NUMBERS}, "blocks", "rows, which takes spans that are"),
        ("tpu", "auto", 600, {"spans": NUMBERS}, "blocks", "flash, which takes spans that are"),
        ("tpu", "auto", 600, {"segments": SEGMENTS}, "flash", None),
        ("tpu", "auto", 319, {"segments": SEGMENTS}, "xla", "rows of one segment"),
        ("tpu", "auto", 600, {"dtype": jnp.float32}, "blocks", "bfloat16"),
        ("tpu", "auto", 257, {"dropout": DROPOUT}, "rows", None),
        ("tpu", "auto", 700, {"dropout": DROPOUT}, "blocks", "no dropout"),
        ("tpu", "auto", 257, {}, "rows", None),
        ("tpu", "auto", 50, {}, "xla", None),
        ("tpu", "auto", 257, {"width": 256}, "xla", "heads of up to"),
        ("tpu", "rows", 700, {}, "blocks", "up to"),
        ("tpu", "flash", 257, {}, "flash", None),
    ],
)
def test_what_is_chosen(monkeypatch, caplog, platform, asked, length, changes, expected, said):
    monkeypatch.setattr(split, "platform", lambda: platform)
    monkeypatch.setattr(layer, "_said", set())
    monkeypatch.setattr(determinism, "is_required", lambda: False)
    width, dtype = changes.pop("width", 64), changes.pop("dtype", jnp.bfloat16)
    query = jax.ShapeDtypeStruct((2, length, 12, width), dtype)
    key = jax.ShapeDtypeStruct((2, max(length, 9), 12, width), dtype)
    with caplog.at_level(logging.WARNING, logger="absl"), layer.using(asked):
        for _ in range(2):
            assert layer.pick(query, key, **changes) == expected
    messages = [record.getMessage() for record in caplog.records]
    assert (messages != []) == (said is not None) and len(messages) == len(set(messages))
    assert said is None or any(said in message for message in messages)


@pytest.mark.parametrize("kernel", [flash, rows])
def test_kernels_for_tpus_want_whole_heads_on_every_device(monkeypatch, kernel):
    monkeypatch.setattr(split, "parts", lambda: (4, 8))

    def refusal(rows, heads):
        query = jax.ShapeDtypeStruct((rows, 600, 16, 64), jnp.bfloat16)
        key = jax.ShapeDtypeStruct((rows, 600, heads, 64), jnp.bfloat16)
        return kernel.refusal("tpu", query, key, None)

    assert refusal(8, 16) is None
    assert "multiple of the 4 devices" in refusal(6, 16)
    monkeypatch.setattr(split, "parts", lambda: (4, 32))
    assert "multiple of the 32 devices" in refusal(8, 16)


def test_the_devices_of_the_mesh_count():
    assert split.parts() == (1, 1)
    with jax.set_mesh(meshes.make_mesh(devices=jax.devices()[:1])):
        assert split.platform() == "cpu"
        assert split.parts() == (1, 1)


def test_an_unknown_name():
    with pytest.raises(ValueError, match="Unknown attention 'falsh'; did you mean 'flash'"):
        TwoTowers({}, {}, 8, attention="falsh")
