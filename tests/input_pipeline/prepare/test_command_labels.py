"""`prepare --labels`: classes of a vocabulary beside the captions."""

import json
import re

import pytest

from input_pipeline.sources import make_source
from input_pipeline.words import synsets
from input_pipeline.words.vocabulary import Vocabulary
from tests.input_pipeline.prepare.prepare_data import (
    contents,
    image,
    run,
    run_source,
    write_prepared,
    write_tar,
)


def vocabulary(path, words):
    """File with these classes."""
    keys = [synsets.load().key_of(word) for word in words]
    Vocabulary(keys, [9] * len(keys)).write(path, [])
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    (folder / "tars").mkdir()
    samples = {
        "a": (image(1), {"title": "a black dog. two dogs", "tags": ["cat", "the dog"]}),
        "b": (image(2), {"title": "nothing known", "tags": ["a bird in a rather long tag"]}),
        "c": (image(3), {"title": "a bird", "tags": []}),
    }
    for i, (key, sample) in enumerate(samples.items()):
        write_tar(folder / "tars" / f"train-{i}.tar", {key: sample})
    vocabulary(folder / "animals.tsv", ["dog", "bird", "cat"])
    vocabulary(folder / "others.tsv", ["dog", "cat", "bird"])
    return folder


@pytest.fixture(scope="module")
def prepared(files):
    assert run(files / "tars", files / "out", "--labels", str(files / "animals.tsv")) == 0
    return files / "out"


def labels(folder):
    source = make_source("prepared", path=folder)
    return [source[i]["labels"] for i in range(len(source))]


def test_labels_are_those_of_all_captions(prepared, files):
    assert labels(prepared) == [[0, 2], [1], [1]]
    plain = files / "plain"
    assert run(files / "tars", plain) == 0
    unlabelled, labelled = (make_source("prepared", path=path) for path in (plain, prepared))
    for i in range(3):
        assert labelled[i] == {**unlabelled[i], "labels": labelled[i]["labels"]}


def test_the_description_names_the_vocabulary(prepared, files):
    text = (prepared / "dataset.json").read_text()
    description = json.loads(text)
    words = Vocabulary.load(files / "animals.tsv")
    assert description["label_vocabulary"] == {
        "fingerprint": words.fingerprint(),
        "size": 3,
        "mode": "released",
    }
    assert description["labels"] == {"labels": 4, "records without": 0}
    assert description["fields"]["labels"] == "list"
    assert description["made_by"]["arguments"][-4:] == [
        *["--labels", "animals.tsv", "--label-mode", "released"]
    ]
    assert str(files) not in text
    source = make_source("prepared", path=prepared, fraction=1.0)
    assert source.label_rule["fingerprint"] == words.fingerprint()
    assert source.label_rule["size"] == 3


def test_without_labels_nothing_is_said_of_them(files):
    assert run(files / "tars", files / "plain") == 0
    description = json.loads((files / "plain" / "dataset.json").read_text())
    assert not {"labels", "label_vocabulary"} & description.keys()
    source = make_source("prepared", path=files / "plain")
    assert source.label_rule is None and "labels" not in source[0]


def test_captions_that_filters_remove_give_no_labels(files, tmp_path, capsys):
    arguments = ["--labels", str(files / "animals.tsv"), "--max-caption-words", "5"]
    assert run(files / "tars", tmp_path / "out", *arguments) == 0
    assert labels(tmp_path / "out") == [[0, 2], [], [1]]
    assert re.search(r"labels\W+3, 1 records without", capsys.readouterr().out)


@pytest.mark.slow
def test_the_output_does_not_depend_on_workers_or_attempts(prepared, files, tmp_path, capsys):
    arguments = [files / "tars", tmp_path / "out", "--labels", str(files / "animals.tsv")]
    assert run(*arguments, workers=2) == 0
    assert contents(tmp_path / "out") == contents(prepared)
    (tmp_path / "out" / "dataset.json").unlink()
    (tmp_path / "out" / "train-1.array_record").unlink()
    assert run(*arguments) == 0
    assert "2 of 3 shards are finished" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(prepared)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--labels", "others.tsv"], ["--labels", "animals.tsv", "--label-mode", "paper"]],
)
def test_other_labels_for_the_same_output_are_an_error(prepared, files, arguments, capsys):
    if "paper" in arguments:
        pytest.importorskip("textblob")
    before = contents(prepared)
    arguments = [str(files / word) if word.endswith(".tsv") else word for word in arguments]
    assert run(files / "tars", prepared, *arguments) == 1
    assert "other options" in capsys.readouterr().err
    assert contents(prepared) == before


def test_a_vocabulary_may_lie_beside_the_shards(files, tmp_path):
    output = tmp_path / "out"
    assert run(files / "tars", output) == 0
    vocabulary(output / "vocabulary.tsv", ["dog"])
    assert run(files / "tars", output) == 0
    assert len(make_source("prepared", path=output)) == 3


def test_labels_of_any_source(files, tmp_path):
    words = str(vocabulary(tmp_path / "shapes.tsv", ["star", "circle", "square"]))
    arguments = ["scenes", "split=val", "size=6", "image_size=32"]
    assert run_source(tmp_path / "out", *arguments, "--labels", words) == 0
    source = make_source("prepared", path=tmp_path / "out")
    for i in range(6):
        nouns = source[i]["nouns"]
        expected = [c for c, name in enumerate(["star", "circle", "square"]) if name in nouns]
        assert source[i]["labels"] == expected


def test_preparing_again_keeps_labels_and_their_vocabulary(prepared, tmp_path):
    assert run_source(tmp_path / "out", "prepared", f"path={prepared}") == 0
    again, source = (make_source("prepared", path=path) for path in (tmp_path / "out", prepared))
    assert again.label_rule == source.label_rule
    assert labels(tmp_path / "out") == labels(prepared)


def test_labels_are_replaced_by_those_of_another_vocabulary(prepared, files, tmp_path):
    words = files / "others.tsv"
    arguments = ["prepared", f"path={prepared}", "--labels", str(words)]
    assert run_source(tmp_path / "out", *arguments) == 0
    assert labels(tmp_path / "out") == [[0, 1], [2], [2]]
    source = make_source("prepared", path=tmp_path / "out")
    assert source.label_rule["fingerprint"] == Vocabulary.load(words).fingerprint()


def test_records_without_captions_fail_the_run(files, tmp_path, capsys):
    folder = write_prepared(tmp_path / "in", [{"id": "x", "image": image(1), "label": 3}])
    arguments = ["prepared", f"path={folder}", "--labels", str(files / "animals.tsv")]
    assert run_source(tmp_path / "out", *arguments) == 1
    assert "record 'x' has no captions to take labels from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "/nowhere.tsv"], "There is no vocabulary /nowhere.tsv"),
        (["--label-mode", "paper"], "--label-mode says how --labels is to be used"),
    ],
)
def test_bad_arguments_are_one_clear_error(files, tmp_path, arguments, message, capsys):
    assert run(files / "tars", tmp_path / "out", *arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()
