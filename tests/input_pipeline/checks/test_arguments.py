"""Sections of a config as arguments."""

from collections.abc import Mapping, Sequence

import pytest

from input_pipeline.checks.arguments import ArgumentError, call, unknown


def made(given, count: int, share: float = 0.5, name: str | None = None, many: tuple[int, ...] = (),
         switch: bool = False, parts: Mapping[str, str] | None = None, words: Sequence[str] = (),
         thing: object = None, *, last: int = 0):  # fmt: skip
    return given, count, share, last


def test_a_section_that_fits():
    assert call("", made, {"count": 2, "share": 1, "last": 3}, 7) == (7, 2, 1, 3)
    assert call("", made, {"share": 1}, 7, count=4) == (7, 4, 1, 0)
    assert call("", made, {"count": 2, "many": [1], "name": None, "parts": {}, "thing": made}, 7)


@pytest.mark.parametrize(
    "section, message",
    [
        (
            {"count": 1, "shar": 1},
            "got an unexpected keyword argument 'shar'; did you mean 'share'",
        ),
        ({"count": 1, "xyz": 1}, "got an unexpected keyword argument 'xyz'; choose one of"),
        ({}, "the key 'count' is missing"),
        ({"count": 1, "given": 1}, "got an unexpected keyword argument 'given'"),
        ({"count": 1, "last": 2}, r"\['last'\] cannot be set here"),
        (3, "give a section of keys, not 3"),
        (None, "give a section of keys"),
        ({"count": 1.5}, "count=1.5; give a whole number"),
        ({"count": True}, "count=True; give a whole number"),
        ({"count": None}, "count=None; give a whole number"),
        ({"count": 1, "share": "1"}, "share='1'; give a number"),
        ({"count": 1, "name": 3}, "name=3; give a string or None"),
        ({"count": 1, "many": 3}, "many=3; give a list"),
        ({"count": 1, "switch": 1}, "switch=1; give True or False"),
        ({"count": 1, "parts": "a"}, "parts='a'; give a section of keys or None"),
        ({"count": 1, "words": 3}, "words=3; give a list"),
    ],
)
def test_a_section_that_does_not_fit(section, message):
    with pytest.raises(ArgumentError, match=f"^here: {message}"):
        call("here", made, section, 7, last=1)


def test_errors_of_the_function_stay_as_they_are():
    def fails(count: int):
        raise KeyError("of its own")

    with pytest.raises(KeyError, match="of its own"):
        call("here", fails, {"count": 1})


def test_the_nearest_name():
    message = unknown("model", "vitb61", {"vitb16": 1, "l16": 2})
    assert message == (
        "Unknown model 'vitb61'; did you mean 'vitb16'? Choose one of ['vitb16', 'l16']."
    )
    assert "did you mean" not in unknown("model", "zebra", ["vitb16"])
