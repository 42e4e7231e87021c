"""RangeAugment (arXiv 2212.10553): photometric augmentation whose strength is learned.

Six scalars bound how far brightness, contrast and noise go. A loss pulls the change they make
towards a target that grows over training, so that augmentation starts mild and ends strong.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

# name: ((lowest low, highest low), (lowest high, highest high), initial low, initial high)
RANGES = {
    "brightness": ((0.1, 0.9), (1.1, 10.0), 0.5, 1.5),
    "contrast": ((0.1, 0.9), (1.1, 10.0), 0.5, 1.5),
    "noise": ((0.0, 5e-5), (1e-4, 1.0), 0.0, 0.1),
}
LOSS_SCALE = 100 / 255**2


@dataclasses.dataclass(frozen=True)
class RangeAugment:
    """What is done to images in 0..1 before the tower sees them, in training only.

    Attributes:
      total_steps: length of the curriculum; later steps keep its last target.
      epoch_steps: the target moves once in so many steps, and counts these: 1, or an epoch's.
      start_psnr, end_psnr: the change aimed at, as a peak signal-to-noise ratio in dB.
    """

    total_steps: int
    epoch_steps: int = 1
    start_psnr: float = 40.0
    end_psnr: float = 20.0

    def __post_init__(self):
        if self.total_steps < 1:
            raise ValueError(f"total_steps={self.total_steps}; give the length of the curriculum.")
        if self.epoch_steps < 1:
            raise ValueError(f"epoch_steps={self.epoch_steps}; give 1 or more.")

    def init(self) -> dict:
        """The six parameters {name: {"low", "high"}}, f32 scalars."""
        return {
            name: {"low": jnp.float32(low), "high": jnp.float32(high)}
            for name, (_, _, low, high) in RANGES.items()
        }

    def apply(self, params, images, keys):
        """Augments f32[B, H, W, 3] in 0..1; differentiable with respect to `params`.

        The three operations come in one random order for the whole batch; each changes half of
        the images, by magnitudes drawn from its range.

        Args:
          keys: one random key per image.

        Returns:
          f32[B, H, W, 3] in 0..1.
        """
        # One for each: what is drawn from a key twice is not independent.
        parts = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        of_draws, of_noise, of_order = parts[:, 0], parts[:, 1], parts[0, 2]
        draws = jax.vmap(lambda key: jax.random.uniform(key, (2, len(RANGES))))(of_draws)
        # An image is among the chosen half if fewer than half have drawn less.
        rank = jnp.argsort(jnp.argsort(draws[:, 0], axis=0), axis=0)  # of draws [B, 2, 3]
        chosen = rank < max(1, images.shape[0] // 2)  # [B, 3]
        shares = [
            jnp.where(chosen[:, [op]], share(low + draws[:, 1, op] * (high - low)), UNCHANGED)
            for op, (share, (low, high)) in enumerate(
                (OPERATIONS[name], bounds(params, name)) for name in RANGES
            )
        ]
        shares = jnp.stack(shares)  # [3, B, 3]
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(of_noise)
        for op in jax.random.permutation(of_order, len(RANGES)):
            images = mix(images, shares[op], noise)
        return jnp.clip(images, 0, 1)

    def loss(self, images, augmented, step):
        """Smooth L1 distance of the change, per image, to the target of the step; f32 scalar."""
        change = jnp.square(255 * (augmented - images)).mean(axis=(1, 2, 3))
        distance = jnp.abs(change - self.target(step))
        smooth = jnp.where(distance < 1, distance**2 / 2, distance - 0.5)
        return smooth.mean() * LOSS_SCALE

    def target(self, step):
        """The mean squared error aimed at in a step (0-based), in grey levels squared."""
        start, end = (mean_squared_error(psnr) for psnr in (self.start_psnr, self.end_psnr))
        last = self.total_steps // self.epoch_steps
        progress = jnp.minimum(step // self.epoch_steps, last) / (last + 1)
        return end + (start - end) * (1 + jnp.cos(jnp.pi * progress)) / 2


def mean_squared_error(psnr: float) -> float:
    """Grey levels squared at a peak signal-to-noise ratio in dB."""
    return 10 ** ((20 * math.log10(255) - psnr) / 10)


def bounds(params, name: str):
    """(low, high) of an operation's magnitude, each squashed into its own range."""
    low_range, high_range, _, _ = RANGES[name]
    pairs = ((params[name]["low"], low_range), (params[name]["high"], high_range))
    return tuple(jax.nn.sigmoid(p) * (b - a) + a for p, (a, b) in pairs)


# Each operation on an image is a sum of shares of the image, of its mean per channel, and of noise;
# so the order can be drawn on the device without compiling each operation at each place.
UNCHANGED = np.array([1, 0, 0], np.float32)


def brightness(magnitude):
    """f32[B] -> shares f32[B, 3]; 1 changes nothing."""
    return jnp.stack([magnitude, jnp.zeros_like(magnitude), jnp.zeros_like(magnitude)], axis=1)


def contrast(magnitude):
    """Away from the mean of each channel; 1 changes nothing."""
    return jnp.stack([magnitude, 1 - magnitude, jnp.zeros_like(magnitude)], axis=1)


def noise(magnitude):
    """Gaussian, of standard deviation `magnitude`."""
    return jnp.stack([jnp.ones_like(magnitude), jnp.zeros_like(magnitude), magnitude], axis=1)


OPERATIONS = {"brightness": brightness, "contrast": contrast, "noise": noise}


def mix(images, shares, noise):
    """Images f32[B, H, W, 3], shares f32[B, 3], noise like the images -> images."""
    image, mean, random = (shares[:, i, None, None, None] for i in range(3))
    return image * images + mean * images.mean(axis=(1, 2), keepdims=True) + random * noise
