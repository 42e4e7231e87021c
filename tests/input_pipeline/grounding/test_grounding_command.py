"""The command `grounding`: from a source and files of boxes to shards that CogVLM trains on."""

import json
import random
import re

import numpy as np
import pytest

from input_pipeline import command_line
from input_pipeline.grounding import command, store
from input_pipeline.prepare import shards
from input_pipeline.sources import make_source
from input_pipeline.views import make_views
from tests.input_pipeline.prepare.prepare_data import contents, ids, image, write_prepared

SCENES = "scenes:split=val,size=9,image_size=40"
A, B, C = [0.0, 0.0, 0.2, 0.2], [0.4, 0.0, 0.6, 0.2], [0.7, 0.5, 0.9, 0.9]


def run(source, boxes, output, *arguments, workers=1):
    words = ["--input", str(source), "--boxes", str(boxes), "--output", str(output)]
    return command.main([*words, "--workers", str(workers), *arguments])


@pytest.fixture
def serial(monkeypatch):
    """Tasks run in this process: worker processes take seconds to start."""

    def run_all(function, tasks, unit, console):
        for label, arguments in tasks:
            yield label, function(*arguments)

    monkeypatch.setattr(command_line, "in_processes", lambda workers: run_all)


def detected(path, split="val", size=9):
    """What a detector says that knows colours and shapes."""
    source, found = make_source("scenes", split=split, size=size, image_size=32), {}
    for record in (source[i] for i in range(size)):
        found[record["id"]] = [
            {"label": " ".join(phrase.split()[-2:]), "box": box, "score": 0.9}
            for phrase, box in zip(record["phrases"], record["boxes"].tolist())
        ]
    path.write_text(json.dumps(found))
    return path


@pytest.fixture
def scenes(tmp_path, serial):
    boxes, output = detected(tmp_path / "boxes.json"), tmp_path / "data"
    options = ["--captions", "caption", "--records-per-shard", "4"]
    assert run(SCENES, boxes, output, *options) == 0
    return output


def pairs(record):
    boxes = np.round(record["boxes"].astype(float), 5).tolist()
    return {(phrase, tuple(box)) for phrase, box in zip(record["phrases"], boxes)}


def test_records_have_the_phrases_and_boxes_of_their_captions(scenes):
    source = make_source("scenes", split="val", size=9, image_size=40)
    stored = make_source("prepared", path=scenes)
    assert len(stored) == 9
    for number in range(9):
        expected, record = source[number], stored[number]
        assert pairs(record) == pairs(expected)
        assert record["captions"] == {"caption": expected["captions"]["caption"]}
        assert record["image"] == expected["image"] and record["question"] == expected["question"]
    description = json.loads((scenes / "dataset.json").read_text())
    assert description["made_by"]["tool"] == "input_pipeline.grounding"
    assert description["counts"]["images"] == description["num_records"] == 9
    assert description["counts"]["images with two boxes or more"] == 9
    assert not [path for path in scenes.iterdir() if path.name.startswith(".")]


def test_views_of_the_grounding_stage_take_the_records(scenes):
    views = make_views(
        "cogvlm",
        image_size=40,
        image_token_size=8,
        tokenizer="llama:scenes",
        context_length=256,
        tasks=dict(rec=1.0, reg=1.0, grounded=1.0, vqa=1.0),
    )
    stored, texts = make_source("prepared", path=scenes), []
    for number in range(9):
        row = views(stored[number], random.Random(number))
        batch = {name: value[None] for name, value in row.items()}
        texts += views.texts(batch)[0]
    assert any("Where is the" in text for text in texts)
    assert any(text.count("[[") > 3 for text in texts)  # a grounded caption


def test_workers_and_attempts_change_nothing(tmp_path, scenes, monkeypatch, capsys):
    monkeypatch.undo()  # real processes
    output = tmp_path / "again"
    options = ["--captions", "caption", "--records-per-shard", "4"]
    assert run(SCENES, tmp_path / "boxes.json", output, *options, workers=2) == 0
    assert contents(output) == contents(scenes)
    (output / "dataset.json").unlink()
    (output / "grounded-00001.array_record").write_bytes(b"half a shard")
    assert run(SCENES, tmp_path / "boxes.json", output, *options) == 0
    assert "2 of 3 shards are finished" in capsys.readouterr().out
    assert contents(output) == contents(scenes)


def test_other_options_for_the_same_output_are_an_error_and_other_boxes_make_it_anew(
    tmp_path, scenes, capsys
):
    boxes, options = tmp_path / "boxes.json", ["--captions", "caption"]
    assert run(SCENES, boxes, scenes, *options, "--records-per-shard", "5") == 1
    assert "other options" in capsys.readouterr().err
    assert not list(scenes.glob(".boxes-*"))  # said before boxes are read
    content = json.loads(boxes.read_text())
    content.pop(next(iter(content)))
    boxes.write_text(json.dumps(content))
    assert run(SCENES, boxes, scenes, *options, "--records-per-shard", "4") == 0
    assert "3 shards are made again" in capsys.readouterr().out
    assert len(ids(scenes)) == 8


def record(name, *captions):
    return {"id": name, "image": image(name), "captions": {"text": list(captions)}}


def test_what_is_dropped_is_counted_and_listed(tmp_path, serial, capsys):
    records = [
        record("a", "a dog and a cat"),
        record("b", "a dog"),
        record("c", "a dog"),
        {**record("d", "a dog and a cat"), "image": image("d")[:90]},
        record("e", "a bird"),
        record("f", "two birds"),
    ]
    source = write_prepared(tmp_path / "in", records)
    dog, cat = {"label": "dog", "box": A, "score": 0.7}, {"label": "cat", "box": B, "score": 0.66}
    birds = [{"label": "bird", "box": box} for box in (A, B)]
    boxes = {"a": [dog, cat], "b": [{**dog, "score": 0.6}], "d": [dog, cat], "e": birds, "f": birds}
    boxes["a"] = [dog, {**cat, "label": ""}, cat]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    output = tmp_path / "out"
    assert run(source, tmp_path / "boxes.json", output) == 0
    assert ids(output) == ["a", "f"]
    description = json.loads((output / "dataset.json").read_text())
    assert description["dropped"] == {
        "no phrase with a box": 2,
        "not in the files of boxes": 1,
        "broken image": 1,
    }
    assert description["counts"]["phrases that other boxes may be of, too"] == 1
    assert description["counts"]["boxes left out: no label"] == 1
    assert "100.0% of the images have two boxes or more" in capsys.readouterr().out
    stored = make_source("prepared", path=output)
    assert pairs(stored[1]) == {("two birds", tuple(A)), ("two birds", tuple(B))}


def test_a_lower_score_and_a_share_of_images_with_several_boxes(tmp_path, serial, capsys):
    names = [chr(ord("a") + k) for k in range(26)]
    records = [record(name, "a dog" if k % 2 else "a dog, a cat") for k, name in enumerate(names)]
    source = write_prepared(tmp_path / "in", records)
    boxes = [{"label": label, "box": box, "score": 0.3} for label, box in (("dog", A), ("cat", B))]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(dict.fromkeys(names, boxes)))
    options = ["--min-score", "0.3"]
    assert run(source, path, tmp_path / "all", *options) == 0
    assert ids(tmp_path / "all") == names
    assert "50.0% of the images" in capsys.readouterr().out
    assert run(source, path, tmp_path / "several", *options, "--several-share", "0.75") == 0
    kept = ids(tmp_path / "several")
    several = [name for name in names[::2] if name in kept]
    assert several == names[::2]  # nothing of these is lost
    single = set(kept) - set(several)
    assert len(single) == 4  # as many as 13 of 75 % allow
    assert single != set(names[1:9:2])  # nor the first ones
    stored = make_source("prepared", path=tmp_path / "several")
    assert all(len(stored[k]["phrases"]) == 1 + (kept[k] in several) for k in range(len(kept)))


@pytest.mark.parametrize(
    ("boxes", "arguments", "expected"),
    [
        ('{"nobody": []}', (), "name no image of the source: its ids are such as 'a', theirs"),
        ('{"a": []}', (), "No record is left.*no phrase with a box"),
        ('{"a": [{"label": "dog", "box": [10, 10, 50, 50]}]}', (), "pixels"),
        ('{"a": [{"label": "dog", "box": [0, 0, 1.5, 1]}]}', (), "outside the picture"),
        ('{"a": [', (), "is no JSON, or cut off"),
        ("{}", ("--phrases", "spacy:no_such_model"), "spacy:no_such_model"),
        ("{}", ("--several-share", "1"), "--several-share"),
        ("{}", ("--min-score", "nan"), "--min-score"),
        ('{"a": []}', ("--boxes", "nowhere/*.json"), "matches no file"),
    ],
)
def test_bad_input_is_one_line(boxes, arguments, expected, tmp_path, serial, capsys):
    source = write_prepared(tmp_path / "in", [record("a", "a dog")])
    (tmp_path / "boxes.json").write_text(boxes)
    assert run(source, tmp_path / "boxes.json", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(expected, error)


def test_a_killed_run_goes_on_with_its_store(tmp_path, serial, monkeypatch):
    boxes, output = detected(tmp_path / "boxes.json"), tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_shard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(SCENES, boxes, output) == 130
    assert len([p for p in output.iterdir() if p.name.startswith(".boxes-")]) == 3
    monkeypatch.setattr(store, "_index_file", lambda *_: "must not be read again")
    assert run(SCENES, boxes, output) == 0
    assert len(ids(output)) == 9
