"""Where a model errs and is sure: the most confident mistakes in classifying a source."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from big_vlp.api.errors import ModelError
from big_vlp.api.model import TEMPLATES, Model
from big_vlp.pictures.figures import WRONG, lines, show_image, titled
from evaluators.pairs.zeroshot import check_names
from input_pipeline.checks.fields import label_of
from input_pipeline.figures import png

READ_AT_ONCE = 512  # images as they are stored, in memory together
COLUMNS = 4


class Mistake(NamedTuple):
    """An image, the class that it is of, the one that it was given, and the model's probabilities
    of both."""

    number: int
    true: str
    true_probability: float
    predicted: str
    probability: float


class Classified(NamedTuple):
    """What came of all images.

    Attributes:
      mistakes: the most confident first.
      accuracy: share of the images whose most probable class has the name of the true one.
      images, classes: how many there are.
    """

    mistakes: list[Mistake]
    accuracy: float
    images: int
    classes: int


def classify(
    model: Model,
    source,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] = (),
) -> Classified:
    """Classifies all images of a source whose records have `label`.

    By the head of a model that has one, whose classes must be the source's; else zero-shot.

    Args:
      class_names: what zero-shot classes are called; by default as the source says.
      templates: prompts with `{}` for the name; by default the source's, or "a photo of a {}.".

    Raises:
      ModelError: the model classifies nothing, its classes are others, or a template is wrong.
      ValueError: the source has no labels, names no classes, or calls them by ids.
    """
    names = list(class_names or source.class_names or ())
    if not names:
        raise ValueError("The source names no classes; give --class-names.")
    if "zero_shot" in model.can:
        if class_names is None and not source.templates:
            check_names(names, given=False)
        templates = templates or source.templates or TEMPLATES

        def ask(images):
            return model.zero_shot(images, names, templates)
    elif "classify" not in model.can:
        raise ModelError(f"{model!r} classifies nothing.")
    elif class_names or templates:
        raise ModelError(f"{model!r} has a head: it is asked without class names and templates.")
    elif list(model.class_names or ()) != names:
        raise ModelError(
            f"{model!r} has {len(model.class_names or ())} classes, which are not the "
            f"{len(names)} of the source."
        )
    else:

        def ask(images):
            return _by_class(model.classify(images, len(names)), names)

    mistakes, right = [], 0
    for first in range(0, len(source), READ_AT_ONCE):
        some = range(first, min(first + READ_AT_ONCE, len(source)))
        records = [source[row] for row in some]
        labels = [label_of(record, len(names)) for record in records]
        probabilities = ask([record["image"] for record in records])
        for row, label, chances in zip(some, labels, probabilities):
            chosen = int(np.argmax(chances))
            if names[chosen] == names[label] and np.isfinite(chances).all():
                right += 1
                continue
            both = float(chances[label]), names[chosen], float(chances[chosen])
            mistakes.append(Mistake(row, names[label], *both))
    mistakes.sort(key=lambda mistake: -mistake.probability)
    return Classified(mistakes, right / len(source), len(source), len(names))


def _by_class(found: list[list[tuple[str, float]]], names: list[str]) -> np.ndarray:
    """Probabilities f32[N, C] in the order of the classes; of equal names all have the largest."""
    largest = [dict(reversed(one)) for one in found]
    return np.array([[one[name] for name in names] for one in largest], np.float32)


def draw(found: Classified, source, title: str, top: int = 12) -> bytes:
    """A PNG of the `top` most confident mistakes: below each image what it was taken for, and what
    it is, with the probabilities of both."""
    shown = found.mistakes[:top]
    rows = max(1, -(-len(shown) // COLUMNS))
    summary = (
        f"{title}\n{found.accuracy:.1%} of {found.images:,} images right "
        f"(chance {1 / found.classes:.1%}); the most confident of {len(found.mistakes):,} mistakes"
    )
    figure = titled(2.6 * COLUMNS, 0.7 + 2.9 * rows, summary)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for cell in axes.flat:
        cell.set_axis_off()
    for cell, mistake in zip(axes.flat, shown):
        cell.set_axis_on()
        show_image(cell, source[mistake.number]["image"], WRONG)
        said = lines(f"{mistake.probability:.0%} {mistake.predicted}", 26, 2)
        true = lines(f"{mistake.true_probability:.0%} {mistake.true}", 26, 2)
        cell.set_title(f"said {said}", fontsize=9, color=WRONG)
        cell.set_xlabel(f"is {true}", fontsize=9)
    return png(figure)
