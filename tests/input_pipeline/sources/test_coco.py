"""Folders of images with a caption JSON, in both of its formats."""

import json
import pickle
from pathlib import Path

import pytest

from input_pipeline.sources import make_source


def coco(folder, annotations=None, images=None):
    """COCO's layout: captions of an image are not next to each other, one image has none."""
    (folder / "val").mkdir(parents=True, exist_ok=True)
    names = {9: "b.jpg", 4: "a.jpg", 7: "c.jpg"}
    for name in names.values():
        (folder / "val" / name).write_bytes(f"image {name}".encode())
    if annotations is None:
        texts = [(4, "four"), (9, "nine "), (4, "IV"), (9, "IX\n"), (4, " ")]
        annotations = [
            {"image_id": i, "caption": text, "id": k} for k, (i, text) in enumerate(texts)
        ]
    if images is None:
        images = [{"id": i, "file_name": name, "width": 3} for i, name in names.items()]
    content = {"info": {}, "images": images, "annotations": annotations}
    (folder / "captions.json").write_text(json.dumps(content))
    return {"annotations": folder / "captions.json", "images": folder / "val"}


def flickr(folder, entries=None):
    (folder / "flickr30k-images").mkdir(parents=True, exist_ok=True)
    for name in "ab":
        (folder / "flickr30k-images" / f"{name}.jpg").write_bytes(name.encode())
    if entries is None:
        entries = [
            {"image": "flickr30k-images/b.jpg", "caption": ["one", "two "]},
            {"image": "flickr30k-images/a.jpg", "caption": "three"},
            {"image": "flickr30k-images/b.jpg", "caption": "four"},
        ]
    (folder / "flickr30k_val.json").write_text(json.dumps(entries))
    return {"annotations": folder / "flickr30k_val.json", "images": folder}


def open_source(arguments, **more):
    return make_source("coco", **arguments, **more)


def test_coco(tmp_path):
    source = open_source(coco(tmp_path))
    assert [source[i] for i in range(len(source))] == [
        {"id": "9", "image": b"image b.jpg", "captions": {"caption": ["nine", "IX"]}},
        {"id": "4", "image": b"image a.jpg", "captions": {"caption": ["four", "IV"]}},
    ]


def test_flickr(tmp_path):
    source = open_source(flickr(tmp_path), caption_field="raw_caption")
    captions = {"raw_caption": ["one", "two", "four"]}
    assert [source[i] for i in range(len(source))] == [
        {"id": "flickr30k-images/b.jpg", "image": b"b", "captions": captions},
        {"id": "flickr30k-images/a.jpg", "image": b"a", "captions": {"raw_caption": ["three"]}},
    ]


def test_changing_a_record_leaves_the_source_alone(tmp_path):
    source = open_source(coco(tmp_path))
    source[0]["captions"]["caption"].append("more")
    assert source[0]["captions"]["caption"] == ["nine", "IX"]


def test_pickling_and_fingerprint(tmp_path):
    source = open_source(coco(tmp_path / "one"))
    copy = pickle.loads(pickle.dumps(source))
    assert copy[1] == source[1]
    same = open_source(coco(tmp_path / "two"))
    assert copy.fingerprint() == same.fingerprint() == source.fingerprint()
    others = [
        open_source(coco(tmp_path / "two"), caption_field="text"),
        open_source(coco(tmp_path / "two", [{"image_id": 4, "caption": "four"}])),
        open_source(flickr(tmp_path / "two")),
    ]
    assert len({s.fingerprint() for s in (source, *others)}) == 4


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_out_of_range(tmp_path, index):
    with pytest.raises(IndexError, match=f"Index {index} is out of range: there are 2 records"):
        open_source(coco(tmp_path))[index]


def test_missing_images_are_counted_and_named(tmp_path):
    entries = [{"image": f"x/{i}.jpg", "caption": "c"} for i in range(8)]
    entries.append({"image": "flickr30k-images/a.jpg", "caption": "c"})
    with pytest.raises(FileNotFoundError, match=r"8 of 9 images are missing: .*x/0\.jpg") as error:
        open_source(flickr(tmp_path, entries))
    assert "x/4.jpg, ...." in str(error.value)
    assert "x/5.jpg" not in str(error.value)
    arguments = coco(tmp_path)
    Path(arguments["images"], "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are missing: .*val/a\.jpg\. Is "):
        open_source(arguments)
    with pytest.raises(FileNotFoundError, match="2 of 2 images are missing"):
        open_source({**arguments, "images": tmp_path / "nowhere"})


def test_no_annotation_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        make_source("coco", annotations=tmp_path / "nowhere.json", images=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        '{"images": []}',
        '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}',
        '{"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}',
        '[{"filename": "a"}]',
        '[{"image": "a", "caption": [3]}]',
        '["a"]',
    ],
)
def test_another_format(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is no caption file .* it should hold COCO's"):
        make_source("coco", annotations=tmp_path / "a.json", images=tmp_path)


@pytest.mark.parametrize("ids", [("9", "4", "7"), (9.0, 4.0, 7.0), (9, "4", 7.0)])
def test_an_id_is_the_same_however_it_is_written(tmp_path, ids):
    images = [{"id": i, "file_name": name} for i, name in zip(ids, ("b.jpg", "a.jpg", "c.jpg"))]
    expected, found = (
        open_source(coco(tmp_path / "a")),
        open_source(coco(tmp_path / "b", None, images)),
    )
    assert [found[i] for i in range(len(found))] == [expected[i] for i in range(len(expected))]
    assert found.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([(1, "a.jpg"), ("1", "b.jpg")], [], r"two images have the id 1: .*a\.jpg.* and .*b\.jpg"),
        (
            [(1, "a.jpg")],
            [(1, "x"), (2, "y"), (2, "z")],
            "2 of 3 annotations are of images .* 2\\)",
        ),
        ([(1, "a.jpg")], [(True, "x")], "the id True is neither"),
        ([(1.5, "a.jpg")], [], "the id 1.5 is neither"),
        ([(None, "a.jpg")], [], "the id None is neither"),
        ([(1, 7)], [(1, "x")], "7 is no name of an image file"),
        ([(1, None)], [(1, "x")], "None is no name of an image file"),
        (
            [(1, "a.jpg")],
            [(1, "half \ud800")],
            r"annotations\[0\]\.caption: the text 'half .* Unicode",
        ),
        ([(1, "a.jpg")], [(1, 5)], "caption 5 is no text"),
        ([(1, "a.jpg")], [(1, None)], "caption None is no text"),
    ],
)
def test_annotations_that_do_not_fit_are_named(tmp_path, images, annotations, message):
    arguments = coco(
        tmp_path,
        [{"image_id": i, "caption": text} for i, text in annotations],
        [{"id": i, "file_name": name} for i, name in images],
    )
    with pytest.raises(ValueError, match=rf"captions\.json is no caption file \(.*{message}"):
        open_source(arguments)


def test_bytes_that_are_no_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"image": "a", "caption": "caf\xe9"}]')
    with pytest.raises(ValueError, match=r"a\.json is no caption file .*can't decode byte 0xe9"):
        make_source("coco", annotations=tmp_path / "a.json", images=tmp_path)


def test_a_name_that_no_file_can_have_is_a_missing_image(tmp_path):
    with pytest.raises(FileNotFoundError, match="1 of 1 images are missing"):
        open_source(
            coco(tmp_path, [{"image_id": 1, "caption": "x"}], [{"id": 1, "file_name": "\0"}])
        )


@pytest.mark.parametrize("text", ["[]", '{"images": [], "annotations": []}'])
def test_no_caption(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json has no caption"):
        make_source("coco", annotations=tmp_path / "a.json", images=tmp_path)
