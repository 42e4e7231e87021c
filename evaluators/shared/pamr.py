"""Pixel-adaptive mask refinement (arXiv 2005.08104): scores follow the edges of an image."""

import jax
import jax.numpy as jnp

DILATIONS = (8, 16)
_NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def refine(scores, image, size, steps: int, dilations=DILATIONS):
    """Each pixel takes, `steps` times, the mean of its neighbours' scores, weighted by how alike
    they look.

    The neighbours are the eight of a square, once for each dilation; beyond the border is the
    border. Alike is exp(-difference / (a tenth of the standard deviation of the colours around)),
    the exponent averaged over the channels and the weights normalised.

    Args:
      scores: f32[K, H, W].
      image: f32[H, W, C].
      size: (height, width) of what counts; the rest of the arrays is padding.
      steps: 0 or more.
      dilations: distances of the neighbours, in pixels.

    Returns:
      f32[K, H, W].
    """
    around = jnp.stack([_shifted(image, size, 0, *n) for n in _offsets(dilations)])
    centres = jnp.broadcast_to(image, (len(dilations), *image.shape))
    spread = jnp.concatenate([around, centres]).std(axis=0, ddof=1)
    alike = -jnp.abs(around - image) / (1e-8 + 0.1 * spread)
    weights = jax.nn.softmax(alike.mean(axis=-1), axis=0)  # [neighbours, H, W]

    def step(_, scores):
        shifted = (_shifted(scores, size, 1, *n) for n in _offsets(dilations))
        return sum(weight * neighbour for weight, neighbour in zip(weights, shifted))

    return jax.lax.fori_loop(0, steps, step, scores)


def _offsets(dilations):
    return [(y * d, x * d) for d in dilations for y, x in _NEIGHBOURS]


def _shifted(x, size, axis: int, down: int, right: int):
    """What lies so far from each pixel of the axes `axis` and `axis` + 1."""
    for place, (length, offset) in enumerate(zip(size, (down, right)), axis):
        indices = jnp.clip(jnp.arange(x.shape[place]) + offset, 0, length - 1)
        x = jnp.take(x, indices, axis=place)
    return x
