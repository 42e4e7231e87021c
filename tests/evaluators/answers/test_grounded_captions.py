"""Captions with boxes: pairs of phrase and box by hand, and the text without them."""

import numpy as np
import pytest

from evaluators.answers import grounded_captions
from input_pipeline.text.conversations import ground
from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy

A, B, C = [0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0.0, 0.0, 0.2, 0.2]
PHRASES, BOXES = ["A man", "the dog", "the dog", "a tree"], [A, B, C, C]
CAPTION = "A man with the dog near a tree ."


def score(*texts, phrases=PHRASES, boxes=BOXES, caption=CAPTION, **config):
    scoring = grounded_captions.Scoring(**config)
    record = {
        "id": "x",
        "image": b"",
        "captions": {"caption": [caption]},
        "phrases": phrases,
        "boxes": np.array(boxes, np.float32),
    }
    kept = [scoring.keep(record | {"id": str(n)}) for n in range(len(texts))]
    scoring.check(kept)
    return dict(scoring.scores(texts, kept))


def test_pairs_by_hand():
    # Of three written boxes two are right; the record has four, of which the dog's are two.
    values = score(
        "a man [[100,100,500,500]] and the black dog [[600,600,900,900;300,300,400,400]]"
    )
    assert values["precision"] == pytest.approx(2 / 3)
    assert values["recall"] == 2 / 4
    assert values["f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert values["f1_loc"] == pytest.approx(2 * 2 / (3 + 3))  # man and dog: three boxes
    assert values["malformed"] == 0


def test_a_box_counts_once_and_for_its_own_phrase():
    twice = score("man [[100,100,500,500]] man [[100,100,500,500]]")
    assert twice["precision"] == 0.5 and twice["recall"] == 0.25
    other = score("a tree [[100,100,500,500]]")  # the man's box
    assert other["f1"] == 0
    unknown = score("a cat [[100,100,500,500]]")
    assert unknown["precision"] == unknown["f1_loc"] == 0
    none = score("A man with the dog near a tree")
    assert none["precision"] == none["recall"] == none["f1"] == none["f1_loc"] == 0
    # Articles do not tell phrases apart.
    men = dict(phrases=["a man", "The man"], boxes=[A, B])
    assert score("some man [[600,600,900,900;100,100,500,500]]", **men)["f1"] == 1
    # Part of a word is no phrase; the longest one that fits is taken.
    assert score("a superman [[100,100,500,500]]")["f1"] == 0
    longest = score(
        *["the old man [[600,600,900,900]]"], phrases=["man", "the old man"], boxes=[A, B]
    )
    assert longest["f1_loc"] == 1 and longest["recall"] == 0.5


def test_the_threshold_is_an_iou_of_a_half():
    # The left half, and a little less than it.
    boxes = dict(phrases=["man"], boxes=[[0, 0, 0.5, 0.5]], caption="man")
    assert score("man [[000,000,250,500]]", **boxes)["f1"] == 1
    assert score("man [[000,000,249,500]]", **boxes)["f1"] == 0


def test_the_caption_that_is_learnt_is_perfect():
    found = {"A man": np.array([A]), "the dog": np.array([B, C]), "a tree": np.array([C])}
    text, count = ground(CAPTION, found)
    other, _ = ground("A bird on two boats", {})
    values = score(text, text)
    assert count == 3 and values["f1"] == values["f1_loc"] == 1
    assert grounded_captions.without_boxes(text) == CAPTION
    # As all images have the caption, its words tell nothing; beside another they do.
    assert values["cider"] == 0
    assert score(other)["f1"] == 0


@pytest.mark.parametrize(
    "text, malformed",
    [
        ("a man", False),
        ("a man [[100,100,500,500]]", False),
        ("a man [[100,100,500,500;1,2,3,4]]", False),
        ("a man [[100,100,500]]", True),
        ("a man [[000,000,500,1000]]", True),
        ("a man [[100,100,500,500;1,2]]", True),
        ("a man [[1,2,3,x]] [[100,100,500,500]]", True),
        ("a man [[100,100,500,500", True),
        ("a man [[]]", True),
        ("a [man] [1,2,3,4]", False),
    ],
)
def test_malformed_boxes_are_counted(text, malformed):
    assert score(text)["malformed"] == malformed


def test_the_evaluator(tmp_path):
    boxes = [np.array([A, B], np.float32), np.array([A, B], np.float32)]
    source = toy.ToySource(
        {"caption": [["a man and a dog"], ["a red bird"]]},
        phrases=[["a man", "a dog"], ["a red bird", "it"]],
        boxes=boxes,
    )
    written = ["man [[100,100,500,500]] and a dog", "a red bird [[600,600,900,900]]"]
    model = toy_text.answers(written)
    asked = dict(predictions=str(tmp_path / "f"), prompt="describe")
    values = toy_text.evaluate("grounded_captions", source, model, **asked)
    assert values["precision"] == 0.5 and values["recall"] == 0.25
    assert 0 < values["cider"] < 10
    bare = toy.ToySource({"caption": [["a man"]]})
    with pytest.raises(ValueError, match="'toy-0' has no captions or boxes"):
        toy_text.evaluate("grounded_captions", bare, model, prompt="describe")
    wrong = toy.ToySource({"caption": [["a"]]}, phrases=[["a"]], boxes=[[[0.5, 0, 0.1, 1]]])
    with pytest.raises(ValueError, match=r"'toy-0': box .* is not"):
        toy_text.evaluate("grounded_captions", wrong, model, prompt="describe")
