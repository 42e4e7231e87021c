"""One attention function; every model calls it and nothing else decides the kernel."""

import jax
import jax.numpy as jnp


def pick_backend(dtype, head_dim: int) -> str:
    """The kernel: cuDNN's on GPUs for the dtypes and head sizes it takes, XLA's elsewhere."""
    half = dtype in (jnp.bfloat16, jnp.float16)
    if jax.default_backend() == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    return "xla"


def attention(query, key, value, *, causal: bool = False, mask=None):
    """Scaled dot-product attention; the softmax is computed in fp32.

    Args:
      query: [B, T, H, D].
      key, value: [B, S, K, D]; K divides H, and H / K consecutive queries share a key.
      causal: position t sees keys 0..t only (needs T == S).
      mask: bool[B, 1, T, S], what may be seen; None: everything. Every query must see a key.

    Returns:
      [B, T, H, D] in the dtype of `query`.
    """
    backend = pick_backend(query.dtype, query.shape[-1])
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, implementation=backend
    )


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
