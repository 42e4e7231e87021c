"""What all views have in common."""

import dataclasses
import importlib

import pytest

from input_pipeline.checks import parts
from input_pipeline.checks.arguments import ArgumentError
from input_pipeline.views import Views, make_views


def test_all_of_ours_derive_from_it():
    modules = parts.known("input_pipeline.views").values()
    assert len(modules) > 5
    for module in modules:
        assert issubclass(importlib.import_module(module).Views, Views)


def test_what_is_not_said_has_a_default():
    views = make_views("clip", image_size=16, tokenizer="clip", context_length=12)
    assert (views.num_classes, views.vocabulary) == (None, None)
    assert views.check_source(None) is None


def test_a_field_without_a_default_must_be_given():
    """Also where the base has an attribute of its name."""
    with pytest.raises(ArgumentError, match="'num_classes' is missing"):
        make_views("labels", image_size=16)
    with pytest.raises(ArgumentError, match="'vocabulary' is missing"):
        make_views("catlip", image_size=16)

    @dataclasses.dataclass(kw_only=True, eq=False)
    class Mine(Views):
        num_classes: int = 3

    assert Mine(image_size=16).num_classes == 3


def test_views_without_the_base_are_told_so(tmp_path, monkeypatch):
    (tmp_path / "loose_views.py").write_text(
        "class Views:\n    def __init__(self, image_size):\n        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    message = "The Views of loose_views must derive from input_pipeline.views.Views"
    with pytest.raises(ValueError, match=message):
        make_views("loose_views", image_size=16)
