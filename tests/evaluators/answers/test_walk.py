"""The way of every benchmark: files as published, an evaluator that asks, predictions as they are
handed in, and `python -m evaluators.answers`, which scores the file as the evaluator did."""

import dataclasses
import json
import random

import jax.numpy as jnp
import pytest

from evaluators.answers.shared import command
from input_pipeline.checks import parts
from input_pipeline.prepare import command as prepare
from input_pipeline.sources import make_source
from tests.evaluators.answers import toy_text
from tests.input_pipeline.sources import test_captioning as captioning
from tests.input_pipeline.sources import test_published_boxes as boxes
from tests.input_pipeline.sources import test_published_choices as choices
from tests.input_pipeline.sources import test_published_questions as questions
from tests.input_pipeline.sources import test_published_tables as tables
from tests.input_pipeline.sources.published import write_images

PREPROCESS = dataclasses.replace(toy_text.PREPROCESS, context_length=256)
SAID = [
    *("yes", "No.", "A", "(b) no", "a1", "two guys [[0,0,100,100]]"),
    *("8", "a caption 1", "I do not know", "", "red\tand\r\nblue\rgreen"),
]
# Where it is not accuracy: what shows that answers are told apart.
MAIN = {"captions": "rouge_l", "grounded_captions": "f1", "transcripts": "empty"}
MAIN["vqa"] = "vqa_accuracy"


def generate(model, batch):
    """Something that depends on image and question."""
    seen = batch["images"][:, 0, 0, 0, 0].astype(jnp.int32) + batch["tokens"].sum(axis=1)
    return model["answers"][seen % len(model["answers"])]


def answers(source, evaluator, keys, turn):
    """What is right for one of the records or another stands among what is said."""
    scoring = parts.find("metric", "evaluators.answers", evaluator, "Scoring")(**keys)
    records = source.fields(range(len(source)))
    kept = [one for record in records for _, one in scoring.questions_of(record)]
    texts = [*dict.fromkeys(text for one in kept for text in scoring.right_answers(one)), *SAID]
    return toy_text.answers(random.Random(turn).choices(texts, k=128))


def with_images(write, kind):
    def arguments(folder):
        own, names = write(folder)
        images = write_images(folder / "images", names)
        found = {"kind": kind, "images": images} | own
        return {key: value for key, value in found.items() if value is not None}

    return arguments


def pair(kind, **annotation):
    def arguments(folder):
        paths = questions.vqa_pair(folder, **annotation)
        if kind == "okvqa":
            questions.change(paths[1], lambda c: c.update(question_types={"where": "x"}))
        return {"kind": kind} | dict(zip(("questions", "annotations", "images"), paths))

    return arguments


def question(name, kind=None):
    return with_images(getattr(questions, name), kind or name)


# The source, its arguments, the evaluator, and its form and keys.
WALKS = {
    "vqav2": ("vqa", pair("vqav2", answer_type="other"), "vqa", "vqa", {"by": "category"}),
    "okvqa": ("vqa", pair("okvqa"), "vqa", "vqa", {}),
    "tdiuc": ("vqa", pair("tdiuc"), "vqa", "vqa", {"by": "category"}),
    "textvqa": ("vqa", question("textvqa"), "vqa", "vqa", {"normalisation": "textvqa"}),
    "vizwiz": ("vqa", question("vizwiz"), "vqa", "vizwiz", {}),
    "ocrvqa": ("vqa", question("ocrvqa"), "vqa", "vqa", {"normalisation": "plain"}),
    "gqa": ("vqa", question("gqa"), "vqa", "gqa", {"normalisation": "plain"}),
    "easy_vqa": ("vqa", question("easy_vqa"), "vqa", "vqa", {}),
    "pope": ("vqa", question("pope"), "yes_no", "pope", {"by": "category"}),
    "pope, one file": ("vqa", question("pope_file", "pope"), "yes_no", "pope", {}),
    "mmvet": ("vqa", question("mmvet"), "transcripts", "mmvet", {}),
    "llava_bench": ("vqa", question("llava_bench"), "transcripts", "llava_bench", {}),
    "touchstone": ("choice_tables", tables.touchstone, "transcripts", "touchstone", {}),
    "scienceqa": ("multiple_choice", choices.scienceqa, "multiple_choice", "scienceqa", {}),
    "seedbench": ("multiple_choice", choices.seedbench, "multiple_choice", "seed", {}),
    "mmvp": ("multiple_choice", choices.mmvp, "multiple_choice", "vqa", {"pairs": True}),
    "mmbench": ("choice_tables", tables.mmbench, "multiple_choice", "mmbench", {}),
    "mmbench, copies": (
        *("choice_tables", lambda folder: tables.mmbench(folder) | {"copies": "true"}),
        *("multiple_choice", "mmbench", {"by": "category"}),
    ),
    "mmmu": ("choice_tables", tables.mmmu, "multiple_choice", "mmmu", {"by": "category"}),
    "mathvista": ("choice_tables", tables.mathvista, "multiple_choice", "mmmu", {}),
    "visual7w": ("pointing", boxes.visual7w, "pointing", "vqa", {}),
    "nocaps": ("captioning", captioning.nocaps, "captions", "coco", {"by": "domain"}),
    "flickr_entities": ("referring", boxes.entities, "grounded_captions", "coco", {}),
}


@pytest.mark.parametrize("name", WALKS)
def test_every_benchmark_is_walked(name, tmp_path, capsys):
    kind, write, evaluator, form, keys = WALKS[name]
    arguments = write(tmp_path)
    source = make_source(kind, **arguments | ({"copies": True} if "copies" in arguments else {}))
    path = tmp_path / "predictions"
    asked = dict(predictions=str(path), form=form, **keys)
    main = MAIN.get(evaluator, "accuracy")
    for turn in range(20):  # until some answers are right and some are not
        model = answers(source, evaluator, keys, turn)
        values = toy_text.evaluate(
            evaluator, source, model, {"generate": generate}, PREPROCESS, **asked
        )
        if 0 < values[main] < 1:
            break
    assert 0 < values[main] < 1
    data = f"{kind}:" + ",".join(f"{key}={value}" for key, value in arguments.items())
    metric = ",".join(f"{key}={value}".replace("=True", "=true") for key, value in keys.items())
    metric = f"{evaluator}:{metric}" if metric else evaluator
    given = ["--predictions", str(path), "--input", data, "--metric", metric, "--json"]
    assert command.main(given) == 0, capsys.readouterr().err
    again = json.loads(capsys.readouterr().out)
    assert again == {name: pytest.approx(values[name]) for name in again}
    assert {n.removesuffix("_baseline").removesuffix("_chance") for n in values.keys() - again} <= (
        {"accuracy", "exact_match", "vqa_accuracy"}
    )


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ('{"1": "yes", "9": "no"}', "1 of its 2 ids are not in the data, such as '9'"),
        ('{"1": "yes"}', "1 of 2 questions have no answer, such as '2'"),
        ('{"1": "yes", "1": "no"}', "1 ids occur more than once, such as '1'"),
        ('[{"question_id": 1, "answer": null}]', "the answer of 1 is None, no text"),
        ("", "holds no predictions"),
        (None, "No such file or directory"),
    ],
)
def test_predictions_that_do_not_fit_are_one_error(tmp_path, capsys, predictions, message):
    arguments = question("pope_file", "pope")(tmp_path)
    data = "vqa:" + ",".join(f"{key}={value}" for key, value in arguments.items())
    path = tmp_path / ("none.json" if predictions is None else "p.json")
    if predictions is not None:
        path.write_text(predictions)
    given = ["--predictions", str(path), "--input", data, "--metric", "yes_no"]
    assert command.main(given) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def rewritten(name, write, edit):
    """The arguments of a set of which one file was changed."""

    def arguments(folder):
        found = write(folder)
        path = found[name]
        path.write_text(edit(path.read_text()))
        return found

    return arguments


@pytest.mark.parametrize(
    ("kind", "write", "message"),
    [
        (
            "vqa",
            rewritten("questions", pair("vqav2"), lambda text: text.replace('"2.0"', '"1.0"')),
            "q.json is of version 1.0, not 2",
        ),
        (
            "vqa",
            rewritten("annotations", pair("vqav2"), lambda text: text.replace("val", "train")),
            "is of train2014",
        ),
        (
            "vqa",
            rewritten(
                "questions",
                question("pope_file", "pope"),
                lambda text: text.replace('"question_id": 2', '"question_id": 1'),
            ),
            "two entries have the id '1'",
        ),
        ("referring", lambda folder: boxes.refcoco(folder, box=(190, 10, 100, 50)), "is outside"),
        (
            "multiple_choice",
            lambda folder: choices.seedbench(folder, data_type="Single Image"),
            "SEED-Bench-2 is another set",
        ),
        ("multiple_choice", lambda folder: choices.mmvp(folder, rows=3), "an even number"),
        ("choice_tables", lambda folder: tables.mmmu(folder, answer="?"), "have no answer"),
    ],
)
def test_sets_that_do_not_fit_are_one_error(tmp_path, capsys, kind, write, message):
    arguments = ",".join(f"{key}={value}" for key, value in write(tmp_path).items())
    given = ["source", "--output", str(tmp_path / "out"), "--input", f"{kind}:{arguments}"]
    assert prepare.main([*given, "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
