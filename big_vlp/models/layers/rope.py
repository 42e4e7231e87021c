"""Rotary position embeddings (arXiv 2104.09864)."""

import jax.numpy as jnp
import numpy as np


def rope_frequencies(head_dim: int, base: float) -> np.ndarray:
    """Radians per position, f32[head_dim / 2]; rounded where PyTorch rounds."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return 1 / (base ** exponents.astype(np.float64)).astype(np.float32)


def rope_angles(positions, head_dim: int, base: float):
    """(cos, sin) f32[B, T, 1, head_dim / 2] of rotary position embeddings (arXiv 2104.09864)."""
    angles = positions.astype(jnp.float32)[..., None] * rope_frequencies(head_dim, base)
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rotate(x, angles):
    """Turns dimension pairs (i, i + D / 2) of [B, T, H, D] by their angles, in fp32."""
    cos, sin = angles
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
