"""Captions in the formats of Karpathy's splits, NoCaps and TextCaps; LLaVA's conversations."""

import json

import pytest

from input_pipeline.prepare import command
from input_pipeline.sources import make_source
from input_pipeline.text.conversations import rounds_of
from tests.input_pipeline.sources.published import (
    records,
    without_image,
    write_images,
    write_json,
)

SPLITS = ("test", "train", "restval", "val")


def karpathy(folder, coco=True, **first):
    images = [
        {
            "sentids": [1, 2],
            "imgid": number,
            "filename": f"{number}.jpg",
            "split": split,
            "sentences": [
                {"tokens": ["a", "man"], "raw": raw, "imgid": number, "sentid": number}
                for raw in (f"A man {number}.", "Someone ", " ")
            ],
        }
        | ({"filepath": "val2014", "cocoid": 391895 + number} if coco else {})
        for number, split in enumerate(SPLITS)
    ]
    images[0] |= first
    place = "val2014/" if coco else ""
    return {
        "kind": "karpathy",
        "annotations": write_json(folder / "dataset.json", {"images": images, "dataset": "x"}),
        "images": write_images(folder / "images", [f"{place}{n}.jpg" for n in range(4)]),
    }


def test_karpathy(tmp_path):
    [found] = records(make_source("captioning", **karpathy(tmp_path), split="test"))
    assert without_image(found) == {"id": "391895", "split": "test"}
    assert found["captions"] == {"caption": ["A man 0.", "Someone"]}
    both = records(make_source("captioning", **karpathy(tmp_path), split="train+restval"))
    assert [one["split"] for one in both] == ["train", "restval"]
    flickr = karpathy(tmp_path, coco=False)
    [found] = records(make_source("captioning", **flickr, split="val", caption_field="txt"))
    assert (found["id"], list(found["captions"])) == ("3.jpg", ["txt"])


@pytest.mark.parametrize(
    ("first", "split", "message"),
    [
        ({}, "dev", "it has no split 'dev', but restval, test, train, val"),
        ({"sentences": []}, "test+val", "1 of 2 images have no caption, such as 391895"),
        ({"cocoid": 391898}, "test+val", "two entries have the id '391898'"),
        ({"sentences": [{"raw": 3}]}, "test", "image 391895: the caption 3 is no text"),
        ({"filename": None}, "test", "TypeError"),
    ],
)
def test_captions_that_are_none(tmp_path, first, split, message):
    with pytest.raises(ValueError, match=rf"dataset\.json cannot be used \(.*{message}"):
        make_source("captioning", **karpathy(tmp_path, **first), split=split)


def nocaps(folder, annotations=None):
    images = [
        {"id": n, "open_images_id": f"00{n}", "file_name": f"00{n}.jpg", "domain": domain}
        for n, domain in enumerate(("in-domain", "out-domain"))
    ]
    if annotations is None:
        annotations = [
            {"image_id": n, "id": k, "caption": f"caption {k}"} for k, n in enumerate((1, 0, 1))
        ]
    content = {"info": {}, "images": images, "annotations": annotations}
    return {
        "kind": "nocaps",
        "annotations": write_json(folder / "nocaps_val_4500_captions.json", content),
        "images": write_images(folder / "images", ["000.jpg", "001.jpg"]),
    }


def test_nocaps(tmp_path):
    found = records(make_source("captioning", **nocaps(tmp_path)))
    assert [without_image(one) for one in found] == [
        {"id": "0", "domain": "in-domain"},
        {"id": "1", "domain": "out-domain"},
    ]
    assert found[1]["captions"] == {"caption": ["caption 0", "caption 2"]}
    secret = records(make_source("captioning", **nocaps(tmp_path, [])))
    assert all(one["captions"] == {} for one in secret)
    with pytest.raises(ValueError, match="1 of 1 annotations are of images that are not listed"):
        make_source("captioning", **nocaps(tmp_path, [{"image_id": 5, "caption": "x"}]))
    with pytest.raises(ValueError, match="kind='nocaps' takes no split"):
        make_source("captioning", **nocaps(tmp_path), split="val")
    with pytest.raises(ValueError, match="it should hold TextCaps'"):
        make_source("captioning", **nocaps(tmp_path) | {"kind": "textcaps"})


def test_textcaps(tmp_path):
    data = [
        {
            "caption_str": f"A sign {number}.",
            "caption_id": number,
            "image_id": name,
            "set_name": "val",
            "image_path": f"train/{name}.jpg",
            "reference_strs": ["A sign 0.", "A sign 1."],
        }
        for number, name in enumerate(("a0", "a0", "b1"))
    ]
    path = write_json(tmp_path / "TextCaps_0.1_val.json", {"dataset_type": "val", "data": data})
    images = write_images(tmp_path / "images", ["a0.jpg", "b1.jpg"])
    source = make_source("captioning", kind="textcaps", annotations=path, images=images)
    first, second = records(source)
    assert without_image(first) == {"id": "a0", "split": "val"}
    assert first["captions"] == {"caption": ["A sign 0.", "A sign 1."]}
    assert second["captions"] == {"caption": ["A sign 2."]}
    write_json(path, {"dataset_name": "TextVQA", "data": data})
    with pytest.raises(ValueError, match="its dataset_name is 'textvqa', not 'textcaps'"):
        make_source("captioning", kind="textcaps", annotations=path, images=images)


def llava(folder, **first):
    asked = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Where?\n<image>"},
        {"from": "gpt", "value": "There."},
    ]
    rows = [
        {"id": "33471", "image": "coco/33471.jpg", "conversations": asked},
        {"id": "33471", "image": "coco/33471.jpg", "conversations": asked[:2]},
        {"id": "text", "conversations": asked[:2]},
    ]
    rows[0] |= first
    return {
        "annotations": write_json(folder / "llava.json", rows),
        "images": write_images(folder / "images", ["coco/33471.jpg"]),
    }


def test_llava(tmp_path):
    arguments = llava(tmp_path)
    source = make_source("instructions", **arguments)
    first, second = found = records(source)
    assert rounds_of(first) == [("What is it?", "A cat."), ("Where?", "There.")]
    assert (first["id"], second["id"]) == ("33471", "33471#2")
    assert source.left_out == {"conversations without an image": 1}
    text = ",".join(f"{key}={value}" for key, value in arguments.items())
    given = ["--input", f"instructions:{text}", "--output", str(tmp_path / "out")]
    assert command.main(["source", *given, "--workers", "1"]) == 0
    assert records(make_source("prepared", path=tmp_path / "out")) == found


def test_llava_as_it_comes(tmp_path):
    """Text alone, one image, several; one image's place is always in front."""
    arguments = llava(tmp_path)
    path = tmp_path / "llava.json"
    rows = json.loads(path.read_text())
    write_images(tmp_path / "images", ["b.jpg", "c.jpg"])
    asked = [{"from": "human", "value": "Is <image> like <image>?"}, {"from": "gpt", "value": "No"}]
    rows.append({"id": "two", "image": ["c.jpg", "b.jpg"], "conversations": asked})
    write_json(path, rows)
    source = make_source("instructions", **arguments, interleaved=True)
    first, _, text, two = found = records(source)
    assert source.left_out == {} and "images" not in first
    assert rounds_of(first) == [("What is it?", "A cat."), ("Where?", "There.")]
    assert text["images"] == [] and "image" not in text
    files = [(tmp_path / "images" / name).read_bytes() for name in ("c.jpg", "b.jpg")]
    assert two["images"] == files and rounds_of(two) == [("Is <image> like <image>?", "No")]
    given = ",".join(f"{key}={value}" for key, value in arguments.items())
    given = ["--input", f"instructions:{given},interleaved=true", "--output", str(tmp_path / "out")]
    assert command.main(["source", *given, "--workers", "1"]) == 0
    assert records(make_source("prepared", path=tmp_path / "out")) == found
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert sum(description["images"]["formats"].values()) == 4


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([{"from": "system", "value": "x"}], "33471: a message is from 'system'"),
        ([{"from": "human", "value": "x"}], r"33471: .*has the roles \['user'\]"),
        ([{"from": "human", "value": "<image>"}], "33471: a message '.*' is no text"),
        ([], "33471: there is no message"),
        ([{"value": "x"}], "KeyError"),
    ],
)
def test_conversations_that_are_none(tmp_path, conversation, message):
    with pytest.raises(ValueError, match=rf"llava\.json cannot be used \(.*{message}"):
        make_source("instructions", **llava(tmp_path, conversations=conversation))


def test_lrv_instruction(tmp_path):
    rows = [
        {"image_id": "2392588", "question": f"{q}?", "answer": f"{q}.", "task": "negative"}
        for q in "ab"
    ]
    rows.append({"image_id": 7, "question": "c?", "answer": "c."})
    images = write_images(tmp_path / "vg", ["VG_100K_2/2392588.jpg", "7.jpg"])
    for content in (rows, {"annotations": rows}):
        path = write_json(tmp_path / "filter_cap.json", content)
        arguments = {"kind": "lrv", "annotations": path, "images": images}
        found = records(make_source("instructions", **arguments))
        assert [one["id"] for one in found] == ["2392588", "2392588#2", "7"]
        assert found[1]["conversation"] == [
            {"role": "user", "content": "b?"},
            {"role": "assistant", "content": "b."},
        ]
        assert found[0]["category"] == "negative" and "category" not in found[2]
        assert found[1]["image"] == (images / "VG_100K_2/2392588.jpg").read_bytes()
    rows[0]["answer"] = None
    write_json(path, rows)
    with pytest.raises(ValueError, match="image 2392588: the answer None is no text"):
        make_source("instructions", **arguments)


def test_minigpt4(tmp_path):
    content = {"annotations": [{"image_id": "2", "caption": "A bus."}]}
    arguments = {
        "kind": "minigpt4",
        "annotations": write_json(tmp_path / "filter_cap.json", content),
        "images": write_images(tmp_path / "image", ["2.jpg"]),
    }
    [found] = records(make_source("instructions", **arguments))
    assert [turn["content"] for turn in found["conversation"]] == [
        "Describe this image in detail.",
        "A bus.",
    ]
    with pytest.raises(ValueError, match="should hold LLaVA's"):
        make_source("instructions", **arguments | {"kind": "llava"})
