"""CatLIP's vision transformer (arXiv 2404.15653): convolutions with BatchNorm in front of a ViT."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vlp.models.layers.activations import gelu
from big_vlp.models.layers.norms import BatchNorm, ChannelFirstLayerNorm, layer_norm
from big_vlp.models.layers.positions import resize_sequence
from big_vlp.models.layers.transformer import BlockInit, Transformer, normal
from big_vlp.models.towers.shared import base

NORM_EPSILON = 1e-6

kaiming_fan_out = jax.nn.initializers.variance_scaling(2, "fan_out", "normal")


class ConvStem(nn.Module):
    """Three strided convolutions, two of them with BatchNorm: an image to a map of tokens.

    Attributes:
      width: of the tokens; inner channels are a quarter of it, at least 32.
      output_stride: 16, or 8 for dense prediction.
    """

    width: int
    output_stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, train: bool):
        """Images [B, H, W', 3] in 0..1 -> map [B, H / stride, W' / stride, width]."""
        if self.output_stride not in (8, 16):
            raise ValueError(f"output_stride={self.output_stride}; choose 8 or 16.")
        if any(size % 16 for size in images.shape[1:3]):
            raise ValueError(f"Image size {images.shape[1:3]} must be a multiple of 16.")
        channels = max(32, self.width // 4)
        conv = functools.partial(nn.Conv, dtype=self.dtype, kernel_init=kaiming_fan_out)
        stride = self.output_stride // 4
        x = conv(
            channels,
            (4, 4),
            strides=(stride, stride),
            padding=((1, 1), (1, 1)),
            use_bias=False,
            name="conv0",
        )(images.astype(self.dtype))
        x = gelu(BatchNorm(self.dtype, name="norm0")(x, train))
        halve = {"kernel_size": (2, 2), "strides": (2, 2), "padding": "VALID"}
        x = conv(channels, **halve, use_bias=False, name="conv1")(x)
        x = gelu(BatchNorm(self.dtype, name="norm1")(x, train))
        return conv(self.width, **halve, name="conv2")(x)


class Tower(base.Tower):
    """The image tower; images are in 0..1, without mean or standard deviation.

    Attributes:
      width, layers, heads, mlp_dim: of the blocks; mlp_dim None is 4x.
      num_positions: entries of the position table; other numbers of tokens interpolate it.
      class_token: False pools the mean of the tokens, as dense tasks do.
      output_stride: pixels per token, 16 or 8.
      final_norm: whether a norm stands behind the blocks.
      channel_first_norm: LayerNorm with the reference's quirk, see `ChannelFirstLayerNorm`.
    """

    width: int
    layers: int
    heads: int
    mlp_dim: int | None = None
    num_positions: int = 196
    class_token: bool = True
    output_stride: int = 16
    final_norm: bool = True
    channel_first_norm: bool = False

    def setup(self):
        kind = ChannelFirstLayerNorm if self.channel_first_norm else None

        def norm(name, dtype):
            if kind is None:
                return layer_norm(name, dtype, NORM_EPSILON)
            return kind(dtype, NORM_EPSILON, name=name)

        self.stem = ConvStem(self.width, self.output_stride, self.dtype)
        self.position_embedding = self.param(
            "position_embedding",
            normal(self.width**-0.5),  # the reference cuts it at 2, more than 50 deviations away
            (self.num_positions, self.width),
            jnp.float32,
        )
        if self.class_token:
            self.cls = self.param("class_token", normal(0.02), (self.width,), jnp.float32)
        self.transformer = Transformer(
            self.layers,
            self.heads,
            causal=False,
            activation="gelu",
            dtype=self.dtype,
            inits=BlockInit(*[normal(0.02)] * 4, mlp_bias=lambda _: nn.initializers.zeros),
            unroll=self.unroll,
            remat=self.remat,
            mlp_dim=self.mlp_dim,
            norm=norm,
        )
        self.norm_post = norm("norm_post", self.dtype)

    @property
    def token_size(self) -> int:
        return self.output_stride

    def prepare(self, images, train: bool = False):
        """Images [B, H, W', 3] in 0..1 -> tokens [B, N, W], row after row, with positions."""
        x = self.stem(images, train)
        x = x.reshape(x.shape[0], -1, self.width)
        # The reference stretches the flattened sequence, not the grid: rows get mixed, and the
        # released weights have learned to live with it.
        return x + resize_sequence(self.position_embedding, x.shape[1]).astype(self.dtype)

    def encode(self, tokens):
        """Tokens of `prepare` -> (tokens [B, N, W], pooled [B, W]), both after the final norm, if
        any."""
        x = tokens
        if self.class_token:
            # The class token has no position.
            cls = jnp.broadcast_to(self.cls.astype(self.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([cls, x], axis=1)
        x = self.transformer(x)
        x = self.norm_post(x) if self.final_norm else x
        return (x[:, 1:], x[:, 0]) if self.class_token else (x, x.mean(axis=1))
