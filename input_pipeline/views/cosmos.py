"""Views of COSMOS: global and local crops, and captions of sampled sentences."""

import dataclasses
import random

import numpy as np

from input_pipeline.text import captions
from input_pipeline.text.tokenizers import make_tokenizer
from input_pipeline.views.shared import base
from input_pipeline.views.shared.crops import (
    check_probability,
    checked_scale,
    crops_of,
    sample_captions,
)


@dataclasses.dataclass(kw_only=True, eq=False)
class Views(base.Views):
    """The global and local views of COSMOS (arXiv 2412.01814, section 3.2): multi-crop images, and
    captions made of sampled sentences, drawn independently of the crops.

    Attributes:
      image_size, local_size: sides of the global and the local crops, in pixels.
      tokenizer: name for `make_tokenizer`.
      context_length: tokens per caption, the same for global and local ones.
      num_global, num_local: image crops of each kind.
      crop_scale: the share of the image's area that divides the two kinds: global crops take
        (crop_scale, 1), local ones (min_local_scale, crop_scale).
      min_local_scale: see crop_scale.
      caption_mode: one of `captions.MODES`.
      num_captions: captions per image; the first two are the global ones.
      flip_prob: probability of a horizontal flip, drawn for each crop.

    Raises:
      ValueError: a value is out of range, or the caption mode cannot give `num_captions` captions.
    """

    tokenizer: str
    context_length: int
    local_size: int = 96
    num_global: int = 2
    num_local: int = 6
    crop_scale: float = 0.4
    min_local_scale: float = 0.05
    caption_mode: str = "textcrop"
    num_captions: int = 8
    flip_prob: float = 0.5

    def __post_init__(self):
        captions.check_mode(self.caption_mode, self.num_captions)
        if self.num_captions < 2:
            raise ValueError(
                f"COSMOS needs two global captions; num_captions is {self.num_captions}."
            )
        if self.num_global < 1 or self.num_local < 0:
            raise ValueError(
                f"COSMOS needs at least one global crop and no negative number of local ones, got "
                f"num_global={self.num_global}, num_local={self.num_local}."
            )
        if self.caption_mode.startswith("textcrop") and self.num_global != 2:
            raise ValueError(
                f"Caption mode {self.caption_mode!r} makes two global captions, to pair with two "
                f"global crops; num_global is {self.num_global}."
            )
        self.tokenizer = make_tokenizer(self.tokenizer)
        self.global_scale = checked_scale((self.crop_scale, 1.0))
        self.local_scale = checked_scale((self.min_local_scale, self.crop_scale))
        check_probability(self.flip_prob)

    def spec(self) -> base.Spec:
        g, s = self.image_size, self.local_size
        return {
            "global_images": ((self.num_global, g, g, 3), np.dtype(np.uint8)),
            "local_images": ((self.num_local, s, s, 3), np.dtype(np.uint8)),
            "tokens": ((self.num_captions, self.context_length), np.dtype(np.int32)),
        }

    def __call__(self, record: dict, rng: random.Random) -> dict[str, np.ndarray]:
        """Returns {"global_images": u8[V_g, S_g, S_g, 3], "local_images": u8[V_l, S_l, S_l, 3],
        "tokens": i32[C, T]}.

        Raises:
          ValueError: the image cannot be decoded, or the caption mode does not fit the record.
        """
        views = [(self.image_size, self.global_scale)] * self.num_global
        views += [(self.local_size, self.local_scale)] * self.num_local
        spec = self.spec()
        made = {name: np.empty(*spec[name]) for name in ("global_images", "local_images")}
        places = [place for images in made.values() for place in images]
        crops_of(record, views, self.flip_prob, rng, places)
        texts = sample_captions(record, self.caption_mode, self.num_captions, rng)
        return {**made, "tokens": self.tokenizer(texts, self.context_length)}

    def texts(self, batch: dict) -> list[list[str]]:
        """What the model reads beside the images of each example: its captions, as cut."""
        return [[self.tokenizer.decode(ids) for ids in example] for example in batch["tokens"]]
