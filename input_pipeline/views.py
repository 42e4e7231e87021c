"""Views: one record -> the arrays of one training example (geometry and tokens, on the host).

Colour jitter, greyscale, blur, solarise and normalisation run on the device, over whole batches;
images leave here as uint8.
"""

import importlib
import random
from collections.abc import Sequence

import numpy as np

from input_pipeline import arguments, captions, images
from input_pipeline.tokenizers import make_tokenizer

VIEWS = {
    "clip": ("input_pipeline.views", "ClipViews"),
    "cosmos": ("input_pipeline.views", "CosmosViews"),
    "catlip": ("input_pipeline.label_views", "CatlipViews"),
    "labels": ("input_pipeline.label_views", "LabelViews"),
    "segmentation": ("input_pipeline.mask_views", "SegmentationViews"),
    "cogvlm": ("input_pipeline.cogvlm_views", "CogvlmViews"),
}
Spec = dict[str, tuple[tuple[int, ...], np.dtype]]


def make_views(name: str, **kwargs):
    """The views of that name, built with `kwargs`.

    Views are `views(record, rng) -> {name: array}`, with `spec()` of these arrays, `texts(batch)`
    for people, and `num_classes` where they decide it, else None.

    Raises:
      ValueError: the name is unknown.
      ArgumentError: the class does not take one of the keywords, or lacks one.
    """
    if name not in VIEWS:
        raise ValueError(arguments.unknown("views", name, VIEWS))
    module, kind = VIEWS[name]
    return arguments.call("", getattr(importlib.import_module(module), kind), kwargs)


class ClipViews:
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
        texts = _sample_captions(record, self.caption_mode, 1, rng)
        return {"image": image, "tokens": self.tokenizer(texts, self.context_length)[0]}

    def texts(self, batch: dict) -> list[list[str]]:
        """What the model reads beside each image of a batch: its caption, as it was cut."""
        return [[self.tokenizer.decode(ids)] for ids in batch["tokens"]]


class CosmosViews:
    """The global and local views of COSMOS (arXiv 2412.01814, section 3.2): multi-crop images, and
    captions made of sampled sentences, drawn independently of the crops.

    Args:
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

    def __init__(
        self,
        image_size: int,
        tokenizer: str,
        context_length: int,
        local_size: int = 96,
        num_global: int = 2,
        num_local: int = 6,
        crop_scale: float = 0.4,
        min_local_scale: float = 0.05,
        caption_mode: str = "textcrop",
        num_captions: int = 8,
        flip_prob: float = 0.5,
    ):
        captions.check_mode(caption_mode, num_captions)
        if num_captions < 2:
            raise ValueError(f"COSMOS needs two global captions; num_captions is {num_captions}.")
        if num_global < 1 or num_local < 0:
            raise ValueError(
                f"COSMOS needs at least one global crop and no negative number of local ones, got "
                f"num_global={num_global}, num_local={num_local}."
            )
        if caption_mode.startswith("textcrop") and num_global != 2:
            raise ValueError(
                f"Caption mode {caption_mode!r} makes two global captions, to pair with two global "
                f"crops; num_global is {num_global}."
            )
        self.tokenizer = make_tokenizer(tokenizer)
        self.context_length = context_length
        self.image_size, self.local_size = image_size, local_size
        self.num_global, self.num_local = num_global, num_local
        self.global_scale = checked_scale((crop_scale, 1.0))
        self.local_scale = checked_scale((min_local_scale, crop_scale))
        self.caption_mode = caption_mode
        self.num_captions = num_captions
        self.flip_prob = checked_probability(flip_prob)

    num_classes = None  # text is free

    def spec(self) -> Spec:
        """name -> (shape, dtype) of one example."""
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
        crops = crops_of(record, views, self.flip_prob, rng)
        local_shape = (self.num_local, self.local_size, self.local_size, 3)
        texts = _sample_captions(record, self.caption_mode, self.num_captions, rng)
        return {
            "global_images": np.stack(crops[: self.num_global]),
            # Not np.stack: there may be no local crop.
            "local_images": np.array(crops[self.num_global :], np.uint8).reshape(local_shape),
            "tokens": self.tokenizer(texts, self.context_length),
        }

    def texts(self, batch: dict) -> list[list[str]]:
        """What the model reads beside the images of each example: its captions, as cut."""
        return [[self.tokenizer.decode(ids) for ids in example] for example in batch["tokens"]]


def crops_of(
    record: dict,
    views: Sequence[tuple[int, tuple[float, float] | None]],
    flip_prob: float,
    rng: random.Random,
) -> list[np.ndarray]:
    """Random crops of a record's image, see `images.random_crops`; an error names the record."""
    try:
        return images.random_crops(record["image"], views, flip_prob, rng)
    except ValueError as error:
        raise ValueError(
            f"Record {record['id']!r}: {error}. Drop broken images by preparing the data "
            "with `python -m input_pipeline.prepare`."
        ) from error


def _sample_captions(record: dict, mode: str, k: int, rng: random.Random) -> list[str]:
    try:
        return captions.sample_captions(record["captions"], mode, k, rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Record {record['id']!r}: {error}") from error


def checked_scale(scale: tuple[float, float]) -> tuple[float, float]:
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"A crop scale is a range of area shares within (0, 1], got {scale}.")
    return low, high


def checked_probability(p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"flip_prob is a probability, got {p}.")
    return p
