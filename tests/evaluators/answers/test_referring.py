"""REC: overlap decides, broken answers are wrong and counted, baselines, prompts."""

import json

import numpy as np
import pytest

from evaluators.answers import referring
from evaluators.answers.shared import command
from evaluators.shared.base import make_evaluator
from input_pipeline import command_line
from input_pipeline.sources import make_source
from input_pipeline.text.boxes import format_boxes
from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy

BOXES = [[0.1, 0.1, 0.3, 0.3], [0.5, 0.1, 0.9, 0.3], [0.0, 0.6, 0.2, 0.8], [0.4, 0.5, 0.8, 0.9]]


def source_of(boxes, phrases=None):
    size = len(boxes)
    boxes = [np.atleast_2d(np.float32(own)) for own in boxes]
    phrases = phrases or [["a ring"] * len(own) for own in boxes]
    return toy.ToySource({"caption": [["?"]] * size}, boxes=boxes, phrases=phrases)


def evaluate(boxes, written, phrases=None, **config):
    blind = config.pop("blind", "")
    model = toy_text.answers(written, blind=blind)
    return toy_text.evaluate("referring", source_of(boxes, phrases), model, **config)


def test_scores():
    moved = np.array(BOXES[1]) - [0.2, 0, 0.2, 0]  # half of it: a third of the union
    wider = np.add(BOXES[2], [0, 0, 0.15, 0])  # 0.2 of 0.35
    written = [format_boxes(BOXES[0]), format_boxes(moved), format_boxes(wider), "somewhere"]
    values = evaluate(BOXES, written)
    assert values["accuracy@0.5"] == 0.5
    assert values["mean_iou"] == pytest.approx((1 + 1 / 3 + 0.2 / 0.35 + 0) / 4, abs=0.01)
    assert values["parse_failures"] == 0.25
    assert values["accuracy@0.5_chance"] == 1  # one box each
    assert values["accuracy@0.5_baseline"] == 0


def test_the_first_box_counts_and_any_box_of_the_phrase_is_right():
    right, wrong = format_boxes(BOXES[0]), format_boxes(BOXES[1])
    assert evaluate(BOXES[:1], [f"a ring {right} {wrong}"])["accuracy@0.5"] == 1
    assert evaluate(BOXES[:1], [f"{wrong} {right}"])["accuracy@0.5"] == 0
    assert evaluate([BOXES[1:3]], [format_boxes(BOXES[2])])["accuracy@0.5"] == 1


@pytest.mark.parametrize("text", ["", "[[100,100,300]]", "[[x0,y0,x1,y1]]", "[[1,2,3,4"])
def test_answers_without_a_box_are_wrong(text):
    values = evaluate(BOXES, [text] * 4)
    assert values["accuracy@0.5"] == values["mean_iou"] == 0 and values["parse_failures"] == 1


def test_a_box_without_area_is_no_failure_but_wrong():
    values = evaluate(BOXES[:2], ["[[100,100,100,100]]", "[[900,300,500,100]]"])
    assert values["accuracy@0.5"] == values["parse_failures"] == 0


def test_baseline_and_chance():
    same = evaluate([BOXES[0]] * 3 + [BOXES[3]], [""] * 4)
    assert same["accuracy@0.5_baseline"] == 0  # between the two
    near = evaluate([BOXES[0]] * 4, [""] * 4)
    assert near["accuracy@0.5_baseline"] == 1
    phrases = [["a ring", "a star", "a cross", "a heart"]]
    assert evaluate([BOXES], [""], phrases)["accuracy@0.5_chance"] == 0.25
    # Two and two overlap enough to pass for each other.
    pairs = [box for own in BOXES[:2] for box in (own, np.array(own) + 0.01)]
    assert evaluate([pairs], [""], phrases)["accuracy@0.5_chance"] == 0.5


def test_every_expression_is_asked_and_scored():
    """An echo of a prompt that holds the box: right where the phrase is the box itself."""
    texts = [[format_boxes(box) for box in BOXES[:3]] + ["a ring"], [format_boxes(BOXES[0])]]
    seen = []

    def generate(model, batch):
        seen.extend(np.asarray(batch["tokens"]).tolist())
        return toy_text.echo(model, batch)

    source = source_of([BOXES, BOXES[:1]], texts)
    with toy_text.jax.disable_jit():
        values = toy_text.evaluate("referring", source, {}, {"generate": generate}, batch_size=5)
    assert values["accuracy@0.5"] == 4 / 5 and values["parse_failures"] == 1 / 5
    prompts = [toy_text.TEXT.decode([i for i in row[1 + toy_text.SLOTS :] if i]) for row in seen]
    phrases = [*texts[0][:3], "ring", *texts[1]]
    expected = [f"Question: Where is the {phrase}? Answer:" for phrase in phrases]
    assert sorted(prompts) == sorted(expected)


def test_predictions_and_groups(tmp_path, monkeypatch, capsys):
    """Each expression has an id; the file is scored as the model was."""
    file = tmp_path / "file.json"
    right = [format_boxes(box) for box in BOXES]
    source = source_of([BOXES[:2], [BOXES[2]], [BOXES[0], BOXES[0], BOXES[3]]],
                       [["a", "b"], ["a"], ["a", "a ", "c"]])  # fmt: skip
    source.more["category"] = ["x", "y", "y"]
    model = toy_text.answers([right[0], right[2], right[0]])
    asked = dict(by="category", predictions=str(file), controls=["blind"])
    values = toy_text.evaluate("referring", source, model, **asked)
    given = [("0/0", right[0]), ("0/1", right[0]), ("1/0", right[2])]
    given += [("2/0", right[0]), ("2/1", right[0])]
    expected = [{"question_id": f"toy-{name}", "answer": text} for name, text in given]
    assert json.loads(file.read_text()) == expected
    assert values["accuracy@0.5"] == pytest.approx(4 / 6)
    assert values["accuracy@0.5_x"] == 0.5 and values["accuracy@0.5_y"] == pytest.approx(3 / 4)
    assert values["parse_failures_y_blind"] == 1

    monkeypatch.setattr(command_line, "open_source", lambda text: (text, {}, source))
    words = ["--predictions", str(file), "--input", "toy", "--metric", "referring:by=category"]
    assert command.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found and found == {name: values[name] for name in found}


def test_an_expression_counts_as_often_as_it_is_given():
    """Twice for one box: two people said it. For two boxes: it is one expression, of two things."""
    said_twice = [[BOXES[0], BOXES[0], BOXES[1]]], [["a ring", "a ring ", "a star"]]
    values = evaluate(said_twice[0], [format_boxes(BOXES[0])], said_twice[1])
    assert values["accuracy@0.5"] == pytest.approx(2 / 3)
    assert values["mean_iou"] == pytest.approx(2 / 3, abs=0.01)
    two_things = [[BOXES[0], BOXES[2], BOXES[1]]], [["rings", "rings", "a star"]]
    assert evaluate(two_things[0], [format_boxes(BOXES[0])], two_things[1])["accuracy@0.5"] == 0.5


def test_what_is_kept_grows_as_the_phrases_do():
    """Not as their pairs: a scene has dozens."""

    def size(count):
        record = {"id": "x", "phrases": [f"p{i}" for i in range(count)], "boxes": BOXES[:1] * count}
        return len(json.dumps(referring.Scoring().questions_of(record)))

    assert size(80) < 2.2 * size(40)


def test_controls():
    values = evaluate(
        BOXES,
        [format_boxes(box) for box in BOXES],
        controls=["blind", "shuffled"],
        blind=format_boxes(BOXES[3]),
    )
    assert values["accuracy@0.5"] == 1
    assert values["accuracy@0.5_shuffled"] == 0 and values["parse_failures_shuffled"] == 0
    assert values["accuracy@0.5_blind"] == 0.25


def test_bad_input_is_explained():
    with pytest.raises(ValueError, match="'toy-0' has no phrase with a box"):
        toy_text.evaluate("referring", toy.ToySource({"caption": [["?"]]}), {})
    with pytest.raises(ValueError, match=r"'toy-0': box .* shares"):
        evaluate([[10, 10, 30, 30]], [""])
    with pytest.raises(ValueError, match="needs the predict functions"):
        toy_text.evaluate("referring", source_of(BOXES), {}, {"classify": None})


def test_scenes_have_one_right_box_for_each_phrase():
    data = {"name": "scenes", "split": "val", "size": 15, "image_size": 32}
    source = make_source(**data)

    def generate(model, batch):
        return np.full((len(batch["tokens"]), 4), 2, np.int32)

    evaluator = make_evaluator(
        "referring",
        {"generate": generate},
        toy_text.PREPROCESS,
        toy.mesh(),
        data=data,
    )
    values = dict(evaluator.run({}))
    expected = 15 / sum(len(source[i]["boxes"]) for i in range(15))
    assert values["accuracy@0.5_chance"] == pytest.approx(expected)
    assert values["accuracy@0.5_baseline"] < 0.3 and values["parse_failures"] == 1
