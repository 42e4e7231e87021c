"""A kernel for TPUs that holds whole rows: for images and texts of up to some hundred positions.

All weights of a row and head fit on chip, so a softmax takes one look, only queries, keys and
values are kept for the backward pass, which is one kernel too, and memory sees each array once.
Arrays are [batch, heads, width, length]: so XLA lays out what the layers around give and take,
since lengths fill the 128 lanes of a vector better than the widths of heads do. What dropout keeps
comes as bits, 1/16 of what the weights would take in fp32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from big_vlp.models.layers import remat
from big_vlp.models.layers.attention import split, written

# Of queries or keys, and of a head: six arrays of 640 x 640, fp32, are 10 MB of a core's 16 MB, and
# what a step reads and writes, 14 arrays of 640 x 128 in bf16, 2.3 MB.
LONGEST, WIDEST = 640, 128
# For what a step of the kernel reads and writes, which is there twice; a step costs some 0.3 us.
BLOCK_BYTES, MOST_ROWS = 2**20, 8


def refusal(platform: str, query, key, spans) -> str | None:
    """What the kernel takes where it does not take this; None: it does."""
    if platform != "tpu":
        return "TPUs"
    if query.dtype != jnp.bfloat16:
        return "bfloat16"
    if spans is not None and not isinstance(spans, tuple):
        return "spans that are the same in all rows"
    if max(query.shape[1], key.shape[1]) > LONGEST:
        return f"rows of up to {LONGEST} positions"
    if query.shape[3] > WIDEST:
        return f"heads of up to {WIDEST} numbers"
    if query.shape[2] != key.shape[2]:
        return "a key for each query"
    return split.refusal(query, key)


def attention(
    query, key, value, *, causal: bool, spans=None, dropout=None, interpret: bool = False
):
    """As `attention.attention`, for what `refusal` does not refuse.

    Args:
      interpret: whether to run the kernel step by step in jax, on any platform: for tests.
    """
    arrays = [x[:, :, None] for x in (query, key, value)]
    rate, keys = dropout or (0.0, None)
    if rate:
        shape = query.shape[2], key.shape[1]
        arrays.append(written.packed_draws(rate, keys, query.shape[1], shape))
    return _on_devices(_Form(causal, spans, rate, interpret), *arrays)


def self_attention(qkv, *, causal: bool, interpret: bool = False):
    """As `attention.self_attention`; parts of `qkv` are read where they are, and so are their
    gradients written."""
    return _on_devices(_Form(causal, None, 0.0, interpret), qkv)


class _Form(NamedTuple):
    """What is the same for all rows: arguments of `attention`, and the rate of dropout."""

    causal: bool
    spans: tuple[int, int] | None
    rate: float
    interpret: bool


def _on_devices(form: _Form, *arrays):
    """Of arrays [B, T, 1, H, D] of queries, keys and values, or of one, [B, T, 3, H, D]; and the
    bits of dropout, [B, W, H, S]."""

    def on_device(*arrays):  # own rows and heads
        turned = (
            jnp.moveaxis(x, 1, 4) if x.ndim == 5 else jnp.moveaxis(x, 1, 2)[:, None] for x in arrays
        )
        return jnp.moveaxis(_attention(form, *turned)[:, 0], 3, 1)

    return remat.named(split.over_devices(on_device, *arrays), "attention")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(form: _Form, *arrays):
    """[B, 1, H, D, T] of three arrays [B, 1, H, D, T or S], or of one, [B, 3, H, D, T]; and the
    bits, [B, 1, H, W, S]."""
    batch, _, *rest = arrays[0].shape
    result = jax.ShapeDtypeStruct((batch, 1, *rest), arrays[0].dtype)
    return _run(functools.partial(_forward, form), arrays, [result], 2, form)[0]


def _kept(form, *arrays):
    return _attention(form, *arrays), arrays


def _gradients(form, arrays, upstream):
    arrays, bits = (arrays[:-1], arrays[-1:]) if form.rate else (arrays, ())
    kernel = functools.partial(_backward, form)
    return *_run(kernel, (*arrays, upstream, *bits), arrays, 5, form), *[None] * len(bits)


_attention.defvjp(_kept, _gradients)


def _run(kernel, arrays, results, products: int, form: _Form):
    """Runs a kernel for some rows of a head after the other.

    Args:
      kernel: of references to queries [N, D, T], keys and values [N, D, S], and more.
      arrays, results: [B, P, H, D, T or S] or [B, 1, H, W, S]; each of the P is one for the kernel.
      products: of queries and keys, or their like, that it computes of each head.
    """
    batch, _, heads, width, queries = arrays[0].shape
    keys = arrays[:2][-1].shape[4]
    row_bytes = sum(x.size * x.dtype.itemsize for x in (*arrays, *results)) // (batch * heads)
    sizes = [n for n in range(1, MOST_ROWS + 1) if batch % n == 0 and n * row_bytes <= BLOCK_BYTES]
    rows = max(sizes, default=1)

    def spec(x):
        block = (rows, x.shape[1], None, *x.shape[3:])
        return pl.BlockSpec(block, lambda row, head: (row, 0, head, 0, 0))

    def on_parts(*refs):
        kernel(*(ref.at[:, part] for ref in refs for part in range(ref.shape[1])))

    pairs = batch * heads * queries * keys
    return pl.pallas_call(
        on_parts,
        grid=(batch // rows, heads),
        in_specs=[spec(x) for x in arrays],
        out_specs=[spec(x) for x in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * pairs * width,
            transcendentals=pairs,
            bytes_accessed=row_bytes * batch * heads,
        ),
        interpret=form.interpret,
    )(*arrays)


def _forward(form: _Form, query_ref, key_ref, value_ref, *refs):
    *bits_ref, out_ref = refs
    for row in range(query_ref.shape[0]):
        query, key, value, *bits = (ref[row] for ref in (query_ref, key_ref, value_ref, *bits_ref))
        weights = _weights(query, key, form)
        weights = _dropped(weights, bits, form).astype(value.dtype)
        out_ref[row] = _product(value, weights, 1, 1).astype(out_ref.dtype)


def _backward(form: _Form, *refs):
    count = 5 if form.rate else 4
    refs, gradient_refs = refs[:count], refs[count:]
    for row in range(refs[0].shape[0]):
        query, key, value, upstream, *bits = (ref[row] for ref in refs)
        weights = _weights(query, key, form)
        of_weights = _dropped(_product(upstream, value, 0, 0), bits, form)
        mean = (weights * of_weights).sum(axis=1, keepdims=True)
        of_logits = len(query) ** -0.5 * weights * (of_weights - mean)
        weights = _dropped(weights, bits, form)
        of_logits, weights = (x.astype(query.dtype) for x in (of_logits, weights))
        gradients = (
            _product(key, of_logits, 1, 1),
            _product(query, of_logits, 1, 0),
            _product(upstream, weights, 1, 0),
        )
        for ref, gradient in zip(gradient_refs, gradients):
            ref[row] = gradient.astype(ref.dtype)


def _weights(query, key, form: _Form):
    """f32[T, S] of a head's queries [D, T] and keys [D, S]."""
    logits = len(query) ** -0.5 * _product(query, key, 0, 0)
    if form.causal:
        position = functools.partial(jax.lax.broadcasted_iota, jnp.int32, logits.shape)
        query, key = position(0), position(1)
        seen = key <= query
        if form.spans is not None:
            start, stop = form.spans
            seen |= (query >= start) & (key >= start) & (query < stop) & (key < stop)
        logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _dropped(weights, bits, form: _Form):
    """The weights f32[T, S], or their gradients, after dropout; `bits` is empty or (i32[W, S],)."""
    if not form.rate:
        return weights
    (words,) = bits
    of_query = jnp.broadcast_to(words[:, None], (len(words), written.PACKED, words.shape[1]))
    of_query = of_query.reshape(-1, words.shape[1])[: len(weights)]
    place = jax.lax.broadcasted_iota(jnp.int32, weights.shape, 0) % written.PACKED
    kept = (of_query >> place) & 1
    return jnp.where(kept == 1, weights / written.share(form.rate), 0)


def _product(left, right, left_axis: int, right_axis: int):
    """The sum over an axis of each, in fp32."""
    axes = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)
