"""Figures: whatever names are made of, they can be drawn, and are drawn as they are."""

import cv2
import numpy as np
import pytest
from matplotlib.text import Text

from input_pipeline.figures import new_figure, png

NAMES = ("$", r"5$ \frac{$", "a_b^c", "$x$ and $y$")


def written(name: str):
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.barh([0], [1.0], tick_label=[name], label=name)
    axes.set_title(name)
    axes.annotate(name, (0.5, 0))
    axes.legend()
    figure.suptitle(name)
    return figure


@pytest.mark.parametrize("name", NAMES)
def test_dollars_are_no_formulas_in_any_text_of_a_figure(name):
    figure = written(name)
    picture = cv2.imdecode(np.frombuffer(png(figure, dpi=100), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[:2] == (200, 300)
    assert sum(text.get_text() == name for text in figure.findobj(Text)) >= 5
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if text.get_text())


def test_a_formula_and_its_source_look_different():
    """The name is drawn as it is: dollars can be seen."""
    figure = written("$x$")
    plain = png(figure)
    assert plain != png(written("x"))
