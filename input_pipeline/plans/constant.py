"""The same image size and batch in every step."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Plan:
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
