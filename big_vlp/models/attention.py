"""One attention function; every model calls it and nothing else decides the kernel."""

import jax
import jax.numpy as jnp


def pick_backend(dtype, head_dim: int) -> str:
    """The kernel: cuDNN's on GPUs for the dtypes and head sizes it takes, XLA's elsewhere."""
    half = dtype in (jnp.bfloat16, jnp.float16)
    if jax.default_backend() == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    return "xla"


def attention(query, key, value, *, causal: bool = False):
    """Scaled dot-product attention; the softmax is computed in fp32.

    Args:
      query: [B, T, H, D].
      key, value: [B, S, H, D].
      causal: position t sees keys 0..t only (needs T == S).

    Returns:
      [B, T, H, D] in the dtype of `query`.
    """
    backend = pick_backend(query.dtype, query.shape[-1])
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal, implementation=backend)


def attention_weights(query, key):
    """Softmax weights [B, H, T, S] in fp32, for showing what a pooler attends to."""
    logits = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * query.shape[-1] ** -0.5, axis=-1)
