"""One attention function; every model calls it and nothing else decides the kernel."""

import jax
import jax.numpy as jnp

from big_vlp import determinism


def pick_backend(dtype, head_dim: int) -> str:
    """The kernel: cuDNN's on GPUs for the dtypes and head sizes it takes, XLA's elsewhere.

    XLA's also where a run must repeat to the bit: cuDNN's backward pass adds up in any order.
    """
    if determinism.is_required():
        return "xla"
    half = dtype in (jnp.bfloat16, jnp.float16)
    if jax.default_backend() == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    return "xla"


def attention(query, key, value, *, causal: bool = False, mask=None, dropout=None):
    """Scaled dot-product attention; the softmax is computed in fp32.

    Args:
      query: [B, T, H, D].
      key, value: [B, S, K, D]; K divides H, and H / K consecutive queries share a key.
      causal: position t sees keys 0..t only (needs T == S).
      mask: bool[B, 1, T, S], what may be seen; None: everything. Every query must see a key.
      dropout: of the probabilities, as of `drop`. With one they are held, [B, H, T, S].

    Returns:
      [B, T, H, D] in the dtype of `query`.
    """
    if dropout is not None:
        return _attention_with_dropout(query, key, value, causal, mask, dropout)
    backend = pick_backend(query.dtype, query.shape[-1])
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, implementation=backend
    )


def _attention_with_dropout(query, key, value, causal: bool, mask, dropout):
    """`attention` written out: no kernel draws for each row from its own key."""
    batch, length, heads, width = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, width)  # [B, T, K, H / K, D]
    logits = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=jnp.float32)
    logits *= width**-0.5
    lowest = jnp.finfo(jnp.float32).min
    if causal:
        logits = jnp.where(jnp.tri(length, dtype=bool), logits, lowest)
    if mask is not None:
        logits = jnp.where(mask[:, :, None], logits, lowest)
    weights = drop(jax.nn.softmax(logits, axis=-1), dropout).astype(query.dtype)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, value)
    return out.reshape(batch, length, heads, width)


def drop(x, dropout):
    """Inverted dropout: zero with probability `rate`, else divided by 1 - rate.

    Args:
      x: [B, ...].
      dropout: None, which returns `x`, or (rate, keys): 0 <= rate < 1, and random keys [B] or their
        data u32[B, 2], of jax's default generator. Each row draws from its own key, so that neither
        the rows beside it nor the devices that hold them matter.

    Returns:
      [B, ...] in the dtype of `x`.
    """
    if dropout is None:
        return x
    rate, keys = dropout
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)


def fold_in(dropout, number):
    """`dropout` of `drop` with other keys for each number i32[]."""
    if dropout is None:
        return None
    rate, keys = dropout
    return rate, jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def attention_over_cache(query, key, value, cached_key, cached_value, lengths):
    """Attention of one new position a row, over itself and a cache of earlier ones; fp32 softmax.

    The new key and value need not be written to the cache before, which would copy it.

    Args:
      query: [B, 1, H, D].
      key, value: [B, 1, K, D] of the new position; K as in `attention`.
      cached_key, cached_value: [B, S, K, D].
      lengths: i32[B], how many positions of each row's cache are filled, from the start.

    Returns:
      [B, 1, H, D] in the dtype of `query`.
    """
    batch, _, heads, width = query.shape
    grouped = query.reshape(batch, key.shape[2], -1, width)  # [B, K, H / K, D]

    def scores(keys):
        logits = jnp.einsum("bkgd,bskd->bkgs", grouped, keys, preferred_element_type=jnp.float32)
        return logits * width**-0.5

    filled = jnp.arange(cached_key.shape[1]) < lengths[:, None]  # [B, S]
    old = jnp.where(filled[:, None, None], scores(cached_key), -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([old, scores(key)], axis=-1), axis=-1)
    weights = weights.astype(query.dtype)
    out = jnp.einsum("bkgs,bskd->bkgd", weights[..., :-1], cached_value)
    out += jnp.einsum("bkgs,bskd->bkgd", weights[..., -1:], value)
    return out.reshape(batch, 1, heads, width)


def attention_weights(query, key):
    """Softmax weights [B, H, T, S] in fp32, for showing what a pooler attends to."""
    logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)
