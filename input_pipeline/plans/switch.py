"""One image size, and another from some step on."""

import dataclasses

from input_pipeline.plans.shared import base


@dataclasses.dataclass(frozen=True)
class Plan(base.Plan):
    """A run that begins with other images than it ends with, such as CogVLM's second stage.

    Attributes:
      first_size: the image size before `at_step`, in pixels.
      at_step: the first step with `image_size`.
    """

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
        return [(self.first_size, self.global_batch), (self.image_size, self.global_batch)]

    def __call__(self, step: int) -> tuple[int, int, int]:
        size = self.first_size if step < self.at_step else self.image_size
        return size, self.global_batch, step * self.global_batch
