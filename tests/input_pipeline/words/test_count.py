"""The command that builds a vocabulary: what it counts, writes, draws and refuses."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import input_pipeline
from input_pipeline.words import command as words
from input_pipeline.words import count, synsets
from input_pipeline.words.vocabulary import Vocabulary
from tests.input_pipeline.prepare.prepare_data import write_prepared

CAPTIONS = [
    {"title": ["a dog and a dog"], "tags": ["cat", "dog"]},
    {"title": ["the black dog"], "tags": ["bird"]},
    {"title": ["nothing: xyzzy"], "tags": []},
    {"title": ["xyzzy"]},
    {"title": ["a bird, a cat"], "tags": ["tree"]},
]
# Every word of a caption counts each time it is there.
COUNTS = {"dog": 4, "cat": 2, "bird": 2, "black": 1, "tree": 1, "nothing": 1}


def number(word):
    return int(synsets.load().key_of(word)[1:])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    examples = [
        {"id": str(i), "image": b"never looked at", "captions": captions}
        for i, captions in enumerate(CAPTIONS)
    ]
    return write_prepared(tmp_path_factory.mktemp("corpus") / "data", examples)


def run(output, *arguments, workers=1):
    """Exit code of the command, run in this process, and what it wrote by ending."""
    command = ["--output", str(output), "--workers", str(workers), *map(str, arguments)]
    try:
        code = words.main(command)
    except SystemExit as error:
        code = error.code
    return code, {path.suffix: path.read_bytes() for path in output.parent.glob("*.*")}


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    code, files = run(
        tmp_path_factory.mktemp("built") / "words.tsv", "--input", data, "--threshold", 1
    )
    assert code == 0
    return files


def test_every_occurrence_counts_and_ties_go_by_number(built, data, tmp_path):
    lines = built[".tsv"].decode().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    assert [row[2] for row in rows] == ["dog.n.01", "bird.n.01", "cat.n.01"]
    assert number("bird") < number("cat")
    assert [int(row[1]) for row in rows] == [4, 2, 2]
    code, _ = run(tmp_path / "all.tsv", "--input", data, "--threshold", 0)
    assert code == 0
    found = Vocabulary.load(tmp_path / "all.tsv")
    expected = {f"{word}.n.01": count for word, count in COUNTS.items() if count}
    assert dict(zip(found.names, found.counts)) == expected
    assert list(found.counts) == sorted(found.counts, reverse=True)


def test_the_first_lines_say_where_it_comes_from(built):
    lines = [line for line in built[".tsv"].decode().splitlines() if line.startswith("#")]
    assert lines == [
        "# Synsets that occur more than 1 times in captions, the most frequent first.",
        f"# WordNet: 3.0, table {synsets.load().checksum}",
        "# threshold: 1",
        "# captions: 9; with a label: 8",
        "# mode: released",
        '# caption fields: ["tags", "title"]',
        "# key\tcount\tname",
    ]


def test_the_report(built):
    report = json.loads(built[".json"])
    assert report["records"] == 5 and report["records_without_label"] == 1
    assert report["captions_by_field"] == {"tags": 4, "title": 5}
    assert report["captions"] == 9 and report["captions_without_label"] == 1
    assert report["labels"] == sum(COUNTS.values()) == 11
    assert report["labels_per_caption"] == round(11 / 9, 4)
    assert report["synsets"] == 6 and report["classes"] == 3
    assert report["synsets_above"]["1"] == 3 and report["synsets_above"]["500"] == 0
    assert report["labels_kept"] == round(8 / 11, 6)
    # Captions: dog; cat; dog; dog; bird; -; -; bird and cat; -.
    assert report["coverage"]["of_captions"] == {
        "looked_at": 9,
        "with_a_class": round(6 / 9, 6),
        "classes_each": round(7 / 9, 4),
    }
    # Records: dog and cat; dog and bird; -; -; bird and cat.
    assert report["coverage"]["of_records"] == {
        "looked_at": 5,
        "with_a_class": 0.6,
        "classes_each": 1.2,
    }
    key = synsets.load().key_of("dog")
    assert report["most_frequent"][0] == {"name": "dog.n.01", "key": key, "count": 4}
    assert len(report["inputs"]) == 1 and report["inputs"][0]["records"] == 5


def test_the_drawing_is_a_picture(built, tmp_path):
    (tmp_path / "a.png").write_bytes(built[".png"])
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert pixels.shape == (495, 770, 3) and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3


@pytest.mark.slow
def test_parts_and_processes_change_nothing(built, data, tmp_path, monkeypatch):
    monkeypatch.setattr(count, "_RECORDS_PER_PART", 2)
    job = count.plan([str(data)], None, "released")
    assert [(part.first, part.size) for part in job.parts] == [(0, 2), (2, 2), (4, 1)]
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        output = tmp_path / str(workers) / "words.tsv"
        code, files = run(output, "--input", data, "--threshold", 1, workers=workers)
        assert code == 0 and files == built


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="the extra [beam] is not installed"
)
def test_beam_changes_nothing(built, data, tmp_path, monkeypatch):
    monkeypatch.setattr(count, "_RECORDS_PER_PART", 2)
    arguments = ["--input", data, "--threshold", 1, "--runner", "DirectRunner"]
    code, files = run(tmp_path / "words.tsv", *arguments, "--direct_num_workers", 1)
    assert code == 0 and files == built
    assert len(list(tmp_path.iterdir())) == 3


def test_without_beam_a_runner_is_an_error(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    code, _ = run(tmp_path / "words.tsv", "--input", data, "--runner", "DirectRunner")
    assert code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --runner needs Apache Beam")
    assert "pip install 'big_vlp[beam]'" in error


def test_the_sample_is_a_regular_part_of_the_corpus(data, monkeypatch):
    monkeypatch.setattr(count, "_SAMPLED_RECORDS", 4)
    monkeypatch.setattr(count, "_RECORDS_PER_PART", 2)
    job = count.plan([str(data), str(data)], None, "released")
    assert {part.stride for part in job.parts} == {3}  # of 10 records: 0, 3, 6 and 9
    totals = count.Totals()
    for part in job.parts:
        totals.add(count.count(part))
    assert totals.records == 10
    assert totals.sampled_records.total() == 4
    bird, cat, dog, tree, black = (f"n{number(w)}" for w in ("bird", "cat", "dog", "tree", "black"))
    keys = [set(keys) for keys in totals.sampled_records.elements()]
    expected = [{dog, cat}, set(), {dog, black, bird}, {bird, cat, tree}]
    assert all(keys.count(each) == expected.count(each) for each in keys)


def test_fields_sizes_and_several_inputs(data, tmp_path):
    arguments = ["--input", data, "--input", f"prepared:path={data}", "--threshold", 0]
    code, files = run(tmp_path / "words.tsv", *arguments, "--captions", "tags", "--size", 2)
    assert code == 0
    found = Vocabulary.load(tmp_path / "words.tsv")
    assert found.counts == (2, 2)
    assert "# threshold: 0; size: 2" in files[".tsv"].decode()
    report = json.loads(files[".json"])
    assert report["captions_by_field"] == {"tags": 8} and report["classes"] == 2


def test_other_sources_and_the_mode_of_the_paper(tmp_path):
    pytest.importorskip("textblob")
    arguments = ["--input", "scenes:split=val,size=20,image_size=32", "--threshold", 5]
    code, files = run(tmp_path / "words.tsv", *arguments, "--mode", "paper")
    assert code == 0
    names = Vocabulary.load(tmp_path / "words.tsv").names
    assert {"star.n.01", "circle.n.01"} <= set(names) and "large.n.01" not in names
    assert json.loads(files[".json"])["mode"] == "paper"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "/nowhere"], "'/nowhere' is neither a directory of prepared shards nor NAME"),
        (["--input", "scenes:"], "is neither a directory"),
        (["--input", "scenes:size"], "'size' is not KEY=VALUE"),
        (["--input", "scenes:size=3,size=4"], "'size=4' is not KEY=VALUE, or there twice"),
        (["--input", "nothing:a=3"], "Unknown data source 'nothing'"),
        (["--input", "scenes:zise=3"], "unexpected keyword argument 'zise'"),
        (["--input", 'mixture:sources=[{"name": "scenes", "weight": 2}]'], "A weighted mixture"),
        (
            ["--input", "{data}", "--captions", "title,title"],
            "give at least one field, and each once",
        ),
        (
            ["--input", "{data}", "--captions", "titel"],
            "has captions 'titel'. Available: tags, title",
        ),
        (["--input", "{data}"], "No synset occurs more than 500 times; dog.n.01, the most freq"),
        (["--input", "{data}", "--output", "words.txt"], "--output must end in .tsv"),
    ],
)
def test_bad_arguments_are_one_clear_error(data, tmp_path, arguments, message, capsys):
    code, files = run(
        tmp_path / "words.tsv", *(word.replace("{data}", str(data)) for word in arguments)
    )
    assert code == 1 and not files
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize(
    ("captions", "message"),
    [([], "no caption in the input"), (["xyzzy", ""], "No caption of 2 names a synset")],
)
def test_an_empty_corpus_is_an_error(captions, message, tmp_path, capsys):
    folder = write_prepared(
        tmp_path / "in", [{"id": "1", "image": b"", "captions": {"text": captions}}]
    )
    (tmp_path / "out").mkdir()
    code, files = run(tmp_path / "out" / "words.tsv", "--input", folder)
    assert code == 1 and not files
    assert message in capsys.readouterr().err


def test_unknown_options_are_refused_without_a_runner(data, tmp_path, capsys):
    code, files = run(tmp_path / "words.tsv", "--input", data, "--treshold", 3)
    assert code == 1 and not files
    assert "unrecognized arguments: --treshold 3" in capsys.readouterr().err


def test_it_is_a_program(data, tmp_path):
    root = Path(input_pipeline.__file__).parents[2]
    command = [sys.executable, "-m", "input_pipeline.vocabulary", "--input", str(data)]
    command += ["--threshold", "1", "--output", str(tmp_path / "words.tsv")]
    environment = dict(os.environ, PYTHONPATH=str(root))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dog.n.01 4" in done.stdout
    assert len(Vocabulary.load(tmp_path / "words.tsv")) == 3
