"""Zero-shot segmentation: each pixel goes to the class whose prompts are nearest to its patch.

By SCLIP's protocol (arXiv 2312.01597), which COSMOS takes (arXiv 2412.01814): the image is resized
and cut into overlapping windows of the model's size; the similarities of patches and names are
stretched to pixels, averaged where windows overlap, and stretched to the mask. A class has the
largest probability of its names.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.parallel import meshes
from evaluators.datasets import tables
from evaluators.pairs.zeroshot import check_names, check_templates, is_copy, zeroshot_weights
from evaluators.shared.dense import Rule, label_map
from evaluators.shared.pixels import count_pixels, metrics, sparse, summed
from evaluators.shared.rows import RowMap, gather_rows, replicate
from evaluators.shared.sharing import once
from evaluators.shared.towers import TowersEvaluator
from evaluators.shared.windows import dealt, stretched, windows
from input_pipeline.checks.fields import mask_of
from input_pipeline.images.crops import decode
from input_pipeline.records import naming

MAX_LONG_SIDE = 2048
WAYS = ("", "correlative_")


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(TowersEvaluator):
    """Yields `mean_iou`, `pixel_accuracy`, their `_baseline`, and `num_classes_present`, as the
    evaluator `segmentation`; and `correlative_mean_iou` and `correlative_pixel_accuracy`, with
    correlative self-attention in the last block.

    A name that several classes have stands for the first of them; a pixel with another tie, or NaN,
    is given to no class.

    Attributes:
      data: its records have `mask`, integers [H, W] of the image's size: 0 where a pixel does not
        count, 1 + class elsewhere.
      class_names: the names of class 0, 1, ..., each a string or several; or the name of a
        published list, see `datasets.tables.segmentation_classes`. By default those of the source.
      templates: prompts with `{}` in the place of a name, or the name of published ones, see
        `datasets.tables.templates`; a name is the mean of all.
      image_side: pixels of the shorter side of the resized images, no less than the model's
        image size; the longer has at most 2048, but for images so long that no window would fit.
      stride: pixels from one window to the next, no more than a window; None is half of one.
      logit_scale: factor of the similarities, whose softmax over all names are the probabilities.
      probability_threshold: a pixel whose class is less probable is given to class 0, the
        background.
      area_threshold: classes but the background with no more than this share of the image's pixels
        that are not background are taken away; None keeps all.
      pamr_steps: rounds of `shared.pamr.refine`; 0 does without. They need the similarities of all
        names with all pixels of an image at once, 4 bytes each, several times.
      batch_size: windows on all devices together.

    Raises:
      ValueError: no masks, no class names or names that look like ids, no such list, a template
        without `{}`, or images smaller than a window.
    """

    needs = ("encode_patches", "encode_text")

    class_names: Sequence[str | Sequence[str]] | str | None = None
    templates: Sequence[str] | str = "imagenet1k"
    image_side: int = 336
    stride: int | None = None
    logit_scale: float = 40.0
    probability_threshold: float = 0.0
    area_threshold: float | None = None
    pamr_steps: int = 0
    batch_size: int = 64

    def __post_init__(self):
        super().__post_init__()
        self._window = self.preprocess.image_size
        if self.image_side < self._window:
            raise ValueError(
                f"image_side={self.image_side} must be at least the model's image size, "
                f"{self._window}."
            )
        self._stride = self.stride or self._window // 2
        if self._stride > self._window:
            raise ValueError(
                f"stride={self._stride} must be at most the model's image size, {self._window}: "
                "pixels between windows would have no class."
            )
        classes = self._classes()
        names = [name for names in classes for name in names]
        templates = self.templates
        if isinstance(templates, str):
            templates = tables.templates(templates)
        check_templates(templates)
        self._num_classes, self._num_names = len(classes), len(names)
        self._prompts = tuple(t.replace("{}", name) for name in names for t in templates)
        self._rule = Rule(
            tuple(number for number, names in enumerate(classes) for _ in names),
            tuple(is_copy(names).tolist()),
            self.logit_scale,
            self.probability_threshold,
            self.area_threshold,
            self.pamr_steps,
        )
        self._similarities = RowMap(_similarities(self.predict_fns["encode_patches"]), self.mesh)
        self._sizes: list | None = None
        self._loaded(0)  # fail now, not after training

    def _classes(self) -> list[tuple[str, ...]]:
        """The names of each class."""
        given = self.class_names
        if isinstance(given, str):
            return list(tables.segmentation_classes(given))
        if given is None:
            given = self.source.class_names
        if not given:
            raise ValueError(f"The source {self.data['name']!r} names no classes; set class_names.")
        classes = [(names,) if isinstance(names, str) else tuple(names) for names in given]
        check_names([name for names in classes for name in names or ("",)], given=False)
        return classes

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises BrokenRecordError where a mask does not fit its image or the classes."""
        key = "zeroshot", self._num_names, self._prompts
        names = once(
            model,
            key,
            lambda: zeroshot_weights(self.encode_texts(model, self._prompts), self._num_names),
        )
        count = len(self.source)
        cut = [
            windows(image, size, self._window, self._stride)
            for image, size in enumerate(self._all_sizes())
        ]
        parts = meshes.batch_parts(self.mesh)
        rows = -(-self.batch_size // parts)
        order = dealt(cut, parts, rows)
        loaded = _Once(self._loaded)

        def load(row):
            window = order[row]
            if window is None:
                return {"image": np.zeros((self._window, self._window, 3), np.uint8)}
            image, _ = loaded(window.image)
            side = slice(window.top, window.top + self._window)
            return {"image": image[side, window.left : window.left + self._window]}

        found, counts = {}, {}
        params = model, replicate(names, self.mesh)
        for row, maps in self._similarities.local(params, load, len(order), rows * parts):
            if order[row] is None:
                continue
            image = order[row].image
            found.setdefault(image, []).append(maps)
            if len(found[image]) == len(cut[image]):
                maps = found.pop(image)
                counts[image] = self._counted(maps, *loaded.pop(image))
        of_images = gather_rows(counts, count)
        for number, way in enumerate(WAYS):
            total = summed([ways[number] for ways in of_images], self._num_classes)
            for name, value in metrics(*total):
                if not way or not name.endswith(("_baseline", "_present")):
                    yield way + name, value

    def _loaded(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """The resized image u8[h, w, 3] and the mask [H, W] of a record."""
        record = self.source[row]
        mask = mask_of(record, self._num_classes)
        with naming(record):
            image = decode(record["image"])
        if image.shape[:2] != mask.shape:
            raise ValueError(
                f"Record {record['id']!r}: the mask of an image of {image.shape[:2]} pixels is of "
                f"that shape, not of {mask.shape}."
            )
        height, width = resized(mask.shape, self.image_side, self._window)
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), mask

    def _all_sizes(self) -> list[list[int]]:
        """[height, width] of each resized image; read once, each by one host."""
        if self._sizes is None:

            def load(row):
                return {"size": np.array(self._loaded(row)[0].shape[:2], np.int32)}

            sizes = RowMap(lambda _, batch: batch["size"], self.mesh)
            self._sizes = sizes(None, load, len(self.source), self.batch_size).tolist()
        return self._sizes

    def _counted(self, maps: list[jax.Array], image, mask) -> list:
        """Pixels of each class, for each way, as `sparse`."""
        size = image.shape[:2]
        guide = None
        if self.pamr_steps:
            guide = resized_bilinear(image.astype(np.float32), mask.shape)
        labels = (
            label_map(maps, way, size, mask.shape, self._window, self._stride, self._rule, guide)
            for way in range(len(WAYS))
        )
        return [sparse(count_pixels(mask, label, self._num_classes)) for label in labels]


def resized(size: Sequence[int], side: int, least: int) -> tuple[int, int]:
    """(height, width) of an image of `size` with a shorter side of `side` pixels and a longer one
    of at most `MAX_LONG_SIDE`; never with a side below `least`."""
    scale = min(side / min(size), MAX_LONG_SIDE / max(size))
    scale = max(scale, least / min(size))
    height, width = (max(least, int(length * scale + 0.5)) for length in size)
    return height, width


def resized_bilinear(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """f32[h, w, C] -> f32[*size, C], bilinear, half-pixel centres, no antialiasing."""
    rows, columns = (
        stretched(a, b).astype(np.float32) for a, b in zip(image.shape[:2], size, strict=True)
    )
    lines = np.tensordot(rows, image, 1)  # [H, w, C]
    return np.moveaxis(np.tensordot(columns, lines, (1, 1)), 0, 1)


def _similarities(encode_patches):
    """The predict function as `RowMap` calls it: u8[B, S, S, 3] -> f32[B, 2, names, h, w]."""

    def fn(params, batch):
        model, names = params  # [D, names]
        patches = encode_patches(model, batch)
        return jnp.einsum("bkhwd,dn->bknhw", patches, names, precision="highest")

    return fn


class _Once:
    """`make(key)`, made once until it is popped, whichever threads ask for it."""

    def __init__(self, make: Callable[[int], Any]):
        self._make = make
        self._lock = threading.Lock()
        self._made: dict[int, Future] = {}

    def __call__(self, key: int) -> Any:
        with self._lock:
            found = self._made.get(key)
            if is_first := found is None:
                found = self._made[key] = Future()
        if is_first:
            try:
                found.set_result(self._make(key))
            except BaseException as error:
                found.set_exception(error)
        return found.result()

    def pop(self, key: int) -> Any:
        with self._lock:
            return self._made.pop(key).result()
