"""Vision transformer: patches -> blocks -> patch tokens and one pooled feature."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from big_vlp.models.layers.attention import attention
from big_vlp.models.layers.axes import inputs, outputs
from big_vlp.models.layers.head import Head
from big_vlp.models.layers.norms import layer_norm
from big_vlp.models.layers.positions import resize_grid
from big_vlp.models.layers.transformer import (
    BlockInit,
    Mlp,
    Transformer,
    normal,
    torch_bias_init,
    torch_kernel_init,
    xavier_init,
)
from big_vlp.models.towers.shared import base

DINO_EXCESS = 0.1  # of `resize_grid`: the rule that COSMOS was trained with


class MapHead(nn.Module):
    """SigLIP's pooling (arXiv 2303.15343): one learned query attends to all tokens."""

    tensor_axes = outputs("query", -2) | outputs("key", -2) | outputs("value", -2)  # by heads
    tensor_axes |= inputs("out", -3)

    heads: int
    activation: str
    dtype: jnp.dtype
    norm: Callable = layer_norm
    mlp_dim: int | None = None

    @nn.compact
    def __call__(self, x):
        """[B, N, W] -> f32[B, W]."""
        batch, _, width = x.shape
        head_dim = width // self.heads
        probe = self.param("probe", xavier_init, (1, width), jnp.float32)
        probe = jnp.broadcast_to(probe.astype(self.dtype), (batch, 1, width))

        def project(name):
            return nn.DenseGeneral(
                (self.heads, head_dim), dtype=self.dtype, kernel_init=xavier_init, name=name
            )

        y = attention(project("query")(probe), project("key")(x), project("value")(x))
        y = nn.DenseGeneral(
            width, axis=(-2, -1), dtype=self.dtype, kernel_init=xavier_init, name="out"
        )(y)
        z = self.norm("norm", self.dtype)(y)
        z = Mlp(self.activation, self.dtype, BlockInit(), self.mlp_dim, name="mlp")(z)
        return (y.astype(jnp.float32) + z)[:, 0]


class Tower(base.Tower):
    """ViT tower (arXiv 2010.11929) in the two forms the field uses.

    pool="cls" is CLIP's: class token, norm before the blocks, patch projection without bias,
    pooled = norm(class token) @ projection. pool="mean" and "map" are SigLIP's: no class token,
    no first norm, patch projection with bias; "map" has no output projection. CLIPA (arXiv
    2305.07017) is pool="mean", class_token=True, norm_pre=False, norm_after_pool=True.

    Attributes:
      image_size: the size the position table was trained at, pixels; other sizes (multiples of
        `patch_size`) interpolate the table.
      embed_dim: width of the pooled feature; None pools nothing.
      position_scale: standard deviation of the position table at the start; None is width^-1/2.
        With 1, tokens tell their places from the first step.
      norm_epsilon: of every LayerNorm.
      mlp_dim: hidden width of the MLPs; None is four times the width.
      class_token: whether there is one, and so a patch projection without bias; None goes by pool.
      norm_pre: whether a norm comes before the blocks; None is with a class token.
      final_norm: whether a norm stands behind the blocks. Without it nothing is pooled, and with a
        block less than it was trained with, tokens are those that LLaVA (arXiv 2304.08485) reads.
      norm_after_pool: the last norm is that of the mean over the patches; tokens have none.
      ignore_rest: pixels beyond the last whole patch are not seen; else they are an error. (A
        released SigLIP has patches of 14 pixels in images of 384.)
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int | None = None
    pool: str = "cls"
    activation: str = "gelu"
    position_scale: float | None = None
    norm_epsilon: float = 1e-5
    mlp_dim: int | None = None
    class_token: bool | None = None
    norm_pre: bool | None = None
    final_norm: bool = True
    norm_after_pool: bool = False
    ignore_rest: bool = False

    @nn.compact
    def encode(self, images, each_patch: bool = False):
        """Normalised images [B, S, S', 3] -> (patch tokens [B, N, W], pooled).

        Tokens are after the final norm, if any, and not projected; pooled f32[B, embed_dim] is not
        L2-normalised, and None without `embed_dim`.

        With `each_patch` every patch is pooled as if it were the only one, and all is there twice,
        with the last block's attention as trained and correlative: [2, B, N, W] and
        [2, B, N, embed_dim].
        """
        if self.pool not in ("cls", "mean", "map"):
            raise ValueError(f"pool={self.pool!r}; choose cls, mean or map.")
        if self.pool == "map" and self.embed_dim not in (None, self.width):
            raise ValueError(
                f"pool='map' has no output projection: embed_dim ({self.embed_dim}) must equal "
                f"width ({self.width})."
            )
        p, w = self.patch_size, self.width
        batch, *size, _ = images.shape
        if not self.ignore_rest and any(s % p for s in (*size, self.image_size)):
            raise ValueError(
                f"Image size {tuple(size)} (trained at {self.image_size}) must be a multiple of "
                f"the patch size {p}."
            )
        has_token = self.has_class_token
        if (self.pool == "cls" and not has_token) or (self.norm_after_pool and self.pool != "mean"):
            raise ValueError(
                f"pool={self.pool!r} does not go with class_token={self.class_token}, "
                f"norm_after_pool={self.norm_after_pool}: 'cls' needs a class token, and only the "
                "mean can be normalised after pooling."
            )
        if not self.final_norm and self.embed_dim is not None:
            raise ValueError("final_norm=False is for towers that pool nothing: embed_dim=None.")
        init_scale = normal(w**-0.5)
        norm = functools.partial(layer_norm, epsilon=self.norm_epsilon)

        x = nn.Conv(
            w,
            (p, p),
            strides=(p, p),
            padding="VALID",
            use_bias=not has_token,
            dtype=self.dtype,
            kernel_init=torch_kernel_init,
            bias_init=torch_bias_init(p * p * 3),
            name="patch",
        )(images.astype(self.dtype))
        x = x.reshape(batch, -1, w)  # [B, N, W], rows of the grid one after the other

        grid = self.image_size // p
        scale = w**-0.5 if self.position_scale is None else self.position_scale
        table = self.param(
            "position_embedding", normal(scale), (grid * grid + has_token, w), jnp.float32
        )
        positions = resize_grid(table[has_token:], (size[0] // p, size[1] // p), DINO_EXCESS)
        x = x + positions.astype(self.dtype)
        if has_token:
            token = self.param("class_token", init_scale, (w,), jnp.float32) + table[0]
            token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, w))
            x = jnp.concatenate([token, x], axis=1)
        if self.has_norm_pre:
            x = norm("norm_pre", self.dtype)(x)

        x = Transformer(
            self.layers,
            self.heads,
            causal=False,
            activation=self.activation,
            dtype=self.dtype,
            inits=BlockInit(),
            unroll=self.unroll,
            remat=self.remat,
            mlp_dim=self.mlp_dim,
            norm=norm,
            name="transformer",
        )(x, each_patch)
        norm_post = norm("norm_post", self.dtype)
        x = norm_post(x) if self.final_norm and not self.norm_after_pool else x

        tokens = x[..., 1:, :] if has_token else x
        if self.embed_dim is None:
            return tokens, None
        if self.pool == "map":
            head = MapHead(self.heads, self.activation, self.dtype, norm, self.mlp_dim, name="map")
            if each_patch:
                return tokens, head(tokens.reshape(-1, 1, w)).reshape(tokens.shape)
            return tokens, head(tokens)
        if each_patch:
            pooled = tokens
        else:
            pooled = x[:, 0] if self.pool == "cls" else tokens.mean(axis=1)
        pooled = norm_post(pooled) if self.norm_after_pool else pooled
        projection = Head(
            self.embed_dim, use_bias=False, dtype=self.dtype, kernel_init=init_scale, name="proj"
        )
        return tokens, projection(pooled)

    @property
    def token_size(self) -> int:
        return self.patch_size

    @property
    def has_class_token(self) -> bool:
        return self.pool == "cls" if self.class_token is None else self.class_token

    @property
    def has_norm_pre(self) -> bool:
        return self.has_class_token if self.norm_pre is None else self.norm_pre

    @nn.nowrap
    def arguments(self) -> dict:
        return base.arguments(
            self,
            pool=None if self.embed_dim is None else self.pool,
            class_token=self.has_class_token,
            norm_pre=self.has_norm_pre,
            mlp_dim=self.mlp_dim or 4 * self.width,
        )
