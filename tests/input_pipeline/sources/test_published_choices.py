"""Questions with choices in the formats of ScienceQA, SEED-Bench and MMVP."""

import csv
import json
import re

import pytest

from input_pipeline.images.crops import decode
from input_pipeline.prepare import command
from input_pipeline.sources import make_source
from tests.input_pipeline.sources.published import (
    records,
    without_image,
    write_images,
    write_json,
)
from tests.input_pipeline.sources.toy_task import image


def scienceqa(folder, **first):
    """Three problems, the second of which has no image."""
    problems = {
        str(number): {
            "question": f"Which is {number}?",
            "choices": ["one", "two"],
            "answer": 1,
            "hint": "Look." if number == 3 else "",
            "image": None if number == 5 else "image.png",
            "task": "closed choice",
            "subject": "natural science",
            "split": "test",
        }
        for number in (3, 5, 7)
    }
    problems["3"] |= first
    write_json(folder / "pid_splits.json", {"test": ["3", "5", "7"], "minitest": ["7"]})
    return {
        "kind": "scienceqa",
        "questions": write_json(folder / "problems.json", problems),
        "images": write_images(folder / "images", ["test/3/image.png", "test/7/image.png"]),
        "split": "test",
    }


def test_scienceqa(tmp_path):
    source = make_source("multiple_choice", **scienceqa(tmp_path))
    found = records(source)
    assert source.left_out == {"questions without an image": 1}
    assert without_image(found[0]) == {
        "id": "3",
        "question_id": "3",
        "question": "Which is 3?",
        "choices": ["one", "two"],
        "answer": 1,
        "answers": ["two"],
        "category": "natural science",
        "split": "test",
        "hint": "Look.",
    }
    assert [one["id"] for one in found] == ["3", "7"] and "hint" not in found[1]
    assert found[1]["image"] == image(1)
    mini = scienceqa(tmp_path) | {"split": "minitest"}
    assert [one["id"] for one in records(make_source("multiple_choice", **mini))] == ["7"]


def test_questions_without_image_get_a_white_one(tmp_path):
    arguments = scienceqa(tmp_path)
    source = make_source("multiple_choice", **arguments, without_image="blank")
    found = records(source)
    assert [one["id"] for one in found] == ["3", "5", "7"] and not source.left_out
    assert (decode(found[1]["image"]) == 255).all() and found[2]["image"] == image(1)
    assert source.fingerprint() != make_source("multiple_choice", **arguments).fingerprint()
    with pytest.raises(ValueError, match="without_image='black'; choose one of"):
        make_source("multiple_choice", **arguments, without_image="black")


def test_what_is_left_out_is_said(tmp_path, capsys):
    arguments = ",".join(f"{key}={value}" for key, value in scienceqa(tmp_path).items())
    output = tmp_path / "shards"
    given = ["--input", f"multiple_choice:{arguments}", "--output", str(output), "--workers", "1"]
    assert command.main(["source", *given]) == 0
    assert "Left out: 1 questions without an image." in capsys.readouterr().out
    content = json.loads((output / "dataset.json").read_text())
    assert content["left_out"] == {"questions without an image": 1}
    assert records(make_source("prepared", path=output)) == records(
        make_source("multiple_choice", **scienceqa(tmp_path))
    )


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"answer": 2}, "question 3: the answer 2 is none of its 2 choices"),
        ({"answer": True}, "the answer True is none"),
        ({"choices": ["one"], "answer": 0}, r"question 3: its choices are \['one'\]"),
        ({"question": ""}, "question 3: '' is no text"),
        ({"choices": None}, "TypeError"),
    ],
)
def test_problems_that_are_none(tmp_path, first, message):
    with pytest.raises(ValueError, match=rf"problems\.json cannot be used \(.*{message}"):
        make_source("multiple_choice", **scienceqa(tmp_path, **first))


def test_splits_of_another_version(tmp_path):
    arguments = scienceqa(tmp_path)
    with pytest.raises(ValueError, match="no split 'val', but test, minitest"):
        make_source("multiple_choice", **arguments | {"split": "val"})
    write_json(tmp_path / "pid_splits.json", {"test": ["3", "9"]})
    with pytest.raises(ValueError, match="1 of 2 questions of test are not in it, such as 9"):
        make_source("multiple_choice", **arguments)


def seedbench(folder, **first):
    questions = [
        {
            "answer": "C",
            "choice_a": "One",
            "choice_b": "Two",
            "choice_c": "Three",
            "choice_d": 4,
            "data_id": f"1454426_{number}",
            "data_type": "video" if number == 2 else "image",
            "question": "How many?",
            "question_id": str(101669 + number),
            "question_type_id": 5,
        }
        for number in range(3)
    ]
    questions[0] |= first
    content = {"questions": questions, "question_type": {"Instances Counting": 5}}
    return {
        "kind": "seedbench",
        "questions": write_json(folder / "SEED-Bench.json", content),
        "images": write_images(folder / "SEED-Bench-image", ["1454426_0", "1454426_1"]),
    }


def test_seedbench(tmp_path):
    source = make_source("multiple_choice", **seedbench(tmp_path))
    first, second = records(source)
    assert without_image(first) == {
        "id": "101669",
        "question_id": "101669",
        "question": "How many?",
        "choices": ["One", "Two", "Three", "4"],
        "answer": 2,
        "answers": ["Three"],
        "category": "Instances Counting",
    }
    assert (second["image"], source.left_out) == (image(1), {"questions about a video": 1})
    with pytest.raises(ValueError, match="question 101669: the answer 'c' is none of its 4"):
        make_source("multiple_choice", **seedbench(tmp_path, answer="c"))
    with pytest.raises(ValueError, match="two entries have the id '101670'"):
        make_source("multiple_choice", **seedbench(tmp_path, question_id="101670"))
    with pytest.raises(ValueError, match="there is no question_type 6"):
        make_source("multiple_choice", **seedbench(tmp_path, question_type_id=6))
    with pytest.raises(ValueError, match=r"'Single Image', not .* SEED-Bench-2 is another set"):
        make_source("multiple_choice", **seedbench(tmp_path, data_type="Single Image"))
    with pytest.raises(ValueError, match="1 of 2 questions have no answer, such as 101669"):
        make_source("multiple_choice", **seedbench(tmp_path, answer=None))


def mmvp(folder, rows=4, **first):
    """As published: pairs of the same question, whose answers differ."""
    table = [
        {
            "Index": number,
            "Question": 'Open, or "closed"?',
            "Options": "(a) Open (b) Closed (2)",
            "Correct Answer": "(a)" if number % 2 else "(b)",
        }
        for number in range(1, rows + 1)
    ]
    table[0] |= first
    path = folder / "Questions.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    names = [f"{number}.jpg" for number in range(1, rows + 1)]
    return {
        "kind": "mmvp",
        "questions": path,
        "images": write_images(folder / "MMVP Images", names),
    }


def test_mmvp(tmp_path):
    found = records(make_source("multiple_choice", **mmvp(tmp_path)))
    assert without_image(found[1]) == {
        "id": "2",
        "question_id": "2",
        "question": 'Open, or "closed"?',
        "choices": ["Open", "Closed (2)"],
        "answer": 1,
        "answers": ["Closed (2)"],
        "pair": "1",
    }
    assert [one["pair"] for one in found] == ["1", "1", "2", "2"]
    assert found[3]["image"] == image(3)


@pytest.mark.parametrize(
    ("options", "choices"),
    [
        ("(A) Open (B) Closed", ["Open", "Closed"]),
        ("(a) Open (B) Closed (c) None", ["Open", "Closed", "None"]),
        ("(a) Group (x) (b) Group (y)", ["Group (x)", "Group (y)"]),
        ("(a) As in (a) (b) Not (a)", ["As in (a)", "Not (a)"]),
    ],
)
def test_options_of_mmvp(tmp_path, options, choices):
    arguments = mmvp(tmp_path, Options=options, **{"Correct Answer": "(B)"})
    first, *_ = records(make_source("multiple_choice", **arguments))
    assert first["choices"] == choices and first["answer"] == 1


def test_mmvp_corrected(tmp_path):
    arguments = mmvp(tmp_path, rows=300)
    published = records(make_source("multiple_choice", **arguments))
    corrected = records(make_source("multiple_choice", **arguments, corrected=True))
    changed = [a["id"] for a, b in zip(published, corrected) if a["answer"] != b["answer"]]
    assert changed == ["99", "100", "279", "280"]
    arguments["questions"].write_text(  # a file in which they are right already
        re.sub(
            r"^(99|100|279|280),(.*)\((.)\)$",
            lambda m: f"{m[1]},{m[2]}({'ab'[m[3] == 'a']})",
            arguments["questions"].read_text(encoding="utf-8-sig"),
            flags=re.MULTILINE,
        )
    )
    assert records(make_source("multiple_choice", **arguments)) == corrected
    assert records(make_source("multiple_choice", **arguments, corrected=True)) == corrected
    with pytest.raises(ValueError, match="kind='scienceqa' takes no corrected"):
        make_source("multiple_choice", **scienceqa(tmp_path / "other"), corrected=True)


@pytest.mark.parametrize(
    ("rows", "first", "message"),
    [
        (3, {}, "it has 3 rows, which should be numbered from 1 on and be an even number"),
        (4, {"Index": 2}, "which should be numbered from 1 on"),
        (4, {"Options": "(a) Open (c) Closed"}, r"its choices are \['Open \(c\) Closed'\]"),
        (4, {"Options": "Open, Closed"}, r"question 1: its choices are \[\]"),
        (4, {"Correct Answer": "(c)"}, "question 1: the answer 'C' is none of its 2 choices"),
        (4, {"Correct Answer": ""}, "1 of 4 questions have no answer, such as 1"),
    ],
)
def test_rows_of_mmvp_that_are_none(tmp_path, rows, first, message):
    with pytest.raises(ValueError, match=rf"Questions\.csv cannot be used \(.*{message}"):
        make_source("multiple_choice", **mmvp(tmp_path, rows, **first))
