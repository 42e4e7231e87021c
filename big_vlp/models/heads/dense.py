"""Heads that turn an image tower's map into dense predictions: DeepLabv3 and a feature pyramid."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.models.layers.activations import gelu
from big_vlp.models.layers.axes import outputs
from big_vlp.models.layers.head import Head
from big_vlp.models.layers.network import Network
from big_vlp.models.layers.norms import BatchNorm
from big_vlp.models.layers.positions import linear, resize_weights
from big_vlp.models.towers import Tower
from big_vlp.models.towers.catlip_vit import NORM_EPSILON, kaiming_fan_out

# PyTorch's kaiming_uniform by "fan_out" counts what its kernel of a transposed convolution has
# first, the inputs.
kaiming_transposed = jax.nn.initializers.variance_scaling(2, "fan_in", "uniform")


def bilinear_weights(size_in: int, size_out: int) -> np.ndarray:
    """Weights f32[size_out, size_in] that stretch a line linearly and keep its two ends."""
    return resize_weights(np.linspace(0, size_in - 1, size_out), size_in, linear)


def resize_bilinear(x, rows, columns):
    """Resizes maps with one matrix for each axis, fp32.

    Args:
      x: [B, h, w, C].
      rows, columns: f32[H, h], f32[W, w], as `bilinear_weights` gives them; or some of their rows,
        for a part of the result.

    Returns:
      f32[B, H, W, C].
    """
    product = functools.partial(jnp.einsum, precision="float32")
    # Rows first: the middle is then as narrow as the map.
    return product("xw,bywc->byxc", columns, product("yh,bhwc->bywc", rows, x.astype(jnp.float32)))


class ConvNorm(nn.Module):
    """Convolution that keeps the size, BatchNorm, GELU."""

    channels: int
    kernel_size: int
    rate: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train: bool):
        """[B, h, w, C] -> [B, h, w, channels]."""
        pad = self.rate * (self.kernel_size // 2)
        x = nn.Conv(
            self.channels,
            (self.kernel_size,) * 2,
            padding=((pad, pad),) * 2,
            kernel_dilation=self.rate,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=kaiming_fan_out,
            name="conv",
        )(x)
        return gelu(BatchNorm(self.dtype, name="norm")(x, train))


class DeepLabV3(nn.Module):
    """The segmentation head of arXiv 1706.05587 with GELU: a map at several scales, then classes.

    Attributes:
      num_classes: of the logits.
      channels: of every branch and of what they are joined to.
      rates: dilation of each 3x3 branch, in positions of the map.
      dropout: share of the joined map's channels that training drops, drawn for each image.
    """

    tensor_axes = outputs("classifier", must=False)

    num_classes: int
    channels: int = 512
    rates: tuple[int, ...] = (12, 24, 36)
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        conv = functools.partial(ConvNorm, channels=self.channels, dtype=self.dtype)
        self.point = conv(kernel_size=1, rate=1)
        self.dilated = [conv(kernel_size=3, rate=rate) for rate in self.rates]
        self.pool = conv(kernel_size=1, rate=1)
        self.project = conv(kernel_size=1, rate=1)
        # Axes 1 and 2: a channel is dropped everywhere or nowhere.
        self.drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2))
        self.classifier = Head(
            self.num_classes, dtype=self.dtype, kernel_init=kaiming_fan_out, window=(1, 1)
        )

    def features(self, x, train: bool = False):
        """Map [B, h, w, C] -> joined branches [B, h, w, channels], before the dropout."""
        mean = self.pool(x.mean(axis=(1, 2), keepdims=True), train)
        branches = [self.point(x, train), *(branch(x, train) for branch in self.dilated)]
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        return self.project(jnp.concatenate(branches, axis=-1), train)

    def __call__(self, x, train: bool = False):
        """Map [B, h, w, C] -> logits f32[B, h, w, num_classes]; training needs a "dropout" key."""
        x = self.drop(self.features(x, train), deterministic=not train)
        return self.classifier(x)


class Segmenter(Network):
    """An image tower and a head on its map.

    Attributes:
      tower: the image tower; `prepare` and `decode` are the two halves of a call.
      head: a `DeepLabV3`.
    """

    tower: Tower
    head: nn.Module

    @property
    def dtype(self):
        return self.tower.dtype

    def prepare(self, images, train: bool = False):
        return self.tower.prepare(images, train)

    def decode(self, x, size: tuple[int, int], train: bool = False):
        """What `prepare` gives, of images of `size` (height, width) -> logits f32[B, h, w, C]."""
        tokens, _ = self.tower.encode(x)
        return self.head(as_map(tokens, size, self.tower.token_size), train)

    def __call__(self, images, train: bool = False):
        """Images [B, H, W', 3] in 0..1 -> logits f32[B, H / stride, W' / stride, classes]."""
        return self.decode(self.prepare(images, train), images.shape[1:3], train)


class SimpleFPN(nn.Module):
    """Maps at four scales from one (arXiv 2203.16527), as CatLIP's detectors take them."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """The map of stride 16, [B, h, w, W] -> {"l2", "l3", "l4", "l5"}: strides 4, 8, 16, 32.

        They have W / 4, W / 2, W and W channels; an odd last row or column is not in "l5".
        """
        width = x.shape[-1]
        double = functools.partial(
            nn.ConvTranspose,
            kernel_size=(2, 2),
            strides=(2, 2),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=kaiming_transposed,
        )
        y = ChannelNorm(self.dtype, name="l2_norm")(double(width // 2, name="l2_up0")(x))
        return {
            "l2": double(width // 4, name="l2_up1")(gelu(y)),
            "l3": double(width // 2, name="l3_up")(x),
            "l4": x,
            "l5": nn.max_pool(x, (2, 2), strides=(2, 2)),
        }


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map that divides by (std + epsilon), as released weights."""

    dtype: jnp.dtype
    epsilon: float = NORM_EPSILON

    @nn.compact
    def __call__(self, x):
        """[B, h, w, C] -> [B, h, w, C]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        # The root's gradient at 0 is infinite; of a constant map only the value counts.
        std = jnp.sqrt(jnp.where(variance > 0, variance, 1)) * (variance > 0)
        return (centred / (std + self.epsilon) * scale + bias).astype(self.dtype)


class Pyramid(Network):
    """An image tower and `SimpleFPN`: the backbone of a detector.

    Attributes:
      tower: an image tower with tokens of 16 pixels.
    """

    tower: Tower

    @property
    def dtype(self):
        return self.tower.dtype

    def setup(self):
        self.fpn = SimpleFPN(self.tower.dtype)

    def __call__(self, images, train: bool = False):
        """Images [B, H, W', 3] in 0..1 -> (maps of `SimpleFPN`, mean of the tokens [B, W])."""
        if self.tower.token_size != 16:
            raise ValueError(f"SimpleFPN needs tokens of 16 pixels, not {self.tower.token_size}.")
        tokens, pooled = self.tower(images, train)
        return self.fpn(as_map(tokens, images.shape[1:3], 16)), pooled


def as_map(tokens, size: tuple[int, int], stride: int):
    """Tokens [B, N, W] of images of `size` (height, width) -> [B, height / stride, ..., W]."""
    return tokens.reshape(len(tokens), size[0] // stride, size[1] // stride, tokens.shape[-1])
