"""Photometric augmentation of uint8 crops on the device.

The host does the geometry and ships uint8; this does what COSMOS (arXiv 2412.01814), like DINO
before it, does to the pixels of a crop: colour jitter, greyscale, Gaussian blur, solarise, then
normalisation. Everything is a pure function of one image and one key, mapped over the batch, so
the result does not depend on how the batch is laid out or sharded.

The operations are torchvision's on float images: pixels in 0..1, clipped after every colour step.
Images are [S, S, 3], RGB.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

BLUR_SIGMA = (0.1, 2.0)  # pixels
BLUR_RADIUS = math.ceil(3 * BLUR_SIGMA[1])
SOLARIZE_THRESHOLD = 128 / 255
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as PIL's "L"


@dataclasses.dataclass(frozen=True)
class Photometric:
    """What happens to the pixels of one kind of crop; a step at 0 is not compiled at all.

    Attributes:
      jitter_prob: probability of the four colour changes below, which come in random order.
      brightness, contrast, saturation: factors are drawn from U[max(0, 1 - x), 1 + x].
      hue: the shift is drawn from U[-x, x], in turns of the colour circle; at most 0.5.
      grey_prob: probability of greyscale (three equal channels).
      blur_prob: probability of a Gaussian blur with sigma from U[0.1, 2.0] pixels.
      solarize_prob: probability of inverting the values from 128 up.
    """

    jitter_prob: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey_prob: float = 0.2
    blur_prob: float = 0.5
    solarize_prob: float = 0.0

    def __post_init__(self):
        for name in ("jitter_prob", "grey_prob", "blur_prob", "solarize_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, not {getattr(self, name)}.")
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be in 0..0.5 turns, not {self.hue}.")

    def apply(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Augments a batch.

        Args:
          images: u8[N, S, S, 3].
          keys: N random keys, one per image (`jax.random.key` style, shape [N]).

        Returns:
          f32[N, S, S, 3] in 0..1.
        """
        return jax.vmap(self._augment)(images, keys)

    def _augment(self, image: jax.Array, key: jax.Array) -> jax.Array:
        # One draw with fixed places: what a step draws does not depend on which others are on.
        draws = jax.random.uniform(key, (13,))
        gates, amounts, order, blur = draws[:4], draws[4:8], draws[8:12], draws[12]
        x = image.astype(jnp.float32) / 255
        if any(self._strengths):
            x = _sometimes(gates[0], self.jitter_prob, lambda x: self._jitter(x, amounts, order), x)
        x = _sometimes(gates[1], self.grey_prob, greyscale, x)
        sigma = BLUR_SIGMA[0] + blur * (BLUR_SIGMA[1] - BLUR_SIGMA[0])
        x = _sometimes(gates[2], self.blur_prob, lambda x: gaussian_blur(x, sigma), x)
        return _sometimes(gates[3], self.solarize_prob, solarize, x)

    def _jitter(self, x: jax.Array, amounts: jax.Array, order: jax.Array) -> jax.Array:
        """Colour changes by `amounts` f32[4] in the order of `order` f32[4], both from U[0, 1).

        Under vmap a switch over the four would run all of them at each place of the order. But
        three are the same blend with another partner, so a place costs one blend and one hue shift.
        """
        strengths = np.array(self._strengths, np.float32)
        centre = np.array([1, 1, 1, 0], np.float32)
        low = np.maximum(centre - strengths, np.array([0, 0, 0, -0.5], np.float32))
        amounts = low + amounts * (centre + strengths - low)
        active = np.flatnonzero(strengths)
        for step in jnp.asarray(active)[jnp.argsort(order[active])]:
            changed = blend(x, step, amounts[step])
            if self.hue:
                changed = jnp.where(step == HUE, adjust_hue(x, amounts[HUE]), changed)
            x = changed
        return x

    @property
    def _strengths(self) -> tuple[float, ...]:
        """Indexed by BRIGHTNESS, CONTRAST, SATURATION, HUE."""
        return self.brightness, self.contrast, self.saturation, self.hue


def normalise(images: jax.Array, mean, std, dtype=jnp.float32) -> jax.Array:
    """(x - mean) / std per channel, computed in float32.

    Args:
      images: [..., 3], u8 or f32 in 0..1.
      mean, std: 3 numbers each, for pixels in 0..1.

    Returns:
      dtype[..., 3].
    """
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    mean, std = (jnp.asarray(x, jnp.float32) for x in (mean, std))
    return ((images - mean) / std).astype(dtype)


def blend(x: jax.Array, step, factor) -> jax.Array:
    """Changes brightness, contrast or saturation: factor * x + (1 - factor) * partner, clipped.

    Args:
      x: f32[S, S, 3] in 0..1.
      step: BRIGHTNESS (the partner is black), CONTRAST (the mean of the grey image) or SATURATION
        (the grey image); may be traced.
      factor: 1 leaves the image as it is.
    """
    luma = _luma(x)
    partner = jnp.where(step == BRIGHTNESS, 0.0, jnp.where(step == CONTRAST, luma.mean(), luma))
    return jnp.clip(factor * x + (1 - factor) * partner, 0, 1)


def adjust_hue(x: jax.Array, turns) -> jax.Array:
    """Shifts the hue of f32[S, S, 3] in 0..1 by a part of the colour circle."""
    value, low = x.max(-1), x.min(-1)
    chroma = value - low
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    unit = jnp.where(chroma > 0, chroma, 1)
    # Not `value == r`: a compiler may compute r twice, and not to the same bit.
    sextant = jnp.where(
        (r >= g) & (r >= b),
        (g - b) / unit,
        jnp.where(g >= b, 2 + (b - r) / unit, 4 + (r - g) / unit),
    )
    sextant = sextant + 6 * turns  # of a grey pixel: any hue, as chroma is 0
    # Back from hue: each channel is a trapezoid over the colour circle, a third of it apart.
    place = jnp.mod(sextant[..., None] + jnp.array([5.0, 3.0, 1.0]), 6)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)


def greyscale(x: jax.Array) -> jax.Array:
    """f32[S, S, 3] -> f32[S, S, 3] with equal channels."""
    return jnp.broadcast_to(_luma(x), x.shape)


def gaussian_blur(x: jax.Array, sigma) -> jax.Array:
    """Blurs f32[S, S, 3] with a Gaussian of `sigma` pixels, at most 2; edge pixels are repeated."""
    offsets = jnp.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    weights = jax.nn.softmax(-0.5 * (offsets / sigma) ** 2)
    for axis in (0, 1):
        size = x.shape[axis]
        pad = [(0, 0)] * x.ndim
        pad[axis] = (BLUR_RADIUS, BLUR_RADIUS)
        padded = jnp.pad(x, pad, mode="edge")
        x = sum(
            weights[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i in range(2 * BLUR_RADIUS + 1)
        )
    return x


def solarize(x: jax.Array) -> jax.Array:
    """Inverts the values of f32 in 0..1 that are at or above 128 / 255."""
    return jnp.where(x >= SOLARIZE_THRESHOLD, 1 - x, x)


def _sometimes(draw, prob, step, x):
    """`step(x)` where `draw`, from U[0, 1), is below `prob`."""
    if prob == 0:
        return x
    if prob == 1:
        return step(x)
    return jnp.where(draw < prob, step(x), x)


def _luma(x):
    """[S, S, 1]; not a matmul, which would run in bfloat16 on TPU."""
    return (x * GREY_WEIGHTS).sum(-1, keepdims=True)
