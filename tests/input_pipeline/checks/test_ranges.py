"""Ranges of numbers: what is in, and what to give instead."""

import argparse

import numpy as np
import pytest

from input_pipeline.checks.ranges import real, whole

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "numbers, inside, outside",
    [
        (whole(1), [1, 10**30, np.int64(3)], [0, -1, 2.0, 2.5, NAN, INF, True, "8", None, (1,)]),
        (whole(1, also=(-1,)), [-1, 1], [0, -2]),
        (whole(0, 9), [0, 9], [-1, 10]),
        (real(0, 1), [0, 1, 0.5, np.float32(0.5)], [-1e-9, 1.1, NAN, True, "0.5", 1j]),
        (real(above=0, high=1), [1e-9, 1], [0, 1.1]),
        (real(0, below=1), [0, 0.99], [1, -0.1]),
        (real(), [0, -5, 1e300], [NAN, INF, -INF, 10**400]),
        (real(above=0, none="for no clipping"), [None, 1], [0, "None"]),
        (whole(1, count=0), [(), (1, 2), [3]], [1, (0,), (1.5,), ((1,),), "12", None]),
        (real(0, count=2), [(0, 1), [1, 1]], [(0,), (0, 1, 2), (0, NAN), 1]),
        (real(0, count=2, single=True), [(0, 1), 1], [(0,), -1, "a"]),
        (real(0, count=0, rows=2), [(), ((0.5, 8), [1, 2])], [(0.5, 8), ((1,),), ((1, -1),), 1]),
        (
            real(0, count=0, named=2),
            [(), (("a", 1, 0), ("b", (1, 2), 0))],
            [
                ("a", 1),
                (("a", -1, 0),),
                (("a", (1, NAN), 0),),
                (("a", "1", 0),),
                (("a", 1),),
                ((1, 1, 0),),
            ],
        ),
    ],
)
def test_what_is_in_a_range(numbers, inside, outside):
    assert [value for value in inside if numbers.advice(value)] == []
    assert [value for value in outside if not numbers.advice(value)] == []


@pytest.mark.parametrize(
    "numbers, value, advice",
    [
        (whole(1), 0, "give 1 or more"),
        (whole(1), 1.5, "give a whole number, 1 or more"),
        (whole(1, none="for all"), 0, "give 1 or more, or None for all"),
        (whole(1, also=(-1,)), 0, "give 1 or more, or -1"),
        (real(0, 1), 2, "give a number from 0 to 1"),
        (
            real(above=0, none="for no clipping"),
            0,
            "give a number above 0, or None for no clipping",
        ),
        (real(above=0, high=1), 2, "give a number above 0, at most 1"),
        (real(count=3), (NAN, 0, 0), "give a list of 3 numbers (finite)"),
        (whole(1, count=0), 3, "give a list of whole numbers, 1 or more"),
        (real(above=0, count=0, rows=2), (3,), "give a list of rows of 2 numbers above 0"),
    ],
)
def test_advice_names_the_bounds(numbers, value, advice):
    assert numbers.advice(value) == advice


@pytest.mark.parametrize(
    "numbers, text", [(whole(1), "0"), (whole(1), "2.5"), (real(0, 1), "nan"), (real(0), "x")]
)
def test_as_a_type_of_argparse(numbers, text):
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=numbers)
    assert parser.parse_args(["--n", "1"]).n == 1
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}': give"):
        numbers(text)
