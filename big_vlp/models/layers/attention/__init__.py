"""Attention: one function, which every model calls; nothing else decides what computes it."""

import contextlib
import contextvars

import jax
import jax.numpy as jnp
from absl import logging

from big_vlp import determinism
from big_vlp.models.layers import remat
from big_vlp.models.layers.attention import flash, rows, split, written
from input_pipeline.checks.arguments import unknown

# "xla" holds all weights, [B, H, T, S]; "blocks" those of a block of queries, and computes them
# again in the backward pass; "cudnn", "rows" and "flash" are kernels, out of which they never come.
BACKENDS = ("xla", "blocks", "cudnn", "rows", "flash")

# The kernels of a platform, the first that takes the arrays first, and the shortest rows, of
# queries and of keys, that each is taken for. None of it was measured on hardware.
# cuDNN: torch's tables give 1.7 to 2.3 times the speed on an H100 and 0.8 to 1 on smaller cards; up
# to 600 tokens others saw no gain in time, but memory is saved at any length.
# For TPUs by arithmetic for v5e. XLA moves the weights of a head about eight times in a step of
# training: 197 positions, 12 heads and 64 rows are 1.3 GB a layer, 1.6 ms; "rows" moves 0.2 GB and
# computes for 0.7 ms; rows of less than 64 it pads to 128. "flash" pads rows and moves its sums: no
# gain below 512.
KERNELS = {"gpu": (("cudnn", 2),), "tpu": (("rows", 64), ("flash", 512))}

# Queries from which on XLA works by blocks: 16 heads' logits of a row are 16 MB here, fp32.
LONG = 512

_asked = contextvars.ContextVar("attention", default="auto")
_said = set()


def check(backend: str) -> None:
    """Raises ValueError unless it is "auto" or one of BACKENDS."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(unknown("attention", backend, ("auto", *BACKENDS)))


@contextlib.contextmanager
def using(backend: str):
    """Has `attention` use one of BACKENDS where it can; "auto" takes what fits the shapes."""
    token = _asked.set(backend)
    try:
        yield
    finally:
        _asked.reset(token)


def attention(query, key, value, *, causal: bool = False, spans=None, segments=None, dropout=None):
    """Scaled dot-product attention; the softmax is computed in fp32.

    Args:
      query: [B, T, H, D].
      key, value: [B, S, K, D]; K divides H, and H / K consecutive queries share a key.
      causal: position t sees keys 0..t only (needs T == S).
      spans: positions that see each other whatever their order, where the rest is causal: None;
        (start, stop), positions start..stop-1 of every row; or i32[B, T], those that have a number
        above 0 in common.
      segments: i32[B, T] (needs T == S): positions see only those of their row that have the same
        number, of what they see anyway; None: all.
      dropout: of the weights, as of `drop`.

    Returns:
      [B, T, H, D] in the dtype of `query`.
    """
    backend = pick(query, key, spans=spans, segments=segments, dropout=dropout)
    return _by(backend, query, key, value, causal, spans, segments, dropout)


def self_attention(qkv, *, causal: bool = False):
    """`attention` of qkv[:, :, i], [B, T, 3, H, D], which a kernel may read where they are."""
    query, key, value = (qkv[:, :, i] for i in range(3))
    backend = pick(query, key)
    if backend == "rows":
        return rows.self_attention(qkv, causal=causal)
    return _by(backend, query, key, value, causal)


def correlative_attention(qkv):
    """SCLIP's attention for dense tasks (arXiv 2312.01597), of what `self_attention` takes: queries
    attend to queries and keys to keys, and the two are added up."""
    query, key, value = (qkv[:, :, i] for i in range(3))
    return attention(query, query, value) + attention(key, key, value)


def _by(backend: str, query, key, value, causal: bool, spans=None, segments=None, dropout=None):
    sees = {"causal": causal or spans is not None, "spans": spans}
    if backend == "rows":
        return rows.attention(query, key, value, **sees, dropout=dropout)
    sees["segments"] = segments
    if backend == "flash":
        return flash.attention(query, key, value, **sees)  # which names its residuals itself
    if backend == "cudnn":
        out = jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, implementation="cudnn"
        )
    elif backend == "blocks":
        out = written.by_blocks(query, key, value, **sees, dropout=dropout)
    else:
        out = written.whole(query, key, value, **sees, dropout=dropout)
    return remat.named(out, "attention")


def pick(query, key, *, spans=None, segments=None, dropout=None) -> str:
    """What computes `attention` of these arrays (or their shapes and dtypes), out of BACKENDS.

    Where a kernel is wanted that does not take them, a line in the log says so, once a reason.
    """
    asked, platform = _asked.get(), split.platform()
    if asked in ("xla", "blocks"):
        return asked
    wanted = KERNELS.get(platform, ()) if asked == "auto" else ((asked, 0),)
    length, refused = min(query.shape[1], key.shape[1]), {}
    for kernel, shortest in wanted:
        if length >= shortest:
            refused[kernel] = _refusal(kernel, platform, query, key, spans, segments, dropout)
            if refused[kernel] is None:
                return kernel
    for kernel, reason in refused.items():
        if (kernel, reason) not in _said:
            _said.add((kernel, reason))
            logging.warning("Attention by XLA in place of %s, which takes %s.", kernel, reason)
    return "blocks" if query.shape[1] >= LONG else "xla"


def _refusal(kernel: str, platform: str, query, key, spans, segments, dropout) -> str | None:
    """What a kernel takes where it does not take this; None: it does."""
    if dropout is not None and kernel != "rows":
        return "no dropout"
    if segments is not None and kernel != "flash":
        return "rows of one segment"
    if min(query.shape[1], key.shape[1]) == 1:
        return "more than one query and key"
    if kernel in ("flash", "rows"):
        return {"flash": flash, "rows": rows}[kernel].refusal(platform, query, key, spans)
    if platform != "gpu":
        return "GPUs"
    if determinism.is_required():  # its backward pass adds up in any order
        return "runs that need not repeat to the bit"
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return "bfloat16 and float16"
    if query.shape[-1] % 8 or query.shape[-1] > 128:
        return "head sizes that are a multiple of 8 up to 128"
    if spans is not None:  # as a mask they would need whole [T, S] rows, and gradients go wrong
        return "no spans"
    return split.refusal(query, key)


def drop(x, dropout, positions=None):
    """Inverted dropout: zero with probability `rate`, else divided by 1 - rate.

    Args:
      x: [B, T, ...].
      dropout: None, which returns `x`, or (rate, keys): 0 <= rate < 1, and random keys [B] or their
        data u32[B, 2], of jax's default generator. Each row draws from its own key, so that neither
        the rows beside it nor the devices that hold them matter.
      positions: i32[T] or i32[B, T], where in their rows these T are; by default from 0 on. A
        position's draws depend on nothing else, so that parts of a row can be dropped apart.

    Returns:
      [B, T, ...] in the dtype of `x`.
    """
    if dropout is None:
        return x
    rate, keys = dropout
    positions = jnp.arange(x.shape[1]) if positions is None else positions
    kept, share = written.draws(rate, keys, positions, x.shape[2:])
    return jnp.where(kept, x / share, 0)


def fold_in(dropout, number):
    """`dropout` of `drop` with other keys for each number i32[]."""
    if dropout is None:
        return None
    rate, keys = dropout
    return rate, jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def attention_over_cache(query, key, value, prompts, written, lengths, step):
    """Attention of one new position a row over a prompt, what was written behind it, and itself;
    fp32 softmax.

    The new key and value need not be written to the cache before, which would copy it.

    Args:
      query: [B, 1, H, D].
      key, value: [B, 1, K, D] of the new position; K as in `attention`.
      prompts: (key, value) [P, S, K, D]; P divides B, and B / P consecutive rows share a prompt.
      written: (key, value) [B, N, K, D].
      lengths: i32[P], how many positions of each prompt count, from the start.
      step: i32[], how many positions of `written` do.

    Returns:
      [B, 1, H, D] in the dtype of `query`.
    """
    batch, *_, width = query.shape
    (prompt_key, prompt_value), (written_key, written_value) = prompts, written
    grouped = query.reshape(batch, key.shape[2], -1, width)  # [B, K, H / K, D]
    of_prompts = grouped.reshape(len(lengths), -1, *grouped.shape[1:])  # [P, B / P, K, H / K, D]

    def product(form, *arrays):
        return jnp.einsum(form, *arrays, preferred_element_type=jnp.float32)

    def scores(keys, count):
        logits = product("bkgd,bskd->bkgs", grouped, keys)
        return jnp.where(jnp.arange(keys.shape[1]) < count, logits, -jnp.inf)

    far = product("prkgd,pskd->prkgs", of_prompts, prompt_key)
    real = jnp.arange(prompt_key.shape[1]) < lengths[:, None]  # [P, S]
    far = jnp.where(real[:, None, None, None], far, -jnp.inf).reshape(*grouped.shape[:3], -1)
    logits = jnp.concatenate([far, scores(written_key, step), scores(key, 1)], axis=-1)
    weights = jax.nn.softmax(logits * width**-0.5, axis=-1).astype(query.dtype)
    sizes = prompt_key.shape[1], prompt_key.shape[1] + written_key.shape[1]
    far, near, own = jnp.split(weights, sizes, axis=-1)
    far = far.reshape(*of_prompts.shape[:4], -1)
    out = product("prkgs,pskd->prkgd", far, prompt_value).reshape(grouped.shape)
    out += product("bkgs,bskd->bkgd", near, written_value)
    out += product("bkgs,bskd->bkgd", own, value)
    return out.reshape(query.shape).astype(query.dtype)


def attention_weights(query, key):
    """Softmax weights [B, H, T, S] in fp32, for showing what a pooler attends to."""
    logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)
