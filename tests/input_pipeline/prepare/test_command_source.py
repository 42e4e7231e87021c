"""The command `prepare source`."""

import json
import pickle
import re

import numpy as np
import pytest

from input_pipeline.prepare import command as prepare
from input_pipeline.prepare.filters import Tally
from input_pipeline.sources import make_source
from tests.input_pipeline.prepare.prepare_data import (
    contents,
    ids,
    image,
    run_source,
    write_prepared,
)

SCENES = ["scenes", "split=val", "size=7", "image_size=40", "--records-per-shard", "3"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    output = tmp_path_factory.mktemp("scenes") / "data"
    assert run_source(output, *SCENES) == 0
    return output


def test_all_fields_of_a_source_are_kept_in_its_order(scenes):
    source = make_source("scenes", split="val", size=7, image_size=40)
    stored = make_source("prepared", path=scenes)
    assert len(stored) == 7
    for i in range(7):
        expected, record = source[i], stored[i]
        assert record.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(record[name], value)
    description = json.loads((scenes / "dataset.json").read_text())
    assert [shard["records"] for shard in description["shards"]] == [3, 3, 1]
    assert description["fields"]["captions"] == ["caption", "sentences"]
    assert description["fields"]["boxes"] == "array of float32, 2 axes"
    assert description["class_names"] == source.class_names == stored.class_names
    source = "scenes:split=val,size=7,image_size=40"
    assert description["made_by"]["arguments"] == ["source", "--input", source, *SCENES[-2:]]


def test_a_prepared_source_does_not_depend_on_workers_or_attempts(scenes, tmp_path, capsys):
    output = tmp_path / "out"
    assert run_source(output, *SCENES, workers=2) == 0
    assert contents(output) == contents(scenes)
    (output / "dataset.json").unlink()
    (output / "scenes-00001.array_record").write_bytes(b"half a shard")
    assert run_source(output, *SCENES) == 0
    assert "2 of 3 shards are finished" in capsys.readouterr().out
    assert contents(output) == contents(scenes)


@pytest.mark.parametrize(
    "arguments",
    [
        [*SCENES[:2], "size=9", *SCENES[3:]],
        [*SCENES[:-1], "4"],
        [*SCENES, "--min-side", "3"],
    ],
)
def test_other_arguments_for_the_same_output_are_an_error(scenes, arguments, capsys):
    before = contents(scenes)
    assert run_source(scenes, *arguments) == 1
    assert "other options" in capsys.readouterr().err
    assert contents(scenes) == before


def test_a_source_whose_data_changed_is_made_again(tmp_path):
    small, large = tmp_path / "small", tmp_path / "data"
    command = ["--records-per-shard", "2"]
    assert run_source(small, "scenes", "size=3", "image_size=32") == 0
    assert run_source(large, "scenes", "size=4", "image_size=32") == 0
    (tmp_path / "in").symlink_to(small)
    arguments = ["prepared", f"path={tmp_path / 'in'}", *command]
    assert run_source(tmp_path / "out", *arguments) == 0
    assert str(tmp_path) not in (tmp_path / "out" / "dataset.json").read_text()
    (tmp_path / "in").unlink()
    (tmp_path / "in").symlink_to(large)
    assert run_source(tmp_path / "out", *arguments) == 0
    assert ids(tmp_path / "out") == ids(large)


def test_duplicates_and_broken_images_of_a_source_are_dropped_and_listed(tmp_path):
    images = {"a": image(1), "cut": image(1)[:200], "b": image(1), "c": image(2), "d": image(2)}
    examples = [{"id": key, "image": data, "label": 1} for key, data in images.items()]
    folder = write_prepared(tmp_path / "in", examples)
    arguments = ["prepared", f"path={folder}", "--records-per-shard", "2", "--drop-duplicates"]
    assert run_source(tmp_path / "out", *arguments, workers=2) == 0
    assert ids(tmp_path / "out") == ["a", "c"]
    dropped = []
    for path in sorted((tmp_path / "out").glob("*.array_record.json")):
        dropped += [(d["key"], d["reason"]) for d in json.loads(path.read_text())["dropped"]]
    assert dropped == [
        ("cut", "broken image"),
        ("b", "duplicate image"),
        ("d", "duplicate image"),
    ]


def test_text_that_is_not_unicode_is_dropped_and_listed(tmp_path):
    examples = [
        {"id": "a", "image": image(1), "captions": {"text": ["x"]}, "question": "half \udfff?"},
        {"id": "b", "image": image(1), "captions": {"text": ["fine", "\ud800"]}},
        {"id": "c", "image": image(1), "captions": {"text": ["\U0001f600 \0"]}},
    ]
    folder = write_prepared(tmp_path / "in", examples)
    assert run_source(tmp_path / "out", "prepared", f"path={folder}") == 0
    assert ids(tmp_path / "out") == ["c"]
    [path] = (tmp_path / "out").glob("*.array_record.json")
    dropped = json.loads(path.read_text())["dropped"]
    assert [(d["key"], d["reason"]) for d in dropped] == [
        ("a", "unreadable text"),
        ("b", "unreadable text"),
    ]
    assert dropped[1]["detail"].startswith("captions.text[1]: the text '")


@pytest.mark.parametrize("name", ["data[1]", "x[0:1]", "a*", "b@2", "new\nline"])
def test_directories_of_any_name(tmp_path, name):
    assert run_source(tmp_path / name, "scenes", "size=2", "image_size=32") == 0
    assert ids(tmp_path / name) == ["scenes-train-0", "scenes-train-1"]
    source = make_source("prepared", path=tmp_path / name)
    assert pickle.loads(pickle.dumps(source))[1]["image"] == source[1]["image"]


def test_a_directory_whose_name_is_no_text_is_refused(tmp_path, capsys):
    assert run_source(tmp_path / "caf\udce9", "scenes", "size=2", "image_size=32") == 1
    assert re.search("error: --output: .* is not valid Unicode", capsys.readouterr().err)


def test_captions_that_are_one_string_fail_the_run(tmp_path, capsys):
    example = {"id": "x", "image": image(1), "captions": {"text": "one string"}}
    folder = write_prepared(tmp_path / "in", [example])
    assert run_source(tmp_path / "out", "prepared", f"path={folder}") == 1
    assert "FAILED prepared, records 0 to 0: record 'x': captions must" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "Unknown data source 'nowhere'"),
        (["scenes", "zise=3"], "source scenes: got an unexpected keyword argument 'zise'"),
        (["scenes", "size=-1"], "scenes: size is -1"),
        (["scenes", "size=3", "size=4"], "or there twice"),
        (["scenes", "3"], "'3' is not KEY=VALUE"),
        (["prepared", "path=/nowhere"], "is not a prepared data set"),
        (["scenes", "--min-side", "0"], "--min-side must be at least 1"),
        (["mixture", 'sources=[{"name": "scenes", "weight": 2}]'], "Shards keep no weights"),
    ],
)
def test_unusable_arguments_of_a_source_are_one_clear_error(arguments, message, tmp_path, capsys):
    assert run_source(tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_a_number_out_of_range_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_source(tmp_path / "out", "scenes", "--records-per-shard", "0")
    assert "--records-per-shard: '0': give 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "new"),
    [
        (["scenes"], "--input scenes."),
        (
            ["table", "path=a.csv", "url_column=Image Path"],
            "--input 'table:path=a.csv,url_column=Image Path'.",
        ),
        ([], "Give --input DIR|NAME:KEY=VALUE,..."),
    ],
)
def test_the_former_words_for_a_source_are_an_error_that_has_the_new_ones(
    words, new, tmp_path, capsys
):
    assert prepare.main(["source", *words, "--output", str(tmp_path / "out")]) == 1
    assert new in capsys.readouterr().err


def test_a_worker_that_sees_another_source_refuses():
    given = {"split": "val", "size": 7, "image_size": 40}
    job = "scenes", json.dumps(given)
    seen = make_source("scenes", **given).fingerprint()
    assert len(list(prepare._read_source(*job, seen, range(2, 4), Tally()))) == 2
    other = make_source("scenes", **given | {"size": 6}).fingerprint()
    with pytest.raises(ValueError, match="another one for this worker"):
        next(prepare._read_source(*job, other, range(2, 4), Tally()))
