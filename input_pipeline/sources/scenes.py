"""The embedded default data set: rendered scenes of coloured shapes, described exactly.

It needs no file and serves every method and evaluator. A scene is a function of (split, index)
alone: no process, order or size of the source changes it. `describe` gives everything but pixels.
"""

import dataclasses
import operator
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import simplejpeg

from input_pipeline.scenes.layout import SHAPES, Layout, sample_layout
from input_pipeline.scenes.render import render
from input_pipeline.scenes.text import write_caption, write_question, write_sentences
from input_pipeline.sources.shared import base

# Raise with any change of what a record holds: resumed runs must notice.
VERSION = 2

# Splits are disjoint ranges of seeds, this far apart; and how many scenes one has unless told.
_SPLIT_SPAN = 2**40
_SPLIT_SIZE = {"train": 100_000, "val": 1_000, "test": 1_000}

_MIN_IMAGE_SIZE = 32  # a small star has no points below this
_JPEG_QUALITY = 92


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A scene without pixels; fields as in the record that `Source` returns."""

    id: str
    layout: Layout
    caption: str
    sentences: list[str]
    nouns: list[str]
    question: str
    answer: str
    hard_negatives: list[str]


def describe(split: str, index: int) -> Scene:
    """The scene at `index` of `split`: about 0.4 ms, nothing rendered.

    Raises:
      ValueError: unknown split. IndexError: `index` outside the split's 2**40 scenes.
    """
    first_seed = _first_seed(split)
    if not 0 <= index < _SPLIT_SPAN:
        raise IndexError(f"Scene {index} is outside 0..{_SPLIT_SPAN - 1}.")
    rng = random.Random(first_seed + index)
    layout = sample_layout(rng, index)
    caption, hard_negatives = write_caption(rng, layout)
    question, answer = write_question(rng, layout)
    return Scene(
        id=f"scenes-{split}-{index}",
        layout=layout,
        caption=caption,
        sentences=write_sentences(rng, layout),
        nouns=list(dict.fromkeys(o.shape for o in layout.objects)),
        question=question,
        answer=answer,
        hard_negatives=hard_negatives,
    )


def _first_seed(split: str) -> int:
    if split not in _SPLIT_SIZE:
        raise ValueError(f"Unknown split {split!r} of scenes; choose one of {list(_SPLIT_SIZE)}.")
    # Not from 0: Python turns seeds of one and of two 32-bit words into the same state now and then
    # (257 and 257 + 2**40 are such a pair), so all seeds have two.
    return (1 + list(_SPLIT_SIZE).index(split)) * _SPLIT_SPAN


class Source(base.Source):
    """Scenes `0..size-1` of a split, as records.

    A record has `id`, and
      image: JPEG of image_size x image_size pixels.
      captions: "caption", one sentence that names every object, one relation and the background,
        different for any 384 consecutive scenes; "sentences", 9 to 13 short true sentences.
      nouns: the names of the shapes in the scene, each once.
      boxes f32[N, 4] and phrases, one for each of 3 to 5 objects; each phrase is in the caption.
      label: index in `class_names` of the largest object's shape.
      labels: those of all shapes in the scene, ascending, each once.
      mask u8[image_size, image_size]: 0 background, 1 + index in `class_names` elsewhere.
      question, answers: one question, a list with its one answer.
      hard_negatives: five wrong versions of the caption, see `scenes.text.write_caption`.
    """

    def __init__(self, split: str = "train", size: int | None = None, image_size: int = 96):
        """Args: split: "train", "val" or "test". size: scenes, by default 100,000 for train and
        1,000 for the others. image_size: pixels.

        Raises:
          ValueError: unknown split, or a size out of range.
        """
        _first_seed(split)  # raises for an unknown split
        self.class_names = list(SHAPES)
        self._split = split
        self._size = _SPLIT_SIZE[split] if size is None else operator.index(size)
        self._image_size = operator.index(image_size)
        if not 0 < self._size <= _SPLIT_SPAN:
            raise ValueError(f"scenes: size is {size}; give a number of scenes, 1 or more.")
        if self._image_size < _MIN_IMAGE_SIZE:
            raise ValueError(
                f"scenes: image_size is {image_size}; shapes need {_MIN_IMAGE_SIZE} pixels or more."
            )

    def __len__(self) -> int:
        return self._size

    def record(self, index: int) -> dict[str, Any]:
        scene = describe(self._split, index)
        objects = scene.layout.objects
        image, mask = render(scene.layout, self._image_size)
        return {
            "id": scene.id,
            # Full chroma resolution: halved, it smears the colours of small objects.
            "image": simplejpeg.encode_jpeg(
                image, quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"
            ),
            "captions": {"caption": [scene.caption], "sentences": scene.sentences},
            "nouns": scene.nouns,
            "boxes": np.array([o.box for o in objects], np.float32),
            "phrases": [o.phrase for o in objects],
            "label": SHAPES.index(objects[0].shape),
            "labels": sorted({SHAPES.index(o.shape) for o in objects}),
            "mask": mask,
            "question": scene.question,
            "answers": [scene.answer],
            "hard_negatives": scene.hard_negatives,
        }

    def identity(self) -> Iterable[str]:
        yield f"scenes {VERSION} {self._split} {self._size} {self._image_size} {_JPEG_QUALITY}"
