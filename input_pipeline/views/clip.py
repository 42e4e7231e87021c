"""Views of CLIP and SigLIP: one crop and one caption."""

import random

import numpy as np

from input_pipeline.text import captions
from input_pipeline.text.tokenizers import make_tokenizer
from input_pipeline.views.shared.crops import (
    Spec,
    checked_probability,
    checked_scale,
    crops_of,
    sample_captions,
)


class Views:
    """One random crop, or the whole image squashed, and one caption.

    Args:
      image_size: side of the crop, in pixels.
      tokenizer: name for `make_tokenizer`.
      context_length: tokens per caption.
      caption_mode: one of `captions.MODES`.
      crop_scale: range of the crop's share of the image's area; None squashes the whole image.
      flip_prob: probability of a horizontal flip.

    Raises:
      ValueError: a value is out of range, or the caption mode gives more than one caption.
    """

    def __init__(
        self,
        image_size: int,
        tokenizer: str,
        context_length: int,
        caption_mode: str = "random",
        crop_scale: tuple[float, float] | None = (0.9, 1.0),
        flip_prob: float = 0.0,
    ):
        captions.check_mode(caption_mode, 1)
        self.image_size = image_size
        self.tokenizer = make_tokenizer(tokenizer)
        self.context_length = context_length
        self.caption_mode = caption_mode
        self.crop_scale = None if crop_scale is None else checked_scale(crop_scale)
        self.flip_prob = checked_probability(flip_prob)

    num_classes = None  # text is free

    def spec(self) -> Spec:
        """name -> (shape, dtype) of one example."""
        s, t = self.image_size, self.context_length
        return {"image": ((s, s, 3), np.dtype(np.uint8)), "tokens": ((t,), np.dtype(np.int32))}

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"image": u8[S, S, 3], "tokens": i32[T]}.

        Raises:
          ValueError: the image cannot be decoded, or the caption mode does not fit the record.
        """
        (image,) = crops_of(record, [(self.image_size, self.crop_scale)], self.flip_prob, rng)
        texts = sample_captions(record, self.caption_mode, 1, rng)
        return {"image": image, "tokens": self.tokenizer(texts, self.context_length)[0]}

    def texts(self, batch: dict) -> list[list[str]]:
        """What the model reads beside each image of a batch: its caption, as it was cut."""
        return [[self.tokenizer.decode(ids)] for ids in batch["tokens"]]
