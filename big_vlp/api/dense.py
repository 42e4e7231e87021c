"""The classes of an image's pixels that are only named, by a model of images and texts."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np

from big_vlp.api.images import read
from evaluators.maps.zeroshot_segmentation import resized
from evaluators.pairs.zeroshot import is_copy
from evaluators.shared.dense import Rule, label_map
from evaluators.shared.windows import windows
from input_pipeline.images.crops import decode


def label_maps(
    run: Callable[[Sequence[np.ndarray]], Iterator[np.ndarray]],
    images: Sequence[Any],
    names: np.ndarray,
    rule: Rule,
    window: int,
    correlative: bool,
) -> list[np.ndarray]:
    """The class of every pixel, i32[H, W] for each image at its own size.

    Args:
      run: windows u8[S, S, 3] -> features of their patches, f32[2, h, w, D] of each.
      images: see `api.images`.
      names: f32[D, names], unit columns.
      rule: what decides.
      window: S; images have one and a half of it on their shorter sides, and windows overlap by
        half.
      correlative: which of the two features.
    """
    found = []
    for number, image in enumerate(images):
        pixels = read(image, number, decode)
        size, stride = resized(pixels.shape[:2], window * 3 // 2, window), window // 2
        pixels_there = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
        cut = [
            pixels_there[top : top + window, left : left + window]
            for _, top, left in windows(0, size, window, stride)
        ]
        maps = [jnp.asarray(_similarities(patches, names)) for patches in run(cut)]
        output = pixels.shape[:2]
        found.append(label_map(maps, int(correlative), size, output, window, stride, rule))
    return found


def _similarities(patches: np.ndarray, names: np.ndarray) -> np.ndarray:
    """f32[2, h, w, D] -> f32[2, names, h, w]."""
    return np.moveaxis(patches @ names, -1, 1)


def rule_of(classes: Sequence[Sequence[str]], logit_scale: float) -> Rule:
    """Each pixel is of the class of the most probable name; names are those of all classes."""
    class_of = tuple(number for number, names in enumerate(classes) for _ in names)
    copies = is_copy([name for names in classes for name in names])
    return Rule(class_of, tuple(copies.tolist()), logit_scale)
