"""COCO's object annotations as labels."""

import json
import pickle

import pytest

from input_pipeline.sources import make_source

CATEGORIES = [
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 13, "name": "stop sign", "supercategory": "outdoor"},
]
OBJECTS = [(4, 13, 0), (9, 90, 0), (4, 1, 1), (4, 13, 0), (9, 1, 0)]


def instances(folder, objects=OBJECTS, **changes):
    """Image 7 has no object; one of image 4's is a crowd."""
    (folder / "val").mkdir(parents=True, exist_ok=True)
    names = {9: "b.jpg", 7: "c.jpg", 4: "a.jpg"}
    for name in names.values():
        (folder / "val" / name).write_bytes(f"image {name}".encode())
    content = {
        "info": {},
        "images": [{"id": i, "file_name": name, "width": 3} for i, name in names.items()],
        "annotations": [
            {"image_id": image, "category_id": category, "iscrowd": crowd, "bbox": [0, 0, 1, 1]}
            for image, category, crowd in objects
        ],
        "categories": CATEGORIES,
    } | changes
    (folder / "instances.json").write_text(json.dumps(content))
    return {"annotations": folder / "instances.json", "images": folder / "val"}


def test_labels_are_categories_in_the_order_of_their_ids(tmp_path):
    source = make_source("coco_labels", **instances(tmp_path))
    assert source.class_names == ["person", "stop sign", "toothbrush"]
    assert [source[i] for i in range(len(source))] == [
        {"id": "9", "image": b"image b.jpg", "captions": {}, "labels": [0, 2]},
        {"id": "7", "image": b"image c.jpg", "captions": {}, "labels": []},
        {"id": "4", "image": b"image a.jpg", "captions": {}, "labels": [0, 1]},
    ]
    source[0]["labels"].append(5)
    assert source[0]["labels"] == [0, 2]


def test_pickling_and_fingerprint(tmp_path):
    source = make_source("coco_labels", **instances(tmp_path / "one"))
    copy = pickle.loads(pickle.dumps(source))
    assert copy[1] == source[1]
    same = make_source("coco_labels", **instances(tmp_path / "two"))
    assert copy.fingerprint() == same.fingerprint() == source.fingerprint()
    other = make_source("coco_labels", **instances(tmp_path / "two", OBJECTS[1:]))
    assert other.fingerprint() == source.fingerprint()  # the same sign, once more
    other = make_source("coco_labels", **instances(tmp_path / "two", OBJECTS[:-1]))
    assert other.fingerprint() != source.fingerprint()
    with pytest.raises(IndexError, match="Index 3 is out of range: there are 3 records"):
        source[3]


def test_missing_files(tmp_path):
    arguments = instances(tmp_path)
    (tmp_path / "val" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing: .*val/a\.jpg\. Is "):
        make_source("coco_labels", **arguments)
    with pytest.raises(FileNotFoundError, match=r"Annotation file .*none\.json does not exist"):
        make_source("coco_labels", annotations=tmp_path / "none.json", images=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"categories": []},
        {"images": [{"id": 4}]},
        {"annotations": [{"image_id": 4, "caption": "a"}]},
        {"annotations": [{"image_id": 5, "category_id": 1}]},
    ],
)
def test_another_format(tmp_path, changes):
    with pytest.raises(ValueError, match=r"instances\.json is no file of object annotations"):
        make_source("coco_labels", **instances(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [*CATEGORIES, {"id": "1", "name": "x"}]}, "two categories have the id 1"),
        ({"objects": [(4, 2, 0)]}, "an annotation of image 4 has the unlisted category 2"),
        ({"objects": [(5, 1, 0), (6, 1, 0)]}, "2 of 2 annotations are of images .* such as 5, 6"),
        ({"images": [{"id": 4, "file_name": "a.jpg"}] * 2}, "two images have the id 4"),
    ],
)
def test_ids_that_do_not_fit_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_source("coco_labels", **instances(tmp_path, **changes))


def test_ids_are_the_same_however_they_are_written(tmp_path):
    expected = make_source("coco_labels", **instances(tmp_path / "a"))
    categories = [{**category, "id": str(category["id"])} for category in CATEGORIES]
    objects = [(float(image), category, crowd) for image, category, crowd in OBJECTS]
    found = make_source("coco_labels", **instances(tmp_path / "b", objects, categories=categories))
    assert [found[i] for i in range(3)] == [expected[i] for i in range(3)]
    assert found.class_names == expected.class_names


def test_no_image(tmp_path):
    with pytest.raises(ValueError, match=r"instances\.json has no image"):
        make_source("coco_labels", **instances(tmp_path, images=[], annotations=[]))
