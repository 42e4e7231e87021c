"""An image size drawn for each step, with a batch to match."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from input_pipeline.plans.shared import base


@dataclasses.dataclass(frozen=True)
class Plan(base.Plan):
    """Each step draws an image size; its batch has about as many pixels as every other.

    The variable batch sampler of CatLIP (arXiv 2404.15653, appendix): the batch is `global_batch`
    at `image_size` and falls with the area of the image. Draws depend on (seed, step) alone.

    Attributes:
      sizes: the image sizes, in pixels.
      batch_multiple: batches are rounded down to a multiple of it. It belongs to the run, not to
        the machine: give the largest number of devices that the run shall ever use.
    """

    sizes: Sequence[int]
    batch_multiple: int

    def __post_init__(self):
        sizes = tuple(self.sizes)
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise ValueError(f"sizes={sizes}: give each image size once, in pixels.")
        if not 1 <= self.batch_multiple <= self.global_batch:
            raise ValueError(
                f"batch_multiple={self.batch_multiple} must lie in 1..global_batch "
                f"({self.global_batch})."
            )

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(size, self._batch(size)) for size in self.sizes]

    def __call__(self, step: int) -> tuple[int, int, int]:
        drawn, first = self._schedule
        size = self.sizes[drawn[step]]
        return size, self._batch(size), int(first[step])

    def _batch(self, size: int) -> int:
        multiples = self.global_batch / self.batch_multiple * self.image_size**2 / size**2
        return max(1, int(round(multiples, 2))) * self.batch_multiple

    @functools.cached_property
    def _schedule(self) -> tuple[np.ndarray, np.ndarray]:
        """i64[total_steps]: number of the size drawn at each step, and examples before it."""
        # One stream of doubles: a longer run begins like a shorter one.
        uniform = np.random.default_rng(self.seed).random(self.total_steps)
        drawn = (uniform * len(self.sizes)).astype(np.int64)
        batches = np.array([batch for _, batch in self.shapes])[drawn]
        return drawn, np.cumsum(batches) - batches


def catlip_sizes(smallest: int, largest: int, count: int, base: int, multiple: int) -> tuple:
    """Image sizes of a variable plan: `count` evenly spaced ones and `base`, rounded to `multiple`.

    128..320 in 25 steps around 224, rounded to 16, gives the 13 sizes of CatLIP's pretraining.
    """
    values = [*np.linspace(smallest, largest, count), base]
    rounded = {max(multiple, int(value + multiple / 2) // multiple * multiple) for value in values}
    return tuple(sorted(rounded))
