"""Folders of images and JSON in the layout of CogVLM-SFT-311K."""

import json
import pickle
import random

import pytest

from input_pipeline.prepare import command
from input_pipeline.sources import make_source
from input_pipeline.text.conversations import make_turn

MESSAGES = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A ring."},
    {"role": "user", "content": "Which colour?"},
    {"role": "assistant", "content": "Red."},
]
CAPTION = {"role": "caption", "content": "A red ring."}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels_en").mkdir()
    scenes = make_source("scenes", size=3, image_size=32)
    labels = [{"captions": [CAPTION]}, {"conversations": MESSAGES}, {}]
    labels[2] = labels[0] | labels[1]
    for i, label in enumerate(labels):
        (tmp_path / "images" / f"0000000{i}.jpg").write_bytes(scenes[i]["image"])
        (tmp_path / "labels_en" / f"0000000{i}.json").write_text(json.dumps(label))
    return tmp_path


def make(folder, **kwargs):
    return make_source("conversations", path=folder, labels="labels_en", **kwargs)


def test_records(folder):
    source = pickle.loads(pickle.dumps(make(folder)))
    assert len(source) == 3
    first, second, third = (source[i] for i in range(3))
    assert first == {
        "id": "00000000",
        "image": make_source("scenes", size=1, image_size=32)[0]["image"],
        "captions": {"caption": ["A red ring."]},
    }
    assert second["captions"] == {} and second["conversation"] == MESSAGES
    assert third["captions"] == first["captions"] and third["conversation"] == MESSAGES
    assert make(folder, caption_field="long")[0]["captions"] == {"long": ["A red ring."]}
    for index in (-1, 3):
        with pytest.raises(IndexError, match="there are 3"):
            source[index]


def test_prepared_records_are_the_same(folder, tmp_path):
    arguments = ["source", "--input", f"conversations:path={folder},labels=labels_en"]
    output = tmp_path / "prepared"
    assert command.main([*arguments, "--output", str(output), "--workers", "1"]) == 0
    source, prepared = make(folder), make_source("prepared", path=str(output))
    assert len(prepared) == 3
    for i in range(3):
        record = prepared[i]
        assert {name: record[name] for name in source[i]} == source[i]
        for task in ("caption", "conversation"):
            turns = [make_turn(task, r, random.Random(i)) for r in (record, source[i])]
            assert turns[0] == turns[1]


def test_fingerprint_follows_the_names(folder):
    before = make(folder).fingerprint()
    assert make(folder).fingerprint() == before and len(before) == 16
    (folder / "labels_en" / "00000000.json").unlink()
    assert make(folder).fingerprint() != before


def test_what_is_missing(folder):
    with pytest.raises(FileNotFoundError, match="labels does not exist; set labels"):
        make_source("conversations", path=folder)
    (folder / "images" / "00000001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing: .*00000001\.jpg"):
        make(folder)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no \.json file"):
        make_source("conversations", path=folder, labels="empty")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "Expecting"),
        ("[]", "get"),
        ("{}", "it has neither"),
        ('{"captions": ["a cat"]}', "indices"),
        ('{"captions": [{"role": "user", "content": "a"}]}', "no text of role 'caption'"),
        ('{"captions": [{"role": "caption", "content": null}]}', "no text of role 'caption'"),
        ('{"conversations": [{"role": "user", "content": "a"}]}', r"has the roles \['user'\]"),
        ('{"conversations": [{"content": "a"}]}', "role"),
    ],
)
def test_other_forms_are_named(folder, content, message):
    (folder / "labels_en" / "00000001.json").write_text(content)
    source = make(folder)
    assert source[0]["id"] == "00000000"
    with pytest.raises(ValueError, match=rf"00000001\.json should hold .*{message}"):
        source[1]
