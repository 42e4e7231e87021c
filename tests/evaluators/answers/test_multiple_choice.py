"""Copies of questions with their choices moved, places of choices, and what chance has."""

import json

import pytest

from evaluators.answers import multiple_choice
from evaluators.answers.shared import predictions
from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy

ASKED = {"instruction": ""}


def source(**fields):
    size = len(fields["question"])
    return toy.ToySource({"caption": [["?"]] * size}, **fields)


def copies(**fields):
    """Two questions with two choices, and a copy of each."""
    return source(
        question=["what?"] * 4,
        question_id=["0", "5", "1000000", "1000005"],
        original=["0", "5", "0", "5"],
        choices=[["a cat", "a dog"]] * 2 + [["a dog", "a cat"]] * 2,
        answer=[0, 0, 1, 1],
        category=["x", "y"] * 2,
        **fields,
    )


def score(written, **config):
    scoring = multiple_choice.Scoring(**config)
    records = copies().fields(range(4))
    kept = [scoring.keep(record) for record in records]
    return dict(scoring.scores(written, kept))


def test_copies_are_scored_together():
    """A question is right where it is in every order; the other scores are of the originals."""
    found = score(["A", "A", "B", "A"], by="category")
    assert found["accuracy"] == 1 and found["accuracy_circular"] == 0.5
    assert found["accuracy_circular_x"] == 1 and found["accuracy_circular_y"] == 0
    found = score(["no idea", "A", "B", "B"])
    assert found == {"accuracy": 0.5, "accuracy_circular": 0.5, "no_choice": 0.5}
    # Who always says A gets half of the questions as they come, and none in all orders.
    assert score(["A"] * 4)["accuracy_circular"] == 0


def test_the_evaluator_asks_copies_as_they_are(tmp_path):
    path = tmp_path / "f.tsv"
    asked = ASKED | dict(predictions=str(path), form="mmbench")
    model = toy_text.answers(["A", "a dog", "(B)", "B"])
    found = toy_text.evaluate("multiple_choice", copies(), model, **asked)
    assert found["accuracy"] == found["accuracy_circular"] == found["accuracy_chance"] == 0.5
    assert predictions.read(path) == {"0": "A", "5": "B", "1000000": "B", "1000005": "B"}
    with pytest.raises(ValueError, match="one of copies with the choices moved, which circular"):
        toy_text.evaluate("multiple_choice", copies(), model, circular=True, **ASKED)


def test_only_letters_become_places(tmp_path):
    path = tmp_path / "f"
    data = source(question=["?"] * 4, choices=[["one", "two"]] * 4, answer=[1] * 4)
    model = toy_text.answers(["B", "D", "I", "one"])
    asked = ASKED | dict(predictions=str(path), form="scienceqa")
    toy_text.evaluate("multiple_choice", data, model, **asked)
    places = json.loads(path.read_text())["results"]
    assert list(places.values()) == [1, -1, -1, 0]  # there is no D


@pytest.mark.parametrize("evaluator", ["vqa", "captions", "pointing", "yes_no"])
def test_who_writes_no_letters_has_no_places(tmp_path, evaluator):
    boxes = [["[[000,000,500,500]]", "[[500,500,999,999]]"]]
    data = source(question=["?"], answers=[["yes"]], choices=boxes, answer=[0])
    with pytest.raises(ValueError, match="form='scienceqa' has the places of choices"):
        toy_text.evaluate(
            evaluator,
            data,
            toy_text.answers(["yes"]),
            form="scienceqa",
            predictions=str(tmp_path / "f"),
        )


def test_chance_is_of_questions_with_choices():
    data = source(
        question=["?"] * 3,
        choices=[["one", "two"], None, ["a", "b", "c", "d"]],
        answer=[0, None, 1],
        answers=[["one"], ["8"], ["b"]],
        answer_type=[None, "integer", None],
    )
    model = toy_text.answers(["A", "8", "A"])
    found = toy_text.evaluate("multiple_choice", data, model, **ASKED)
    assert found["accuracy_chance"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["accuracy_choices"] == 0.5 and found["accuracy"] == pytest.approx(2 / 3)
