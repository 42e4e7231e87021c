"""Answers for a judge, in the files that the scripts of the judged benchmarks read."""

import csv
import json

import pytest

from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy

WRITTEN = ["a red\ncat sat", ""]


def source_of(**fields):
    base = {
        "question": ["why?", 'what\t"now"?'],
        "question_id": ["0", "1"],
        "category": ["conv", "detail"],
        "answers": [["It is red."], ["Two\nlines."]],
    }
    return toy.ToySource({"caption": [["?"]] * 2}, **base | fields)


def evaluate(path, form, source=None, **config):
    asked = dict(predictions=str(path), form=form) | config
    model = toy_text.answers(WRITTEN)
    return toy_text.evaluate("transcripts", source or source_of(), model, **asked)


def test_mmvet(tmp_path):
    source = source_of(question_id=["v1_0", "v1_1"])
    values = evaluate(tmp_path / "f", "mmvet", source, by="category", controls=["shuffled"])
    assert json.loads((tmp_path / "f").read_text()) == {"v1_0": "a red\ncat sat", "v1_1": ""}
    assert values["words"] == 2 and values["empty"] == 0.5
    assert values["words_conv"] == 4 and values["empty_detail"] == 1
    assert values["words_shuffled"] == 2


def test_llava_bench(tmp_path):
    # Its answers by GPT-4 need not be there.
    source = source_of(answers=[[], []])
    evaluate(tmp_path / "f", "llava_bench", source)
    assert [json.loads(line) for line in (tmp_path / "f").read_text().splitlines()] == [
        {
            "question_id": number,
            "prompt": prompt,
            "answer_id": str(number),
            "model_id": "big_vlp",
            "metadata": {},
            "text": text,
        }
        for number, (prompt, text) in enumerate(zip(['why?', 'what\t"now"?'], WRITTEN))
    ]  # fmt: skip


def test_touchstone(tmp_path):
    source = source_of(description=["A cat.", "A dog."], task=["meme", "poem"])
    evaluate(tmp_path / "f", "touchstone", source)
    with open(tmp_path / "f", newline="") as file:
        first, second = csv.DictReader(file, delimiter="\t")
    assert first == {
        "index": "0",
        "question": "why?",
        "human_annotation": "A cat.",
        "gpt4_ha_answer": "It is red.",
        "category": "conv",
        "task_name": "meme",
        "response": "a red\ncat sat",
    }
    assert second["question"] == 'what\t"now"?' and second["gpt4_ha_answer"] == "Two\nlines."


def test_what_is_missing_fails_before_training(tmp_path):
    with pytest.raises(ValueError, match="a column 'human_annotation', which is not known of"):
        evaluate(tmp_path / "f", "touchstone")
    with pytest.raises(ValueError, match="give predictions=FILE"):
        toy_text.evaluate("transcripts", source_of(), toy_text.answers(WRITTEN))
    with pytest.raises(ValueError, match="'toy-0' has no question"):
        evaluate(tmp_path / "f", "mmvet", source_of(question=["", "?"]))
