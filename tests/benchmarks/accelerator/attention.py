"""One attention at one shape by one kernel: its times, and its errors against fp32."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.models.layers import attention as models_attention
from big_vlp.models.layers.attention import flash, rows

TOKENS = 32_768  # in a batch
HEADS = {64: 12, 112: 16, 128: 32}  # as in ViT-B, EVA2-CLIP-E and a language model of 7B
GROUP = 4  # queries that share a key where keys are grouped
CALLS, ROUNDS = 10, 5
OURS = {"rows": rows, "flash": flash}
KINDS = ("plain", "grouped keys", "one query", "mask")


def measure(length: int, head_size: int, causal: bool, kind: str, backend: str, tiny: bool) -> dict:
    """Milliseconds of the forward pass and of both; largest errors of the output and of the
    gradients, over the largest value of each in fp32.

    Raises what the kernel refuses with.
    """
    query, key, value, mask, cotangent = inputs(length, head_size, kind, tiny)
    forward = jax.jit(functools.partial(attend, causal=causal, backend=backend))

    @jax.jit
    def both(query, key, value, mask, cotangent):
        out, backward = jax.vjp(
            lambda *x: attend(*x, mask, causal=causal, backend=backend), query, key, value
        )
        return out, *backward(cotangent)

    found = both(query, key, value, mask, cotangent)
    expected = exact(length, head_size, causal, kind, tiny)
    names = ("out_error", "dq_error", "dk_error", "dv_error")
    return {
        "picked": mask is None and models_attention.pick(query, key) == backend,
        "forward_ms": milliseconds(lambda: forward(query, key, value, mask), tiny),
        "both_ms": milliseconds(lambda: both(query, key, value, mask, cotangent), tiny),
        **{name: error(x, y) for name, x, y in zip(names, found, expected)},
    }


def inputs(length: int, head_size: int, kind: str, tiny: bool):
    """bf16 query, key, value, mask or None, and the gradient of the output."""
    heads = 4 if tiny else HEADS[head_size]
    batch = 2 if tiny else max(1, TOKENS // length)
    queries = 1 if kind == "one query" else length
    keys = heads // GROUP if kind == "grouped keys" else heads
    shapes = [(batch, queries, heads, head_size)] + 2 * [(batch, length, keys, head_size)]
    seeds = jax.random.split(jax.random.key(0), 4)
    made = [
        jax.random.normal(seed, shape, jnp.bfloat16)
        for seed, shape in zip(seeds, [*shapes, shapes[0]])
    ]
    mask = None
    if kind == "mask":  # as of rows whose ends are padding
        ends = np.linspace(length // 2 + 1, length, batch).astype(int)
        seen = np.arange(length) < ends[:, None]
        mask = jnp.broadcast_to(seen[:, None, None], (batch, 1, queries, length))
    return *made[:3], mask, made[3]


def attend(query, key, value, mask, *, causal: bool, backend: str):
    """What `big_vlp.models.layers.attention.attention` calls, with a kernel of choice."""
    if backend in OURS:
        if mask is not None:
            raise NotImplementedError("takes no mask")
        if refused := OURS[backend].refusal(jax.default_backend(), query, key, None):
            raise NotImplementedError(f"takes {refused}")
        return OURS[backend].attention(query, key, value, causal=causal)
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, implementation=backend
    )


@functools.lru_cache(1)  # the kernels of a shape come one after the other
def exact(length: int, head_size: int, causal: bool, kind: str, tiny: bool):
    """Output and gradients in fp32 with products of full precision, as numpy arrays."""
    query, key, value, mask, cotangent = inputs(length, head_size, kind, tiny)
    query, key, value, cotangent = (x.astype(jnp.float32) for x in (query, key, value, cotangent))

    @jax.jit
    def run(query, key, value, mask, cotangent):
        out, backward = jax.vjp(
            lambda *x: attend(*x, mask, causal=causal, backend="xla"), query, key, value
        )
        return out, *backward(cotangent)

    with jax.default_matmul_precision("highest"):
        return jax.device_get(run(query, key, value, mask, cotangent))


def error(found, expected) -> float:
    difference = np.abs(np.asarray(found, np.float32) - expected).max()
    return float(difference / np.abs(expected).max())


def milliseconds(run, tiny: bool) -> float:
    """The median of rounds of calls that wait for each other on the device alone."""
    calls, rounds = (1, 1) if tiny else (CALLS, ROUNDS)
    jax.block_until_ready(run())
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready([run() for _ in range(calls)])
        times.append(1e3 * (time.perf_counter() - began) / calls)
    return statistics.median(times)
