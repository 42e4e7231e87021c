"""Which choice an answer names."""

import pytest

from evaluators.answers.shared import letters
from input_pipeline.text import questions

CHOICES = ["a red cup", "two dogs", "no", "Boston"]


@pytest.mark.parametrize(
    "text, place",
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("(b) two dogs", 1),
        ("B. two dogs", 1),
        ("B: two dogs", 1),
        ("two dogs", 1),
        ("Two dogs.", 1),
        ("The answer is B.", 1),
        ("The answer is (B), not a cup", 1),
        ("Option C", 2),
        ("I think it is D", 3),
        ("A", 0),
        ("A cup that is red", None),  # an article
        ("It shows a red cup on a table", 0),
        ("A dog in Boston", 3),
        ("no", 2),
        ("nothing", None),  # "no" is no word of it
        ("A or B", None),
        ("(A) or (B)", None),
        ("E", None),  # there is no such choice
        ("two dogs in Boston", None),
        ("", None),
        ("?", None),
    ],
)
def test_letters_are_found(text, place):
    assert letters.chosen(text, CHOICES) == place


def test_the_listed_choices_are_found_again():
    lines = questions.listed(CHOICES).splitlines()
    assert lines[0] == "A. a red cup" and len(lines) == 4
    assert [letters.chosen(line, CHOICES) for line in lines] == [0, 1, 2, 3]


def test_choices_are_checked():
    good = {"id": "x", "choices": ["a", "b"], "answer": 1}
    assert letters.choices_of(good) == (["a", "b"], 1)
    assert letters.choices_of({"id": "x", "choices": ["a", "b"]}) == (["a", "b"], None)
    for change in ({"choices": ["a"]}, {"choices": []}, {"answer": 2}, {"answer": -1}):
        with pytest.raises(ValueError, match=r"'x'(:|) .*has"):
            letters.choices_of(good | change)
