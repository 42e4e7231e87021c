"""EVA02-CLIP's image tower of sizes B and L (arXiv 2303.11331, 2303.15389): CogVLM's ablation
"EVA2-L", and CogAgent's branch for large images.

Beside EVA2-CLIP-E's it has norms before the branches and others inside them (sub-LN), a gated MLP,
and rotary positions on two axes, on top of the learned table.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from big_vlp.models.layers.activations import silu
from big_vlp.models.layers.attention import attention
from big_vlp.models.layers.axes import inputs, outputs
from big_vlp.models.layers.norms import layer_norm
from big_vlp.models.layers.remat import named
from big_vlp.models.layers.rope import rope_frequencies
from big_vlp.models.layers.transformer import normal
from big_vlp.models.towers import eva

INIT = normal(0.02)


def grid_angles(grid: tuple[int, int], head_dim: int, trained: int) -> tuple[np.ndarray, ...]:
    """(cos, sin) f32[1 + rows * cols, 1, head_dim / 2]: rotary angles of patches, row after row.

    The first half of a head's pairs of dimensions turn by the patch's row, the others by its
    column. Before them stands the class token, which does not turn.

    Args:
      grid: rows and columns.
      trained: rows, and columns, that the positions were trained with; others are scaled to it.
    """
    frequencies = rope_frequencies(head_dim // 2, 10000.0)  # head_dim / 4 of them
    row, col = (
        np.arange(count, dtype=np.float32)[:, None] * (trained / count) * frequencies
        for count in grid
    )
    whole = (*grid, len(frequencies))
    parts = np.broadcast_to(row[:, None], whole), np.broadcast_to(col, whole)
    angles = np.concatenate(parts, axis=-1).reshape(-1, head_dim // 2)
    angles = np.concatenate([np.zeros((1, head_dim // 2)), angles])[:, None]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate_pairs(x, angles):
    """Turns neighbouring dimensions (2i, 2i + 1) of [B, T, H, D] by their angles, in fp32."""
    cos, sin = angles
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


class Attention(nn.Module):
    """Self-attention with rotary positions, and a norm before its output layer; keys have no
    bias."""

    tensor_axes = outputs("query", -2) | outputs("key", -2) | outputs("value", -2)  # by heads

    heads: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, angles):
        """[B, T, W], angles of `grid_angles` -> [B, T, W]."""
        width = x.shape[-1]

        def project(name):
            return nn.DenseGeneral(
                (self.heads, width // self.heads),
                use_bias=name != "key",
                dtype=self.dtype,
                kernel_init=INIT,
                name=name,
            )(x)

        query, key, value = named([project(name) for name in ("query", "key", "value")], "qkv")
        y = attention(rotate_pairs(query, angles), rotate_pairs(key, angles), value)
        y = layer_norm("norm", self.dtype, self.epsilon)(y.reshape(x.shape))
        return named(nn.Dense(width, dtype=self.dtype, kernel_init=INIT, name="out")(y), "out")


class NormedGatedMlp(nn.Module):
    """down(norm(silu(gate(x)) * up(x))), with biases."""

    tensor_axes = outputs("gate") | outputs("up") | inputs("down")  # by hidden units

    mlp_dim: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """[..., W] -> [..., W]."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=INIT)
        gate, up = named([dense(self.mlp_dim, name=name)(x) for name in ("gate", "up")], "hidden")
        y = layer_norm("norm", self.dtype, self.epsilon)(silu(gate) * up)
        return dense(x.shape[-1], name="down")(y)


class Eva02Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)), with a norm inside of each."""

    heads: int
    mlp_dim: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, angles):
        """[B, T, W] -> [B, T, W]."""
        y = layer_norm("norm1", self.dtype, self.epsilon)(x)
        x = x + Attention(self.heads, self.epsilon, self.dtype, name="attn")(y, angles)
        y = layer_norm("norm2", self.dtype, self.epsilon)(x)
        return x + NormedGatedMlp(self.mlp_dim, self.epsilon, self.dtype, name="mlp")(y)


class Tower(eva.Tower):
    """Patches and a class token through the blocks; no norm behind them, as CogAgent's has none,
    which also drops the last of EVA02-CLIP-L's 24 blocks.

    Attributes:
      rope_grid: rows, and columns, of patches that the rotary positions were trained with; those of
        other images are scaled to it.
    """

    rope_grid: int = 16

    block_type = Eva02Block

    def shared(self, grid):
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width={self.width} must be a multiple of 4 times the {self.heads} heads: "
                "positions have two axes."
            )
        return (grid_angles(grid, self.width // self.heads, self.rope_grid),)
