"""Views of CLIP and SigLIP: one crop and one caption."""

import dataclasses
import random

import numpy as np

from input_pipeline.text import captions
from input_pipeline.text.tokenizers import make_tokenizer
from input_pipeline.views.shared.base import Spec
from input_pipeline.views.shared.crops import CropViews, sample_captions


@dataclasses.dataclass(kw_only=True, eq=False)
class Views(CropViews):
    """One random crop, or the whole image squashed, and one caption.

    Attributes:
      tokenizer: name for `make_tokenizer`.
      context_length: tokens per caption.
      caption_mode: one of `captions.MODES`.

    Raises:
      ValueError: a value is out of range, or the caption mode gives more than one caption.
    """

    tokenizer: str
    context_length: int
    caption_mode: str = "random"
    crop_scale: tuple[float, float] | None = (0.9, 1.0)
    flip_prob: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        captions.check_mode(self.caption_mode, 1)
        self.tokenizer = make_tokenizer(self.tokenizer)

    def spec(self) -> Spec:
        return super().spec() | {"tokens": ((self.context_length,), np.dtype(np.int32))}

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"image": u8[S, S, 3], "tokens": i32[T]}.

        Raises:
          ValueError: the image cannot be decoded, or the caption mode does not fit the record.
        """
        image = self.crop(record, rng)
        texts = sample_captions(record, self.caption_mode, 1, rng)
        return {"image": image, "tokens": self.tokenizer(texts, self.context_length)[0]}

    def texts(self, batch: dict) -> list[list[str]]:
        """What the model reads beside each image of a batch: its caption, as it was cut."""
        return [[self.tokenizer.decode(ids)] for ids in batch["tokens"]]
