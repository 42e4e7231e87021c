"""What single answers are worth: `scores` has the means of `each`."""

import numpy as np
import pytest

from evaluators.answers import (
    captions,
    grounded_captions,
    multiple_choice,
    pointing,
    referring,
    transcripts,
    vqa,
    yes_no,
)

BOXES = ["[[000,000,500,500]]", "[[500,500,999,999]]"]
CASES = {
    "vqa": (
        vqa.Scoring(),
        [dict(question="?", answers=["red"] * 9 + ["blue"]), dict(question="?", answers=["2"])] * 2,
        ["red", "two", "blue", "3"],
        {"vqa_accuracy": [1, 1, 0.3, 0], "exact_match": [1, 1, 0, 0]},
        ["red", "2"] * 2,
    ),
    "multiple_choice": (
        multiple_choice.Scoring(),
        [dict(question="?", choices=["a cat", "a dog"], answer=place) for place in (0, 1, 1)],
        ["A", "a cat", "no idea"],
        {"accuracy": [1, 0, 0], "no_choice": [0, 0, 1]},
        ["A. a cat", "B. a dog", "B. a dog"],
    ),
    "open_questions": (
        multiple_choice.Scoring(),
        [dict(question="?", answer_type="text", answers=["a cat"])] * 2,
        ["a cat", "a dog"],
        {"accuracy": [1, 0], "no_choice": [0, 0]},
        ["a cat"] * 2,
    ),
    "transcripts": (
        transcripts.Scoring(),
        [dict(question="?", answers=["a cat"])] * 2,
        ["It is a cat.", ""],
        {"words": [4, 0], "empty": [0, 1]},
        ["a cat"] * 2,
    ),
    "grounded_captions": (
        grounded_captions.Scoring(),
        [dict(captions={"caption": ["a cat"]}, phrases=["a cat"], boxes=[[0, 0, 0.5, 0.5]])] * 2,
        [f"a cat {BOXES[0]}", f"a cat {BOXES[1]}"],
        {"f1": [1, 0], "f1_loc": [1, 0]},
        ["a cat"] * 2,
    ),
    "pointing": (
        pointing.Scoring(),
        [dict(question="?", choices=BOXES, answer=1)] * 3,
        ["[[400,600,900,900]]", BOXES[0], "there"],
        {"accuracy": [1, 0, 0], "parse_failures": [0, 0, 1]},
        [BOXES[1]] * 3,
    ),
    "referring": (
        referring.Scoring(),
        [dict(phrases=["a cat", "a dog"], boxes=[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])] * 2,
        [BOXES[0], BOXES[0], "[[000,000,500,250]]", "there"],
        {
            "accuracy@0.5": [1, 0, 1, 0],
            "mean_iou": [1, 0, 0.5, 0],
            "parse_failures": [0, 0, 0, 1],
        },
        BOXES * 2,
    ),
    "yes_no": (
        yes_no.Scoring(),
        [dict(question="?", answers=[answer]) for answer in ("yes", "no", "no")],
        ["Yes, it is.", "There is no cat.", "yes"],
        {"accuracy": [1, 1, 0]},
        ["yes", "no", "no"],
    ),
    "captions": (
        captions.Scoring(),
        [dict(captions={"caption": [text]}) for text in ("a cat sat down", "a red bird flew off")],
        ["a cat sat down", "nothing of it"],
        {"cider": [10, 0], "rouge_l": [1, 0]},
        ["a cat sat down", "a red bird flew off"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_means_of_what_each_is_worth(name):
    scoring, records, texts, expected, right = CASES[name]
    questions = [
        question
        for number, record in enumerate(records)
        for question in scoring.questions_of({"id": f"r{number}", **record})
    ]
    kept = [one for _, one in questions]
    each, scores = scoring.each(texts, kept), dict(scoring.scores(texts, kept))
    assert list(each) == list(expected)
    for metric, values in expected.items():
        assert each[metric].dtype == np.float64
        np.testing.assert_allclose(each[metric], values, atol=1e-9)
        if metric in scores:  # open questions are no choices
            assert scores[metric] == pytest.approx(np.mean(values))
    assert [scoring.right_answers(one)[0] for one in kept] == right
    assert (scoring.right is None) == (name in ("captions", "transcripts"))
