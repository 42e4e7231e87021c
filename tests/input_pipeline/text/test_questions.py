"""What is learnt is what is asked."""

import random

import numpy as np
import pytest

from evaluators.answers import multiple_choice, pointing
from input_pipeline.text import instructions, questions
from input_pipeline.text.boxes import find_boxes
from input_pipeline.text.conversations import Turn, make_turn
from input_pipeline.views.cogvlm import TEMPLATES

CHOICES = {"id": "1", "question": "Which? ", "choices": ["a cat", "a dog"], "answer": 1}
CHOICES |= {"answers": ["a dog"], "hint": "Look."}
BOXES = ["[[000,000,100,100]]", "[[500,500,600,600]]"]
POINTING = {"id": "2", "question": "Which cup? ", "choices": BOXES, "answer": 1}
POINTING |= {"answers": BOXES[1:]}
GROUNDED = {
    "id": "3",
    "question": "Is the cat asleep?",
    "answers": ["yes"],
    "phrases": ["the cat", "a mat"],
    "boxes": np.array([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]], np.float32),
}
CAT, MAT = "[[100,200,300,400]]", "[[000,000,999,999]]"


def turn(task, record, **options):
    return make_turn(task, record, random.Random(0), **options)


def test_choices_are_learnt_as_they_are_asked():
    found = turn("vqa", CHOICES)
    assert found == Turn(
        "Look.\nWhich?\nA. a cat\nB. a dog\n"
        "Answer with the option's letter from the given choices directly.",
        "B",
    )
    assert multiple_choice.Scoring().query(CHOICES) == found.query
    assert multiple_choice.Evaluator.template == TEMPLATES["vqa"]
    # Without choices the answer is one of the texts.
    plain = {k: v for k, v in CHOICES.items() if k not in ("choices", "answer")}
    assert turn("vqa", plain) == Turn("Look.\nWhich?", "a dog")
    with pytest.raises(ValueError, match="'1': there are 27 choices"):
        turn("vqa", {**CHOICES, "choices": list(map(str, range(27)))})


def test_the_letter_is_enough():
    known = {k: v for k, v in CHOICES.items() if k != "answers"}
    assert turn("vqa", known) == turn("vqa", CHOICES)
    assert turn("vqa", {**known, "answer": None}) is None
    assert turn("vqa", {**CHOICES, "answer": 1.0}).answer == "B"


@pytest.mark.parametrize("answer", [-1, 2, "B", 0.5, [1]])
def test_answers_are_places_of_choices(answer):
    with pytest.raises(ValueError, match=r"'1': it has answer=.* the place of one of its 2 choi"):
        turn("vqa", {**CHOICES, "answer": answer})


def test_pointing_is_learnt_as_it_is_asked():
    found = turn("pointing", POINTING)
    assert found == Turn("Which cup?", BOXES[1])
    assert pointing.Scoring().query(POINTING) == found.query
    assert pointing.Evaluator.template == TEMPLATES["pointing"]
    assert turn("vqa", POINTING) is None and turn("pointing", CHOICES) is None
    assert not questions.are_boxes(["[[1]] or 2", BOXES[0]]) and not questions.are_boxes([])


def test_the_box_in_the_question():
    assert turn("vqa_boxes", GROUNDED) == Turn(f"Is the cat {CAT} asleep?", "yes")
    assert turn("vqa_boxes", {**GROUNDED, "question": "Is it?"}) is None


def test_reasons_come_before_the_answer():
    record = {**GROUNDED, "rationale": "The cat lies on a mat, its eyes closed"}
    found = turn("cot", record)
    text = f"The cat {CAT} lies on a mat {MAT}, its eyes closed."
    assert found.answer == f"{text} So the answer is yes."
    assert found.query.startswith("Is the cat asleep? ")
    boxed = {"id": "4", "question": "What?", "answers": ["blue."], "rationale": f"Find it {CAT}."}
    assert turn("cot", boxed).answer == f"Find it {CAT}. So the answer is blue."
    assert turn("cot", {**record, "rationale": "It sleeps."}) is None
    several = {"id": "5", "questions": [boxed, CHOICES, {**boxed, "question": "Why?"}]}
    found = turn("cot", several, history="turns")
    assert len(found.history) == 1 and {found.history[0][0][:4], found.query[:4]} == {
        "What",
        "Why?",
    }


@pytest.mark.parametrize("task", ["rec", "reg", "grounded", "cot"])
def test_words_vary_in_training_alone(task):
    record = {**GROUNDED, "captions": {"a": ["the cat on a mat"]}, "rationale": "See the cat."}
    fixed = {make_turn(task, record, random.Random(i)).query for i in range(60)}
    drawn = [make_turn(task, record, random.Random(i), varied=True) for i in range(200)]
    assert drawn == [make_turn(task, record, random.Random(i), varied=True) for i in range(200)]
    queries = {one.query for one in drawn}
    assert fixed < queries and len(queries) > len(fixed) + 2
    for query in queries:
        assert "{" not in query and (task != "reg" or len(find_boxes(query)) == 1)


def test_every_form_is_filled():
    for form in instructions.WHERE:
        assert "cat" in instructions.where_query("the cat", form)
    assert instructions.where_query("A cat", instructions.WHERE[1]).startswith("Where is A cat?")


def test_with_turns_all_of_a_record_is_asked():
    found = turn("rec", GROUNDED, history="turns")
    rounds = {*found.history, (found.query, found.answer)}
    assert rounds == {("Where is the cat?", CAT), ("Where is the mat?", MAT)}
    asked = [{"question": f"q{i}", "answers": [f"a{i}"]} for i in range(3)]
    found = turn("vqa", {"id": "5", "questions": asked}, history="turns")
    assert {*found.history, found[:2]} == {(f"q{i}", f"a{i}") for i in range(3)}
    alone = {turn("vqa", {"id": "5", "questions": asked, "n": i}) for i in range(3)}
    assert all(one.history == () for one in alone)


@pytest.mark.parametrize(
    "kind, precision, line",
    [
        ("text", None, "single word or phrase."),
        ("integer", None, "single integer number."),
        ("float", 2.0, "single floating-point number with two decimal places."),
        ("float", 3.0, "single floating-point number with 3 decimal places."),
        ("float", None, "single floating-point number."),
        ("list", None, "Python list."),
    ],
)
def test_open_questions_are_learnt_with_the_kind_of_their_answers(kind, precision, line):
    record = {"id": "4", "question": "How many?", "answers": ["3"], "answer_type": kind}
    record |= {"precision": precision}
    asked = multiple_choice.Scoring().query(record)
    assert asked.startswith("How many?\nAnswer the question using a ") and asked.endswith(line)
    assert make_turn("vqa", record, random.Random(0)) == Turn(asked, "3")


def test_a_phrase_loses_the_article_that_it_begins_with():
    asked = [instructions.where_query(phrase) for phrase in ("The red cup", "pizza on a plate")]
    assert asked == ["Where is the red cup?", "Where is the pizza on a plate?"]
