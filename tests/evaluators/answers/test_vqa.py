"""VQA scores, prompts, controls, and what evaluators of generated text share."""

import dataclasses

import numpy as np
import pytest

from evaluators.answers.shared.agreement import normalise, soft_accuracy
from evaluators.shared.base import make_evaluator
from evaluators.shared.written import image_for
from input_pipeline.sources import make_source
from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy

QUESTIONS = [
    "what colour is it?",
    "what colour is the star?",
    "how many rings?",
    "Is there a ring?",
]


def source_of(answers, questions=None):
    size = len(answers)
    questions = questions or (QUESTIONS * size)[:size]
    return toy.ToySource({"caption": [["?"]] * size}, question=questions, answers=answers)


def evaluate(answers, written, questions=None, **config):
    model = toy_text.answers(written, blind=config.pop("blind", ""))
    return toy_text.evaluate("vqa", source_of(answers, questions), model, **config)


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("Yes.", "yes"),
        (" The  red\nring!", "red ring"),
        ("two", "2"),
        ("none", "0"),
        ("1,000 cats", "1000 cats"),
        ("3.5", "3.5"),
        ("10:30", "10:30"),
        ("t-shirt, blue", "t shirt blue"),
        ("t-shirt - blue", "tshirt blue"),
        ("50%", "50%"),
        ("$5.00", "$5.00"),
        ("#1", "#1"),
        ("A & B", "& b"),  # a is an article
        ("B & W.", "b & w"),
        ("salt/pepper", "salt pepper"),
        ("dont", "don't"),
        ("Couldnt've", "couldn't've"),
        ("its", "its"),
        ("dog's", "dog's"),
        ("$1,000/month", "$1000month"),  # all marks vanish where a number has a comma
        ("a", ""),
        ("five\tdogs", "5 dogs"),
        ("theatre", "theatre"),
    ],
)
def test_normalising(answer, expected):
    assert normalise(answer) == expected
    assert normalise(expected) == expected


def test_soft_accuracy_is_the_mean_over_leaving_one_out():
    for given in range(11):
        answers = ["red"] * given + [f"other {i}" for i in range(10 - given)]
        left = [answers[:i] + answers[i + 1 :] for i in range(10)]
        expected = np.mean([min(others.count("red") / 3, 1) for others in left])
        assert soft_accuracy("red", answers) == pytest.approx(expected)
    assert soft_accuracy("red", ["red"] * 3 + ["x"] * 7) == pytest.approx(0.9)
    # Three others cannot agree where there are not three others.
    for few in (["red"], ["blue", "red", "blue"]):
        assert soft_accuracy("red", few) == 1
    assert soft_accuracy("red", ["blue"]) == 0


def test_scores():
    answers = [["red"], ["blue"] * 4 + ["red"] * 6, ["2"], ["yes"]]
    values = evaluate(answers, ["red", "Blue.", "two", "no"])
    assert values["exact_match"] == 0.5  # the second is not the most frequent one
    assert values["vqa_accuracy"] == pytest.approx((1 + 1 + 1 + 0) / 4)
    assert values.keys() == {
        "exact_match",
        "vqa_accuracy",
        "exact_match_baseline",
        "vqa_accuracy_baseline",
    }


def test_the_baseline_knows_how_questions_begin():
    answers = [["red"], ["red"], ["2"], ["yes"], ["blue"], ["red"], ["2"], ["no"]]
    values = evaluate(answers, [""] * 8)
    assert values["exact_match"] == 0
    # Colours: 3 of 4 are red; numbers: both 2; one of yes and no.
    assert values["exact_match_baseline"] == values["vqa_accuracy_baseline"] == 6 / 8


def test_the_model_is_asked_in_the_template():
    echoed = "Question: is there a ring? Short answer:"
    fns = {"generate": toy_text.echo}
    source = source_of([[echoed], [echoed]], ["is there a ring? "] * 2)
    assert toy_text.evaluate("vqa", source, {}, fns)["exact_match"] == 1
    for template, prompt in (
        ("base", "is there a ring?"),
        ("chat", "[INST] is there a ring? [/INST]"),
    ):
        source = source_of([[prompt], [prompt]], ["is there a ring?"] * 2)
        assert toy_text.evaluate("vqa", source, {}, fns, template=template)["exact_match"] == 1


def test_controls_see_other_images():
    colours = ["red", "green", "blue", "black", "white"]
    values = evaluate(
        [[c] for c in colours], colours, controls=["shuffled", "blind"], blind="black"
    )
    assert values["exact_match"] == 1
    assert values["exact_match_shuffled"] == 0
    assert values["exact_match_blind"] == values["vqa_accuracy_blind"] == 0.2
    same = evaluate([["red"]] * 4, ["red"] * 4, controls=["shuffled"])
    assert same["exact_match_shuffled"] == 1


def test_weights_for_writing_are_made_for_each_pass():
    made = []

    class Generate:
        def weights(self, model):
            made.append(model)
            return {"answers": model["stored"]}

        def __call__(self, model, batch):
            return toy_text.generate(model, batch)

    model = {"stored": toy_text.answers(["red", "blue"])["answers"]}
    asked = dict(predict_fns={"generate": Generate()}, controls=["shuffled"])
    values = toy_text.evaluate("vqa", source_of([["red"], ["blue"]]), model, **asked)
    assert values["exact_match"] == 1 and values["exact_match_shuffled"] == 0
    assert made == [model, model]


def test_control_images():
    source = source_of([["x"]] * 5)
    levels = [
        [
            int(image_for(i, source[i], source, toy_text.PREPROCESS, control)[0, 0, 0, 0])
            for i in range(5)
        ]
        for control in (None, "shuffled")
    ]
    assert levels == [[0, 2, 4, 6, 8], [4, 6, 8, 0, 2]]
    blind = image_for(1, source[1], source, toy_text.PREPROCESS, "blind")
    assert blind.shape == (1, 8, 8, 3) and blind.dtype == np.uint8
    normalised = (blind / 255 - toy_text.PREPROCESS.mean) / toy_text.PREPROCESS.std
    assert np.abs(normalised).max() < 0.01


def test_bad_input_is_explained():
    def fails(message, answers=(["a"], ["b"]), preprocess=toy_text.PREPROCESS, **config):
        fns = config.pop("fns", toy_text.PREDICT_FNS)
        with pytest.raises(ValueError, match=message):
            toy_text.evaluate(
                "vqa", source_of(list(answers)), toy_text.answers([]), fns, preprocess, **config
            )

    fails(r"needs the predict functions \['generate'\]", fns={"classify": None})
    fails("Unknown template 'llava'", template="llava")
    fails("controls='blind': give a list", controls="blind")
    fails(r"controls=\['deaf'\]", controls=["deaf"])
    fails("'shuffled' needs data of two records", answers=[["a"]], controls=["shuffled"])
    fails("'toy-0' has no answers", answers=[[], []])
    change = dataclasses.replace
    fails("set resize='squash'", preprocess=change(toy_text.PREPROCESS, resize="shortest"))
    fails("need a LLaMA tokenizer", preprocess=change(toy_text.PREPROCESS, tokenizer="clip"))
    textless = change(toy_text.PREPROCESS, tokenizer=None, context_length=0)
    fails("names no tokenizer", preprocess=textless)
    fails(
        "must be a multiple of image_token_size=3",
        preprocess=change(toy_text.PREPROCESS, image_token_size=3),
    )
    fails(
        r"'toy-\d': its prompt .* may have 4",
        preprocess=change(toy_text.PREPROCESS, context_length=4),
    )


def test_a_language_model_is_not_asked_about_images():
    preprocess = dataclasses.replace(toy_text.PREPROCESS, image_token_size=None)
    with pytest.raises(ValueError, match="image_token_size"):
        toy_text.evaluate("vqa", source_of([["a"]]), toy_text.answers([]), preprocess=preprocess)


def test_scenes_are_answered():
    """A model that always says yes is right where that is the answer."""
    data = {"name": "scenes", "split": "val", "size": 20, "image_size": 32}
    source = make_source(**data)
    yes = np.array([*toy_text.TEXT.encode("yes"), 2, 0], np.int32)

    def generate(model, batch):
        return np.broadcast_to(yes, (len(batch["tokens"]), len(yes)))

    evaluator = make_evaluator(
        "vqa",
        {"generate": generate},
        toy_text.PREPROCESS,
        toy.mesh(),
        data=data,
        controls=("blind",),
    )
    values = dict(evaluator.run({}))
    share = np.mean([source[i]["answers"] == ["yes"] for i in range(20)])
    assert values["exact_match"] == values["exact_match_blind"] == pytest.approx(share)
    assert 0 < share < values["exact_match_baseline"] < 1
