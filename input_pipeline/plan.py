"""Which image size and how many examples each step of a run has, as a function of the step."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from input_pipeline.checks import arguments


def make_plan(name: str, **kwargs) -> "Constant | Switch | Variable":
    """The plan of that name, "constant", "switch" or "variable", built with `kwargs`.

    Raises:
      ValueError: the name is unknown, or an argument is out of range.
      ArgumentError: the plan does not take one of the arguments, or lacks one.
    """
    plans = {"constant": Constant, "switch": Switch, "variable": Variable}
    if name not in plans:
        raise ValueError(arguments.unknown("plan", name, plans))
    return arguments.call("", plans[name], kwargs)


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same size and batch in every step.

    Attributes:
      image_size: in pixels.
      global_batch: examples of a step over all processes.
      total_steps, seed: of the run; not needed here.
    """

    image_size: int
    global_batch: int
    total_steps: int
    seed: int

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The (image size, global batch) that occur; each is compiled once."""
        return [(self.image_size, self.global_batch)]

    def __call__(self, step: int) -> tuple[int, int, int]:
        """(image size, global batch, position of the first example) of a step."""
        return self.image_size, self.global_batch, step * self.global_batch


@dataclasses.dataclass(frozen=True)
class Switch:
    """A run that begins with other images than it ends with, such as CogVLM's second stage.

    Attributes:
      image_size: in pixels, from step `at_step` on.
      global_batch: examples of a step over all processes.
      total_steps, seed: of the run; the seed is not needed here.
      first_size: the image size before `at_step`, in pixels.
      at_step: the first step with `image_size`.
    """

    image_size: int
    global_batch: int
    total_steps: int
    seed: int
    first_size: int
    at_step: int

    def __post_init__(self):
        if self.first_size < 1 or self.first_size == self.image_size:
            raise ValueError(
                f"first_size={self.first_size}: give a size in pixels other than image_size "
                f"({self.image_size})."
            )
        if not 0 < self.at_step < self.total_steps:
            raise ValueError(
                f"at_step={self.at_step} must lie within the run's {self.total_steps} steps."
            )

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The (image size, global batch) that occur; each is compiled once."""
        return [(self.first_size, self.global_batch), (self.image_size, self.global_batch)]

    def __call__(self, step: int) -> tuple[int, int, int]:
        """(image size, global batch, position of the first example) of a step."""
        size = self.first_size if step < self.at_step else self.image_size
        return size, self.global_batch, step * self.global_batch


@dataclasses.dataclass(frozen=True)
class Variable:
    """Each step draws an image size; its batch has about as many pixels as every other.

    The variable batch sampler of CatLIP (arXiv 2404.15653, appendix): the batch is `global_batch`
    at `image_size` and falls with the area of the image. Draws depend on (seed, step) alone.

    Attributes:
      image_size, global_batch: the size at which the batch is `global_batch`.
      total_steps: of the run.
      seed: of the draws.
      sizes: the image sizes, in pixels.
      batch_multiple: batches are rounded down to a multiple of it. It belongs to the run, not to
        the machine: give the largest number of devices that the run shall ever use.
    """

    image_size: int
    global_batch: int
    total_steps: int
    seed: int
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
        """The (image size, global batch) that occur; each is compiled once."""
        return [(size, self._batch(size)) for size in self.sizes]

    def __call__(self, step: int) -> tuple[int, int, int]:
        """(image size, global batch, position of the first example) of a step."""
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
