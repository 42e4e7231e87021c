"""EVA2-CLIP's image tower as CogVLM uses it (arXiv 2311.03079): norms on the branches' outputs."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from big_vlp.models.layers.norms import layer_norm
from big_vlp.models.layers.positions import resize_grid
from big_vlp.models.layers.remat import rematerialised
from big_vlp.models.layers.stack import blocks_of, init_blocks, run_blocks
from big_vlp.models.layers.transformer import BlockInit, Mlp, SelfAttention, normal
from big_vlp.models.towers.shared import base
from big_vlp.parallel import meshes

INITS = BlockInit(*[normal(0.02)] * 4, mlp_bias=lambda _: nn.initializers.zeros)


class EvaBlock(nn.Module):
    """x += norm(attention(x)); x += norm(mlp(x)), with the exact GELU."""

    heads: int
    mlp_dim: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """[B, T, W] -> [B, T, W]."""
        y = SelfAttention(self.heads, False, self.dtype, INITS, name="attn")(x)
        x = x + layer_norm("norm1", self.dtype, self.epsilon)(y)
        y = Mlp("gelu", self.dtype, INITS, self.mlp_dim, name="mlp")(x)
        return x + layer_norm("norm2", self.dtype, self.epsilon)(y)


class EvaTransformer(nn.Module):
    """`layers` blocks of one kind, stacked under "blocks".

    Attributes:
      make_block: makes the block, a module; called with `parent=None`.
      layers, unroll, remat: as of `Tower`.
    """

    make_block: Callable[..., nn.Module]
    layers: int
    unroll: bool | int
    remat: str | None

    @nn.compact
    def __call__(self, x, *shared):
        """[B, T, W] -> [B, T, W]; `shared` is what every block gets besides."""
        block = self.make_block(parent=None)
        params = blocks_of(self, init_blocks, block, self.layers, x[:1], *shared)

        def body(x, params):
            return block.apply({"params": params}, meshes.keep_over_batch(x), *shared), None

        body = rematerialised(body, self.remat, self.unroll)
        return run_blocks(body, x, params, self.layers, self.unroll)[0]


class Tower(base.Tower):
    """Patches and a class token through the blocks; no norm before or behind them.

    Attributes:
      image_size: the size the position table was trained at, pixels; other sizes (multiples of
        `patch_size`) interpolate the table.
      downsample: CogVLM2's convolution, which makes one token of 2 x 2 patches.
      epsilon: of the LayerNorms.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_dim: int
    downsample: bool = False
    epsilon: float = 1e-6

    block_type = EvaBlock

    def setup(self):
        p, w = self.patch_size, self.width
        if self.image_size % self.token_size:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of {self.token_size}."
            )
        conv = functools.partial(
            nn.Conv, w, padding="VALID", dtype=self.dtype, kernel_init=normal(0.02)
        )
        self.patch = conv((p, p), strides=(p, p))
        self.class_token = self.param("class_token", normal(0.02), (w,), jnp.float32)
        count = (self.image_size // p) ** 2 + 1
        self.position_embedding = self.param(
            "position_embedding", normal(0.02), (count, w), jnp.float32
        )
        block = functools.partial(
            self.block_type, self.heads, self.mlp_dim, self.epsilon, self.dtype
        )
        self.transformer = EvaTransformer(block, self.layers, self.unroll, self.remat)
        if self.downsample:
            self.conv = conv((2, 2), strides=(2, 2))

    @property
    def token_size(self) -> int:
        return self.patch_size * (2 if self.downsample else 1)

    def embed(self, images):
        """Normalised images [B, S, S', 3] -> tokens [B, 1 + N, W] with positions, class token
        first, patches row after row."""
        if any(size % self.token_size for size in images.shape[1:3]):
            raise ValueError(
                f"Image size {images.shape[1:3]} must be a multiple of {self.token_size} pixels."
            )
        x = self.patch(images.astype(self.dtype))
        batch, *grid, width = x.shape
        positions = resize_grid(self.position_embedding, tuple(grid)).astype(self.dtype)
        cls = jnp.broadcast_to(self.class_token.astype(self.dtype), (batch, 1, width))
        return jnp.concatenate([cls, x.reshape(batch, -1, width)], axis=1) + positions

    def pool(self, patches, grid: tuple[int, int]):
        """Patches [B, N, W] -> tokens: themselves, or [B, N / 4, W] with `downsample`.

        Args:
          grid: rows and columns of patches.
        """
        if not self.downsample:
            return patches
        batch, _, width = patches.shape
        return self.conv(patches.reshape(batch, *grid, width)).reshape(batch, -1, width)

    def encode(self, images):
        """Normalised images [B, S, S', 3] -> (tokens [B, N, W], class token [B, W])."""
        grid = tuple(size // self.patch_size for size in images.shape[1:3])
        x = self.transformer(self.embed(images), *self.shared(grid))
        return self.pool(x[:, 1:], grid), x[:, 0]

    def shared(self, grid: tuple[int, int]) -> tuple:
        """What every block gets beside its input."""
        del grid
        return ()
