"""What plans have in common."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Plan:
    """The base of plans; the fields that a subclass adds are the keys of `config.plan`.

    Attributes:
      image_size: that of the model, in pixels.
      global_batch: examples of a step over all processes, at this size.
      total_steps, seed: of the run.
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
        raise NotImplementedError
