"""Tasks: what is asked about a record and what the right answer is."""

import random
from collections import Counter

import numpy as np
import pytest

from input_pipeline.sources import make_source
from input_pipeline.text import conversations
from input_pipeline.text.boxes import find_boxes, parse_boxes
from input_pipeline.text.conversations import Turn, ground, make_turn, where_query

CAT, DOGS = [0.1, 0.2, 0.3, 0.4], [[0.5, 0.5, 0.6, 0.6], [0.7, 0.7, 0.9, 0.9]]
RECORD = {
    "id": "r7",
    "captions": {"caption": ["A cat sits by the dogs.", " "], "short": ["pets"]},
    "phrases": ["a cat", "the dogs", "the dogs"],
    "boxes": np.array([CAT, *DOGS], np.float32),
    "question": "how many dogs? ",
    "answers": ["2", "2", "two"],
    "conversation": [
        {"role": role, "content": f"{role[0]}{i}"}
        for i in range(4)
        for role in ("user", "assistant")
    ],
}
CAT_TEXT, DOGS_TEXT = "[[100,200,300,400]]", "[[500,500,600,600;700,700,900,900]]"


def turns(task, record=RECORD, count=200, **options):
    return [make_turn(task, record, random.Random(i), **options) for i in range(count)]


def test_captions_are_answers_to_nothing():
    assert set(turns("caption")) == {Turn("", "A cat sits by the dogs."), Turn("", "pets")}
    assert set(turns("caption", caption_fields=["short"])) == {Turn("", "pets")}
    assert turns("caption", count=1, caption_fields=["long"]) == [None]


def test_answers_are_drawn_as_often_as_they_were_given():
    drawn = Counter(turns("vqa", count=600))
    assert drawn.keys() == {Turn("how many dogs?", "2"), Turn("how many dogs?", "two")}
    assert 1.5 < drawn[Turn("how many dogs?", "2")] / drawn[Turn("how many dogs?", "two")] < 2.7


def test_phrases_and_boxes():
    assert set(turns("rec")) == {
        Turn("Where is the cat?", CAT_TEXT),
        Turn("Where is the dogs?", DOGS_TEXT),
    }
    asked = "Please describe the region {} in the picture."
    assert set(turns("reg")) == {
        Turn(asked.format(CAT_TEXT), "a cat"),
        Turn(asked.format(DOGS_TEXT), "the dogs"),  # neither alone
    }


def test_only_a_leading_article_is_dropped():
    assert where_query(" An apple") == "Where is the apple?"
    assert where_query("some THE the") == "Where is the THE the?"
    assert where_query("anna") == "Where is the anna?"
    assert where_query("a") == "Where is the a?"


def test_the_caption_with_the_most_phrases_gets_boxes():
    (turn,) = set(turns("grounded"))
    assert turn.answer == f"A cat {CAT_TEXT} sits by the dogs {DOGS_TEXT}."
    assert "[[x0,y0,x1,y1]]" in turn.query
    assert turns("grounded", count=1, caption_fields=["short"]) == [None]


def test_grounding_takes_whole_words_and_the_longer_phrase():
    boxes = {"a cat": np.array([CAT]), "cat": np.array([DOGS[0]]), "a cat toy": np.array([DOGS[1]])}
    text, count = ground("scat, A Cat toy and a cat; (cat)", boxes)
    toy, inner = "[[700,700,900,900]]", "[[500,500,600,600]]"
    assert text == f"scat, A Cat toy {toy} and a cat {CAT_TEXT}; (cat {inner})"
    assert count == 3
    assert ground("a dog", boxes) == ("a dog", 0)
    assert ground("what? (x)", {"(x)": np.array([CAT])}) == (f"what? (x) {CAT_TEXT}", 1)


def test_scenes_are_grounded_exactly():
    source = make_source("scenes", split="val", size=30, image_size=32)
    for i in range(len(source)):
        record = source[i]
        turn = make_turn("grounded", record, random.Random(i), ["caption"])
        (caption,) = record["captions"]["caption"]
        rest = turn.answer
        for group in find_boxes(turn.answer):
            own = [
                box
                for phrase, box in zip(record["phrases"], record["boxes"])
                if turn.answer[: group.start].endswith(phrase + " ")
            ]
            assert len(own) == 1 and np.abs(group.boxes - own[0]).max() < 0.0011
            rest = rest.replace(" " + turn.answer[group.start : group.end], "", 1)
        assert rest == caption
        assert len(find_boxes(turn.answer)) == len(record["phrases"])
        for task in ("caption", "vqa", "rec", "reg"):
            assert make_turn(task, record, random.Random(i)).answer
        where = make_turn("rec", record, random.Random(i))
        (place,) = [
            j for j, phrase in enumerate(record["phrases"]) if where_query(phrase) == where.query
        ]
        (box,) = parse_boxes(where.answer)
        np.testing.assert_allclose(box, record["boxes"][place], atol=0.0011)


def test_a_round_has_all_that_was_before_it():
    rounds = [(f"u{i}", f"a{i}") for i in range(4)]
    drawn = Counter(turns("conversation", count=400))
    assert drawn.keys() == {Turn(*rounds[i], tuple(rounds[:i])) for i in range(4)}
    assert min(drawn.values()) > 60


def test_or_half_the_time_the_one_before_it():
    rounds = [(f"u{i}", f"a{i}") for i in range(4)]
    drawn = Counter(turns("conversation", count=800, history="previous"))
    assert drawn.keys() == {Turn(*r) for r in rounds} | {
        Turn(*rounds[i], (rounds[i - 1],)) for i in range(1, 4)
    }
    with_history = sum(n for turn, n in drawn.items() if turn.history)
    assert 0.4 < with_history / (800 - drawn[Turn(*rounds[0])]) < 0.6


@pytest.mark.parametrize("task", conversations.TASKS)
def test_nothing_is_made_of_nothing(task):
    for record in ({"id": "1", "captions": {}}, {"id": "1", "captions": {"a": []}, "phrases": []}):
        assert make_turn(task, record, random.Random(0)) is None
    assert make_turn(task, RECORD, random.Random(5)) == make_turn(task, RECORD, random.Random(5))


@pytest.mark.parametrize(
    "task, change, message",
    [
        ("caption", {"captions": {"caption": "a cat"}}, "'caption' is a plain string"),
        ("rec", {"phrases": ["a cat"]}, "there are 1 phrases, but 3 boxes"),
        ("reg", {"boxes": 96 * RECORD["boxes"]}, "of 'a cat' is not .* in shares"),
        ("rec", {"boxes": RECORD["boxes"][:, ::-1]}, "is not .* in shares"),
        ("conversation", {"conversation": RECORD["conversation"][1:]}, "in turn.*'assistant', 'u"),
        ("conversation", {"conversation": [{"role": "user"}, {"role": "assistant"}]}, "a text"),
    ],
)
def test_malformed_records_are_named(task, change, message):
    with pytest.raises(ValueError, match=f"Record 'r7': .*{message}"):
        make_turn(task, {**RECORD, **change}, random.Random(0))


def test_unknown_names():
    with pytest.raises(ValueError, match=r"Unknown task 'ocr'.*'caption', 'vqa'"):
        make_turn("ocr", RECORD, random.Random(0))
    with pytest.raises(ValueError, match=r"Unknown history 'some'.*'all', 'previous'"):
        make_turn("caption", RECORD, random.Random(0), history="some")
