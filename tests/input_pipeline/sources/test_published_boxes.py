"""Phrases with boxes, in the formats of RefCOCO, Flickr30k Entities, Visual Genome, Visual7W."""

import io
import json
import pickle
import random

import numpy as np
import pytest
from PIL import Image

from input_pipeline.files.ranges import read_files
from input_pipeline.sources import make_source
from input_pipeline.sources.boxes import pointing
from input_pipeline.text.boxes import parse_boxes
from input_pipeline.text.conversations import Turn, boxes_of, make_turn
from tests.input_pipeline.sources.published import records, write_json

WIDTH, HEIGHT = 200, 100


def write_image(path):
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(file, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())


def refcoco(folder, box=(20, 10, 100, 50), protocol=2, **ref):
    """Two objects, of two splits."""
    refs = [
        {
            "sent_ids": [0, 1],
            "file_name": "COCO_train2014_000000581857_16.jpg",
            "ann_id": 1719310 + number,
            "ref_id": number,
            "image_id": 581857,
            "split": split,
            "sentences": [
                {"tokens": ["the", "lady"], "raw": "The lady", "sent_id": 0, "sent": "the lady"},
                {"tokens": ["blue"], "raw": "Blue!", "sent_id": 1, "sent": "blue"},
            ],
            "category_id": 1,
        }
        for number, split in enumerate(("testA", "train"))
    ]
    refs[0] |= ref
    name = "COCO_train2014_000000581857.jpg"
    instances = {
        "images": [{"id": 581857, "file_name": name, "width": WIDTH, "height": HEIGHT}],
        "annotations": [
            {"id": 1719310 + n, "image_id": 581857, "bbox": list(box), "category_id": 1}
            for n in (0, 1)
        ],
        "categories": [],
    }
    write_json(folder / "instances.json", instances)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol))
    write_image(folder / "train2014" / name)
    return {
        "kind": "refcoco",
        "annotations": folder / "refs(unc).p",
        "images": folder / "train2014",
        "split": "testA",
    }


def test_refcoco(tmp_path):
    [found] = records(make_source("referring", **refcoco(tmp_path)))
    assert (found["id"], found["split"]) == ("0", "testA")
    assert found["phrases"] == ["the lady", "blue"]
    np.testing.assert_allclose(found["boxes"], [[0.1, 0.1, 0.6, 0.6]] * 2, rtol=1e-6)
    assert found["boxes"].dtype == np.float32 and list(boxes_of(found)) == found["phrases"]
    turn = make_turn("rec", found, random.Random(0))
    assert turn.answer == "[[100,100,600,600]]"


def test_a_pickle_of_python_2(tmp_path):
    arguments = refcoco(tmp_path)
    text = (
        "(lp0\n(dp1\nS'ref_id'\np2\nI0\nsS'ann_id'\nI1719310\nsS'image_id'\nI581857\n"
        "sS'split'\nS'val'\nsS'sentences'\n(lp3\n(dp4\nS'sent'\nS'lady'\nsasa."
    )
    arguments["annotations"].write_text(text)
    [found] = records(make_source("referring", **arguments | {"split": "val"}))
    assert found["phrases"] == ["lady"]


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_executes_nothing(tmp_path, capsys):
    arguments = refcoco(tmp_path, image_id=Payload())
    with pytest.raises(ValueError, match=r"cannot be read as plain data.*print"):
        make_source("referring", **arguments)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ({"ann_id": 5}, "ref 0 is of object 5 of image 581857, which instances.json does not have"),
        ({"image_id": 5}, "of image 5, which"),
        ({"ref_id": 1}, "two entries have the ref_id 1"),
        ({"sentences": [{"sent": " "}]}, "there is nothing in it for records"),
        ({"sentences": [{"sent": None}]}, "AttributeError"),
        ({"sentences": []}, "there is nothing in it for records"),
        ({"split": "val"}, "it has no split 'testA', but train, val"),
    ],
)
def test_refs_that_do_not_fit(tmp_path, ref, message):
    with pytest.raises(ValueError, match=rf"refs\(unc\)\.p cannot be used \(.*{message}"):
        make_source("referring", **refcoco(tmp_path, **ref))


@pytest.mark.parametrize("box", [(150, 10, 100, 50), (-30, 0, 60, 20), (5, 5, 0, 9), (0, 0, 9, -5)])
def test_boxes_outside_are_named_or_left_out(tmp_path, box):
    arguments = refcoco(tmp_path, box=box)
    with pytest.raises(ValueError, match=r"'0': the box of 'the lady' is outside .*200x100"):
        make_source("referring", **arguments)
    with pytest.raises(ValueError, match="there is nothing in it"):
        make_source("referring", **arguments, drop_outside=True)


def test_a_box_that_ends_a_little_outside_ends_at_the_edge(tmp_path):
    [found] = records(make_source("referring", **refcoco(tmp_path, box=(-2, 50, 210, 54))))
    np.testing.assert_allclose(found["boxes"][0], [0, 0.5, 1, 1])


def entities(folder, size=(WIDTH, HEIGHT)):
    def thing(names, box=None):
        names = "".join(f"<name>{name}</name>" for name in names)
        if box is None:
            return f"<object>{names}<scene>1</scene><nobndbox>1</nobndbox></object>"
        parts = zip(("xmin", "ymin", "xmax", "ymax"), box)
        corners = "".join(f"<{key}>{value}</{key}>" for key, value in parts)
        return f"<object>{names}<bndbox>{corners}</bndbox></object>"

    things = thing(["1"], (21, 11, 101, 51)) + thing(["1", "2"], (1, 1, 21, 11)) + thing(["8"])
    for sub, text in {
        "Annotations/36.xml": f"<annotation><filename>36.jpg</filename><size><width>{size[0]}"
        f"</width><height>{size[1]}</height><depth>3</depth></size>{things}</annotation>",
        "Sentences/36.txt": "[/EN#1/people Two guys] with [/EN#2/bodyparts/other shaggy hair] in "
        "[/EN#8/scene the yard] .\n[/EN#0/notvisual It] is nothing .\n",
        "test.txt": "36\n",
    }.items():
        (folder / sub).parent.mkdir(parents=True, exist_ok=True)
        (folder / sub).write_text(text)
    write_image(folder / "images" / "36.jpg")
    return {
        "kind": "flickr_entities",
        "annotations": folder,
        "images": folder / "images",
        "split": "test",
    }


def test_flickr_entities(tmp_path):
    source = make_source("referring", **entities(tmp_path))
    [found] = records(source)
    assert found["captions"] == {"caption": ["Two guys with shaggy hair in the yard ."]}
    assert (found["id"], found["split"]) == ("36/0", "test")
    assert found["phrases"] == ["Two guys", "Two guys", "shaggy hair"]
    boxes = [[0.1, 0.1, 0.5, 0.5], [0, 0, 0.1, 0.1], [0, 0, 0.1, 0.1]]
    np.testing.assert_allclose(found["boxes"], boxes, rtol=1e-6)
    assert source.left_out == {"entries without a box": 1}
    assert make_turn("grounded", found, random.Random(0)).answer == (
        "Two guys [[100,100,500,500;000,000,100,100]] with shaggy hair [[000,000,100,100]] in the "
        "yard ."
    )


def test_entities_of_other_images(tmp_path):
    arguments = entities(tmp_path, size=(90, 45))
    with pytest.raises(ValueError, match="Record '36/0': the box of 'Two guys' is outside"):
        make_source("referring", **arguments)
    source = make_source("referring", **arguments, drop_outside=True)
    assert source.left_out["boxes outside their images"] == 1
    assert source[0]["phrases"] == ["Two guys", "shaggy hair"]
    with pytest.raises(FileNotFoundError, match=r"has no val\.txt"):
        make_source("referring", **arguments | {"split": "val"})
    (tmp_path / "Annotations" / "36.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"Annotations/36\.xml: no element found"):
        make_source("referring", **arguments)


def visual_genome(folder):
    """An image in each of the two folders; one region is outside, one has no words."""
    regions = [
        {"region_id": n, "image_id": 1, "x": x, "y": 10, "width": 80, "height": 40, "phrase": p}
        for n, (x, p) in enumerate([(20, "a clock "), (190, "the street"), (0, " ")])
    ]
    content = [{"id": 1, "regions": regions}, {"id": 2, "regions": regions[:1]}]
    write_json(folder / "region_descriptions.json", content)
    for number, sub in ((1, "VG_100K_2"), (2, "VG_100K")):
        write_image(folder / "vg" / sub / f"{number}.jpg")
    sizes = [{"image_id": n, "width": WIDTH, "height": HEIGHT, "url": ""} for n in (2, 1)]
    write_json(folder / "image_data.json", sizes)
    return arguments_of(folder)


def test_visual_genome(tmp_path):
    source = make_source("referring", **visual_genome(tmp_path), drop_outside=True)
    first, second = records(source)
    assert (first["id"], first["phrases"], second["id"]) == ("1", ["a clock"], "2")
    np.testing.assert_allclose(first["boxes"], [[0.1, 0.1, 0.5, 0.5]], rtol=1e-6)
    assert first.keys() == {"id", "image", "captions", "phrases", "boxes"}
    assert source.left_out == {"blank phrases": 1, "boxes outside their images": 1}
    with pytest.raises(ValueError, match="Record '1': the box of 'the street' is outside"):
        make_source("referring", **visual_genome(tmp_path))
    with pytest.raises(ValueError, match="kind='visual_genome' takes no split"):
        make_source("referring", **visual_genome(tmp_path), split="val")
    with pytest.raises(ValueError, match="kind='refcoco' needs split as well"):
        make_source("referring", **visual_genome(tmp_path) | {"kind": "refcoco"})
    write_json(tmp_path / "image_data.json", [{"image_id": 1, "width": 5, "height": 5}])
    with pytest.raises(ValueError, match="is outside its image of 5x5"):
        make_source("referring", **arguments_of(tmp_path))
    with pytest.raises(ValueError, match=r"image 2 is not in image_data\.json"):
        make_source("referring", **arguments_of(tmp_path), drop_outside=True)
    (tmp_path / "image_data.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"image_data\.json does not exist"):
        make_source("referring", **arguments_of(tmp_path))


def arguments_of(folder):
    """Of `visual_genome`, whose files are there."""
    return {
        "kind": "visual_genome",
        "annotations": folder / "region_descriptions.json",
        "images": folder / "vg",
    }


def visual7w(folder, **pair):
    boxes = [
        {"box_id": n, "name": "pillow", "x": 20 * n - 1, "y": -1, "width": 20, "height": 30}
        for n in range(8)
    ]
    pairs = [
        {
            "qa_id": number,
            "image_id": 7,
            "question": "Which pillow is near?",
            "answer": number % 8,
            "multiple_choices": [(number + k) % 8 for k in (1, 2, 3)],
            "type": "which",
        }
        for number in range(40)
    ]
    pairs[0] |= pair
    images = [
        {"image_id": 7, "filename": "v7w_7.jpg", "split": "test", "qa_pairs": pairs},
        {"image_id": 8, "filename": "v7w_8.jpg", "split": "train", "qa_pairs": []},
    ]
    content = {"dataset": "visual7w-pointing", "images": images, "boxes": boxes}
    write_image(folder / "images" / "v7w_7.jpg")
    path = write_json(folder / "dataset_v7w_pointing.json", content)
    return {"annotations": path, "images": folder / "images", "split": "test"}


def test_visual7w(tmp_path):
    found = records(make_source("pointing", **visual7w(tmp_path)))
    for number, one in enumerate(found):
        assert one["question_id"] == str(number) and len(set(one["choices"])) == 4
        assert one["answers"] == [one["choices"][one["answer"]]]
        left = max(0, 20 * (number % 8) - 1) / WIDTH
        assert abs(parse_boxes(one["answers"][0])[0][0] - left) < 1e-3
    places = [one["answer"] for one in found]
    assert all(places.count(place) > 3 for place in range(4))  # it tells nothing
    turn = make_turn("pointing", found[1], random.Random(0))
    assert turn == Turn("Which pillow is near?", "[[095,000,195,290]]")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"answer": 70}, "question 0: there is no box 70"),
        ({"multiple_choices": []}, "question 0: there is one box to choose"),
        ({"question": None}, "question 0: None is no text"),
        ({"qa_id": 1}, "two entries have the id '1'"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path, pair, message):
    with pytest.raises(ValueError, match=rf"pointing\.json cannot be used \(.*{message}"):
        make_source("pointing", **visual7w(tmp_path, **pair))


def test_boxes_of_another_image(tmp_path):
    arguments = visual7w(tmp_path)
    content = json.loads(arguments["annotations"].read_text())
    content["boxes"][0]["x"] = 500
    write_json(arguments["annotations"], content)
    with pytest.raises(ValueError, match="Record '0': a box is outside its image of 200x100"):
        make_source("pointing", **arguments)[0]
    source = make_source("pointing", **arguments, drop_outside=True)
    assert source.left_out == {"questions with a box outside their images": 20}
    assert len(records(source)) == 20
    with pytest.raises(ValueError, match="no split 'val', but test, train"):
        make_source("pointing", **arguments | {"split": "val"})


def test_a_broken_image_is_named_and_not_the_file(tmp_path):
    arguments = visual7w(tmp_path)
    path = arguments["images"] / "v7w_7.jpg"
    path.write_bytes(b"none")
    with pytest.raises(ValueError, match=r"^Record '0': cannot decode 4 bytes"):
        make_source("pointing", **arguments, drop_outside=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="v7w_7"):
        make_source("pointing", **arguments, drop_outside=True)


def test_images_are_read_together(tmp_path, monkeypatch):
    arguments, calls = visual7w(tmp_path), []
    content = json.loads(arguments["annotations"].read_text())
    [first, _], pairs = content["images"], content["images"][0]["qa_pairs"]
    names = [f"v7w_{number}.jpg" for number in range(40)]
    content["images"] = [
        first | {"filename": name, "qa_pairs": [pair]} for name, pair in zip(names, pairs)
    ]
    write_json(arguments["annotations"], content)
    for name in names:
        write_image(arguments["images"] / name)
    monkeypatch.setattr(pointing, "_AT_ONCE", 16)
    monkeypatch.setattr(pointing, "read_files", lambda p: calls.append(len(p)) or read_files(p))
    assert len(make_source("pointing", **arguments, drop_outside=True)) == 40
    assert calls == [16, 16, 8]
