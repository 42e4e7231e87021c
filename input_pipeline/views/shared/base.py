"""What views are: a record becomes the arrays of one training example."""

import dataclasses
import random

import numpy as np

from input_pipeline.checks import arguments
from input_pipeline.sources import Source

Spec = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclasses.dataclass(kw_only=True, eq=False)
class Views:
    """The base of all views.

    A subclass is such a dataclass, too: its fields are the keys of `config.views`, but for
    `image_size`, `tokenizer`, `context_length` and `image_token_size`, which `config.preprocess`
    decides. It writes `spec`, `__call__` and `texts`. It can be pickled.

    Attributes:
      image_size: side of the images, in pixels.
      num_classes: how many classes the examples tell apart; None without classes.
      vocabulary: the `words.vocabulary.Vocabulary` of these classes, where they are of one.
    """

    num_classes = None
    vocabulary = None

    image_size: int

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        arguments.require_fields(cls, Views)

    def spec(self) -> Spec:
        """name -> (shape, dtype) of one example."""
        raise NotImplementedError

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """The arrays of one example, a function of the record and of what `rng` draws.

        Raises:
          ValueError: the record cannot be used; names it.
        """
        raise NotImplementedError

    def texts(self, batch: dict) -> list[list[str]]:
        """What each example of a batch tells the model beside its images, for people."""
        raise NotImplementedError

    def check_source(self, source: Source) -> None:
        """Raises ValueError where the source's records are of no use, as far as it tells."""
