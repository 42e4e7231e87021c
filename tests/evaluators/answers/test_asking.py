"""Evaluators that ask one question of each record: scores by hand, controls, predictions."""

import dataclasses
import json
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from evaluators.answers import choice_loss, multiple_choice
from evaluators.answers.shared import letters, predictions
from evaluators.answers.yes_no import says_yes
from evaluators.shared import records
from evaluators.shared.written import image_for
from input_pipeline.records import BrokenRecordError
from input_pipeline.text.boxes import format_boxes
from tests.evaluators.answers import toy_text
from tests.evaluators.shared import toy


def source_of(**fields):
    size = len(next(iter(fields.values())))
    captions = fields.pop("caption", [["?"]] * size)
    return toy.ToySource({"caption": captions}, **({"question": ["?"] * size} | fields))


def evaluate(name, written, source, **config):
    return toy_text.evaluate(name, source, toy_text.answers(written), **config)


def test_pope_by_hand():
    """Right: yes, yes, no, no, yes, no; said: yes, no, yes, no, yes, no."""
    source = source_of(
        answers=[[a] for a in ("yes", "yes", "no", "no", "yes", "no")],
        category=["random"] * 4 + ["popular"] * 2,
    )
    written = ["Yes.", "no", "yes there is", "There is not. Yes", "yes", "No, it is blue"]
    values = evaluate("yes_no", written, source, by="category")
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["precision"] == values["recall"] == values["f1"] == pytest.approx(2 / 3)
    assert values["yes_ratio"] == 0.5 and values["accuracy_baseline"] == 0.5
    assert values["accuracy_random"] == 0.5 and values["f1_random"] == 0.5
    assert values["accuracy_popular"] == 1 and values["yes_ratio_popular"] == 0.5


def test_an_answer_is_a_yes_as_in_popes_script():
    assert all(map(says_yes, ("yes", "maybe", "", "nothing", "Yes. no", "NO", "yes!")))
    assert not any(map(says_yes, ("no", "No", "not so", "It is not", "no, yes", "No.")))


BOX = np.float32([[0.1, 0.1, 0.3, 0.3]])
CHOICES = [["red", "blue"], ["cat", "dog", "bird"], ["one", "two"], ["up", "down"]]


def test_choices_by_hand():
    source = source_of(
        choices=CHOICES, answer=[0, 2, 1, 0], category=["x", "x", "y", "y"], pair=["1", "2"] * 2
    )
    asked = dict(pairs=True, instruction="")  # the toy's rows are short
    values = evaluate("multiple_choice", ["A", "dog", "(b)", "?"], source, by="category", **asked)
    assert values["accuracy"] == 0.5 and values["no_choice"] == 0.25
    assert values["accuracy_x"] == values["accuracy_y"] == 0.5
    assert values["accuracy_of_pairs"] == 0.5  # the first and third, not neighbours
    assert values["accuracy_chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4)
    pairs = evaluate("multiple_choice", ["B", "C", "A", "A"], source, **asked)
    assert pairs["accuracy_of_pairs"] == 0.5 and pairs["accuracy"] == 0.5


def test_open_questions_beside_choices():
    source = source_of(
        choices=[["red", "blue"], None, [], ["up", "down"]],
        answer=[0, None, None, 1],
        answers=[["red"], ["8", "8.0"], ["1.2"], ["down"]],
        answer_type=["text", "text", "float", "text"],
        precision=[None, None, 1.0, None],
        category=["x", "x", "y", "y"],
    )
    asked = dict(instruction="", by="category", circular=True)
    preprocess = dataclasses.replace(toy_text.PREPROCESS, context_length=256)
    written = ["red", "it is 8", "1.26", "?"]
    values = evaluate("multiple_choice", written, source, preprocess=preprocess, **asked)
    assert values["accuracy"] == values["accuracy_circular"] == 0.5
    assert values["accuracy_choices"] == values["accuracy_open"] == values["no_choice"] == 0.5
    assert values["accuracy_x"] == 1 and values["accuracy_y"] == values["accuracy_open_y"] == 0
    assert values["accuracy_chance"] == 0.5  # of the questions with choices
    # One kind alone is the accuracy.
    alone = source_of(answers=[["8"]], answer_type=["integer"])
    values = evaluate("multiple_choice", ["8"], alone, preprocess=preprocess)
    assert values == {"accuracy": 1}


def test_predictions_name_choices_by_letters(tmp_path):
    source = source_of(
        choices=[["red", "blue"], ["cat", "dog"], []],
        question_id=["a", "b", "c"],
        answer=[1, 0, None],
        answers=[["blue"], ["cat"], ["8"]],
        answer_type=["text"] * 3,
    )
    preprocess = dataclasses.replace(toy_text.PREPROCESS, context_length=256)
    path = tmp_path / "answers.json"
    asked = dict(instruction="", preprocess=preprocess, predictions=str(path))
    written = ["it is blue", "A or B", "about 8"]
    values = evaluate("multiple_choice", written, source, **asked)
    assert json.loads(path.read_text()) == {"a": "B", "b": "A or B", "c": "about 8"}
    found = predictions.matched(predictions.read(path), ["a", "b", "c"], "file")
    scoring = multiple_choice.Scoring()
    again = dict(scoring.scores(found, [scoring.keep(source[i]) for i in range(3)]))
    assert again == {name: values[name] for name in again} and again["no_choice"] == 0.5
    evaluate("multiple_choice", written, source, form="scienceqa", **asked)
    assert json.loads(path.read_text()) == {"results": {"a": 1, "b": -1, "c": -1}}


def test_circular_evaluation_asks_for_each_order():
    source = source_of(choices=CHOICES, answer=[0, 2, 1, 0])
    # Who writes the words is right in every order, who always says A only in the first.
    asked = dict(circular=True, instruction="")
    values = evaluate("multiple_choice", ["red", "bird", "two", "A"], source, **asked)
    assert values["accuracy"] == 1 and values["accuracy_circular"] == 0.75
    read, fields = [], source.fields
    with mock.patch.object(source, "fields", lambda some: read.extend(some) or fields(some)):
        by_letter = evaluate("multiple_choice", ["A", "C", "B", "A"], source, **asked)
    assert sorted(read) == [0, 0, 1, 2, 3]  # the first also when the evaluator is made
    assert by_letter["accuracy"] == 1 and by_letter["accuracy_circular"] == 0


def test_a_question_is_asked_with_hint_and_choices():
    """The model writes what it reads, which a question of VQA is told to expect."""
    query = "see\nwhich\nA. p\nB. q\nSay"
    kept = []
    source = source_of(choices=[["p", "q"]], answer=[1], question=["which "], hint=["see"])
    with mock.patch.object(letters, "chosen", lambda text, choices: kept.append(text)):
        toy_text.evaluate(
            "multiple_choice", source, {}, {"generate": toy_text.echo}, instruction="Say"
        )
    vqa = source_of(answers=[kept], question=[query])
    found = toy_text.evaluate("vqa", vqa, {}, {"generate": toy_text.echo}, normalisation="plain")
    assert found["exact_match"] == 1 and "which" in kept[0]


def test_the_likeliest_choice_is_taken():
    source = source_of(choices=CHOICES, answer=[0, 2, 1, 0])

    def losses_by_length(model, batch):
        """All tokens of an answer together lose 1, or each the number of them: the mean counts."""
        counts = batch["loss_mask"].sum(axis=1, dtype=jnp.int32)
        return jnp.where(model["longest"], 1, counts * counts).astype(jnp.float32), counts

    lengths = [[len(toy_text.TEXT.encode(choice)) for choice in own] for own in CHOICES]

    def expected(best):
        return np.mean([
            own[answer] == best(own) and own.count(best(own)) == 1
            for own, answer in zip(lengths, [0, 2, 1, 0])
        ])  # fmt: skip

    for longest, best in ((True, max), (False, min)):
        fns = {"token_losses": losses_by_length}
        model = {"longest": jnp.asarray(longest)}
        values = toy_text.evaluate("choice_loss", source, model, fns, controls=["blind"])
        assert values["accuracy"] == values["accuracy_blind"] == expected(best)
        assert values["accuracy_chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4)
    # An image is decoded once for all of its choices.
    read = []
    with mock.patch.object(choice_loss, "image_for", lambda row, **more: read.append(row) or
                           image_for(row, **more)):  # fmt: skip
        toy_text.evaluate("choice_loss", source, model, fns, batch_size=2)
    assert sorted(read) == [0, 1, 2, 3]
    # Two choices alike are a tie, which is no hit.
    same = source_of(choices=[["red", "red"]], answer=[0])
    assert toy_text.evaluate("choice_loss", same, model, fns)["accuracy"] == 0


def test_the_likeliest_choices_are_handed_in_as_letters(tmp_path):
    def losses(model, batch):
        counts = batch["loss_mask"].sum(axis=1, dtype=jnp.int32)
        return counts * counts.astype(jnp.float32), counts

    choices = [["red", "red"], *CHOICES[1:]]  # of the first neither is the likeliest
    lengths = [[len(toy_text.TEXT.encode(choice)) for choice in own] for own in choices]
    unique = [own if own.count(min(own)) == 1 else None for own in lengths]
    expected = ["" if own is None else "ABC"[own.index(min(own))] for own in unique]
    assert expected[0] == "" and len(set(expected[1:])) > 1
    path = tmp_path / "answers.json"
    asked = dict(predict_fns={"token_losses": losses}, predictions=str(path), controls=["blind"])
    ids = dict(question_id=["a", "b", "c", "d"])
    source = source_of(choices=choices, answer=[0, 2, 1, 0], **ids)
    values = toy_text.evaluate("choice_loss", source, {}, **asked)
    assert json.loads(path.read_text()) == dict(zip("abcd", expected))
    scoring = multiple_choice.Scoring()
    kept = [scoring.keep(source[i]) for i in range(4)]
    texts = predictions.matched(predictions.read(path), list("abcd"), "file")
    assert dict(scoring.scores(texts, kept))["accuracy"] == values["accuracy"]
    # Of a test whose answers are secret the file alone comes.
    secret = source_of(choices=choices, **ids)
    assert toy_text.evaluate("choice_loss", secret, {}, **asked | {"form": "scienceqa"}) == {}
    places = ["ABC".find(letter) if letter else -1 for letter in expected]
    assert json.loads(path.read_text()) == {"results": dict(zip("abcd", places))}
    with pytest.raises(ValueError, match="'toy-0' has no answer"):
        toy_text.evaluate("choice_loss", secret, {}, {"token_losses": losses})


def test_pointing_takes_the_box_that_overlaps_most():
    boxes = [np.array(b) for b in ([0, 0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0, 0.5, 0.3, 0.9])]
    choices = [[format_boxes(box) for box in boxes]] * 5
    source = source_of(choices=choices, answer=[0, 1, 2, 0, 0])
    written = [
        "[[050,050,400,400]]",
        "it is [[450,450,900,900]] or [[000,000,400,400]]",  # the first counts
        "[[000,000,400,400]]",
        "[[1,2]] [[a,b,c,d]]",
        "[[950,950,990,990]]",  # overlaps none
    ]
    values = evaluate("pointing", written, source)
    assert values["accuracy"] == pytest.approx(2 / 5) and values["parse_failures"] == 0.2
    assert values["accuracy_chance"] == pytest.approx(1 / 3)


def test_captions_are_scored_by_domain():
    captions = [["a red cat", "the cat"], ["a dog ran"], ["a bird in a tree"], ["two boats"]]
    source = source_of(caption=captions, domain=["in", "in", "out", "out"])
    written = ["a red cat", "a dog", "?", "two boats"]
    values = evaluate("captions", written, source, by="domain", controls=["shuffled"])
    halves = [
        evaluate("captions", written[part], source_of(caption=captions[part]))
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name in ("cider", "bleu_1", "rouge_l"):
        for domain, half in zip(("in", "out"), halves):
            assert values[f"{name}_{domain}"] == pytest.approx(half[name])
    assert 0 < values["cider"] < 10 and values["cider_shuffled"] < values["cider"]


def test_tdiuc_by_hand():
    source = source_of(
        answers=[["yes"], ["yes"], ["yes"], ["no"], ["3"], ["4"]],
        category=["p"] * 4 + ["q"] * 2,
    )
    # Of the first type 2 of 4 are right: 2 of 3 of yes, none of no; of the second 1 of 2.
    values = evaluate("vqa", ["yes", "yes", "x", "yes", "3", "3"], source, by="category")
    assert values["exact_match"] == 0.5
    assert values["exact_match_p"] == values["exact_match_q"] == 0.5
    assert values["exact_match_of_groups"] == values["exact_match_of_groups_harmonic"] == 0.5
    assert values["exact_match_of_groups_by_answer"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    harmonic = values["exact_match_of_groups_by_answer_harmonic"]
    assert harmonic == pytest.approx(2 / (3 + 2))
    uneven = evaluate("vqa", ["yes", "x", "x", "x", "3", "4"], source, by="category")
    assert uneven["exact_match_of_groups"] == pytest.approx((1 / 4 + 1) / 2)
    assert uneven["exact_match_of_groups_harmonic"] == pytest.approx(2 / (4 + 1))
    none = evaluate("vqa", ["yes", "yes", "x", "x", "x", "x"], source, by="category")
    assert none["exact_match_of_groups_harmonic"] == 0 < none["exact_match_of_groups"]


def test_gqa_and_ocrvqa_by_hand():
    """The answer, letter by letter but for its case; open questions of GQA are those of "query"."""
    source = source_of(
        answers=[["yes"], ["red"], ["two"], ["J. K. Rowling"]],
        category=["verify", "query", "query", "query"],
    )
    asked = dict(normalisation="plain", by="category")
    values = evaluate("vqa", ["Yes ", "red.", "2", "j. k. rowling"], source, **asked)
    assert values["exact_match"] == values["vqa_accuracy"] == 0.5
    assert values["exact_match_verify"] == 1
    assert values["exact_match_query"] == pytest.approx(1 / 3)


def test_textvqa_is_compared_as_its_server_does():
    # Ten people: two say the one, three the other; the mean over leaving one out.
    source = source_of(answers=[["nous"] * 2 + ["Nous, "] + ["dakota"] * 3 + [""] * 4])
    values = evaluate("vqa", ["NOUS?"], source, normalisation="textvqa")
    assert values["vqa_accuracy"] == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert values["exact_match"] == 0  # most gave none
    two = source_of(answers=[["nous"] * 2 + ["dakota"] * 8])
    values = evaluate("vqa", ["nous"], two, normalisation="textvqa")
    assert values["vqa_accuracy"] == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    source = source_of(answers=[["black,white"] * 10])
    assert evaluate("vqa", ["blackwhite"], source)["vqa_accuracy"] == 0
    textvqa = evaluate("vqa", ["blackwhite"], source, normalisation="textvqa")
    assert textvqa["vqa_accuracy"] == 1


def test_what_is_written_is_kept_in_a_file(tmp_path):
    path = tmp_path / "new" / "answers.json"
    source = source_of(answers=[["red"], ["blue"]], question_id=["5", "9"])
    asked = dict(predictions=str(path), controls=["blind"])
    values = evaluate("vqa", ["red", "Green "], source, **asked)
    assert values["exact_match"] == 0.5
    expected = [{"question_id": 5, "answer": "red"}, {"question_id": 9, "answer": "Green"}]
    assert json.loads(path.read_text()) == expected
    # A test whose answers are secret has no scores; a record of it among others is an error.
    secret = source_of(answers=[[], []], question_id=["5", "9"])
    assert evaluate("vqa", ["red", "x"], secret, **asked) == {}
    assert json.loads(path.read_text())[1]["answer"] == "x"
    half = source_of(answers=[["red"], []], question_id=["5", "9"])
    with pytest.raises(ValueError, match="'toy-1' has no answers; 1 of 2 have none"):
        evaluate("vqa", ["red", "x"], half, **asked)
    twice = source_of(answers=[["red"], ["x"]], question_id=["5", "5"])
    with pytest.raises(ValueError, match="occur more than once, such as '5'"):
        evaluate("vqa", ["red", "x"], twice, **asked)
    with pytest.raises(ValueError, match="Unknown form"):
        evaluate("vqa", ["red", "x"], source, form="x")


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("yes_no", {"answers": [["maybe"]]}, "answered by"),
        ("multiple_choice", {"choices": [["x"]], "answer": [0]}, "has 1 choices"),
        ("multiple_choice", {"choices": [["x", "y"]]}, "'toy-0' has no answer"),
        ("choice_loss", {"choices": [["x", "y"]], "answer": [5]}, "it has answer=5"),
        ("pointing", {"choices": [["x", "y"]], "answer": [0]}, "no boxes"),
        ("captions", {"answers": [["x"]], "caption": [[]]}, "is empty"),
        ("vqa", {"answers": [["x"]], "question": [" "]}, "has no question"),
    ],
)
def test_data_that_do_not_fit_fail_before_training(name, fields, message):
    with pytest.raises(ValueError, match=message):
        evaluate(name, ["x"], source_of(**fields))


def unasked(name, source, match, **config):
    """An evaluation that ends before anything is asked or any image decoded."""

    def never(model, batch):
        raise AssertionError("the model was asked")

    fns = {"generate": never, "token_losses": never}
    with (
        mock.patch.object(
            records, "eval_image", side_effect=AssertionError("an image was decoded")
        ),
        pytest.raises(BrokenRecordError, match=match) as raised,
    ):
        toy_text.evaluate(name, source, {}, fns, **config)
    assert str(raised.value).count("Record ") <= 1


@pytest.mark.parametrize("name", ["vqa", "choice_loss"])
def test_a_file_that_cannot_be_is_refused_before_training(name, tmp_path):
    source = source_of(choices=CHOICES, answer=[0, 2, 1, 0], answers=[["x"]] * 4)
    for path, match in (
        (str(tmp_path), "is a directory; give a file in it"),
        ("https://somewhere/file.json", "is a URL that cannot be used"),
        ("", "The path is empty"),
    ):
        with pytest.raises(ValueError, match=match):
            toy_text.evaluate(name, source, None, predictions=path)  # no model is asked


def test_pairs_are_of_two():
    asked = dict(pairs=True, instruction="")
    source = source_of(choices=CHOICES[:3], answer=[0, 0, 0], pair=["1", "1", "2"])
    match = "1 of 2 pairs are not of two records, such as '2' of 1"
    unasked("multiple_choice", source, match, **asked)
    unasked("choice_loss", source, match, pairs=True)
    with pytest.raises(ValueError, match="'toy-0' has no field 'pair', which pairs=True goes by"):
        evaluate("multiple_choice", ["A"], source_of(choices=CHOICES[:1], answer=[0]), **asked)


@pytest.mark.parametrize("written", [True, False])
def test_what_cannot_be_asked_or_scored_ends_it_before_anything_is_written(written, tmp_path):
    file = tmp_path / "file.json"
    config = {"predictions": str(file)} if written else {}

    def ends(match, name="vqa", **fields):
        more = {"instruction": ""} if name == "multiple_choice" else {}
        unasked(name, source_of(**fields), match, **config, **more)
        assert not list(tmp_path.iterdir())

    answers = [["red"]] * 3
    ends("'toy-2' has no question", answers=answers, question=["?", "?", " "])
    ends("'toy-1' has no answers; 1 of 3 have none", answers=[["red"], [], ["red"]])
    ends("'toy-1': its prompt .* may have 40", answers=answers, question=["?", "? " * 60, "?"])
    ends("'toy-1' is answered by", "yes_no", answers=[["yes"], ["perhaps"]])
    ends("'toy-1' has no phrase", "referring", phrases=[["a"], []], boxes=[BOX, BOX[:0]])
    choices = [["x", "y"], ["x"]]
    ends("'toy-1' has 1 choices", "multiple_choice", choices=choices, answer=[0, 0])
    if written:
        ends("such as '5'", answers=answers, question_id=["5", "7", "5"])


def test_a_choice_that_does_not_fit_is_no_shorter_one():
    source = source_of(choices=[["a", "b"], ["a", "ring " * 50]], answer=[0, 1])
    unasked("choice_loss", source, "'toy-1': its question with the choice 'ring ring")
    unasked("choice_loss", source_of(choices=[["a", "b"], ["a"]], answer=[0, 0]), "has 1 choices")
