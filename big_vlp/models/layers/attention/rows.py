"""A kernel for TPUs that holds whole rows: for images and texts of up to some hundred positions.

All weights of a row and head fit on chip, so a softmax takes one look, only queries, keys and
values are kept for the backward pass, which is one kernel too, and memory sees each array once.
Arrays are [batch, heads, width, length]: so XLA lays out what the layers around give and take,
since lengths fill the 128 lanes of a vector better than the widths of heads do.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from big_vlp.models.layers import remat
from big_vlp.models.layers.attention import split

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
    if spans is not None:
        return "no spans"
    if max(query.shape[1], key.shape[1]) > LONGEST:
        return f"rows of up to {LONGEST} positions"
    if query.shape[3] > WIDEST:
        return f"heads of up to {WIDEST} numbers"
    if query.shape[2] != key.shape[2]:
        return "a key for each query"
    return split.refusal(query, key)


def attention(query, key, value, *, causal: bool, interpret: bool = False):
    """As `attention.attention`, for what `refusal` does not refuse.

    Args:
      interpret: whether to run the kernel step by step in jax, on any platform: for tests.
    """
    arrays = (x[:, :, None] for x in (query, key, value))
    return _on_devices(*arrays, causal=causal, interpret=interpret)


def self_attention(qkv, *, causal: bool, interpret: bool = False):
    """As `attention.self_attention`; parts of `qkv` are read where they are, and so are their
    gradients written."""
    return _on_devices(qkv, causal=causal, interpret=interpret)


def _on_devices(*arrays, causal: bool, interpret: bool):
    """Of arrays [B, T, 1, H, D] of queries, keys and values, or of one, [B, T, 3, H, D]."""

    def on_device(*arrays):  # own rows and heads
        turned = (jnp.moveaxis(x, 1, 4) for x in arrays)
        return jnp.moveaxis(_attention(causal, interpret, *turned)[:, 0], 3, 1)

    return remat.named(split.over_devices(on_device, *arrays), "attention")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(causal: bool, interpret: bool, *arrays):
    """[B, 1, H, D, T] of three arrays [B, 1, H, D, T or S], or of one, [B, 3, H, D, T]."""
    batch, _, *rest = arrays[0].shape
    result = jax.ShapeDtypeStruct((batch, 1, *rest), arrays[0].dtype)
    return _run(functools.partial(_forward, causal=causal), arrays, [result], 2, interpret)[0]


def _kept(causal, interpret, *arrays):
    return _attention(causal, interpret, *arrays), arrays


def _gradients(causal, interpret, arrays, upstream):
    kernel = functools.partial(_backward, causal=causal)
    return tuple(_run(kernel, (*arrays, upstream), arrays, 5, interpret))


_attention.defvjp(_kept, _gradients)


def _run(kernel, arrays, results, products: int, interpret: bool):
    """Runs a kernel for some rows of a head after the other.

    Args:
      kernel: of references to queries [N, D, T], keys and values [N, D, S], and more.
      arrays, results: [B, P, H, D, T or S]; each of the P is one for the kernel.
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
        interpret=interpret,
    )(*arrays)


def _forward(query_ref, key_ref, value_ref, out_ref, *, causal: bool):
    for row in range(query_ref.shape[0]):
        query, key, value = (ref[row] for ref in (query_ref, key_ref, value_ref))
        weights = _weights(query, key, causal).astype(value.dtype)
        out_ref[row] = _product(value, weights, 1, 1).astype(out_ref.dtype)


def _backward(query_ref, key_ref, value_ref, upstream_ref, *gradient_refs, causal: bool):
    refs = query_ref, key_ref, value_ref, upstream_ref
    for row in range(query_ref.shape[0]):
        query, key, value, upstream = (ref[row] for ref in refs)
        weights = _weights(query, key, causal)
        of_weights = _product(upstream, value, 0, 0)
        mean = (weights * of_weights).sum(axis=1, keepdims=True)
        of_logits = len(query) ** -0.5 * weights * (of_weights - mean)
        of_logits, weights = (x.astype(query.dtype) for x in (of_logits, weights))
        gradients = (
            _product(key, of_logits, 1, 1),
            _product(query, of_logits, 1, 0),
            _product(upstream, weights, 1, 0),
        )
        for ref, gradient in zip(gradient_refs, gradients):
            ref[row] = gradient.astype(ref.dtype)


def _weights(query, key, causal: bool):
    """f32[T, S] of a head's queries [D, T] and keys [D, S]."""
    logits = len(query) ** -0.5 * _product(query, key, 0, 0)
    if causal:
        position = functools.partial(jax.lax.broadcasted_iota, jnp.int32, logits.shape)
        logits = jnp.where(position(1) <= position(0), logits, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _product(left, right, left_axis: int, right_axis: int):
    """The sum over an axis of each, in fp32."""
    axes = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)
