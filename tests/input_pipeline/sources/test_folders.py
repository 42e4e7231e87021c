"""Folders of images as classes."""

import io
import json
import os
import pickle

import pytest
from PIL import Image

from input_pipeline.prepare import command
from input_pipeline.sources import make_source


def picture(level):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (level,) * 3).save(file, "JPEG")
    return file.getvalue()


def folders(path, classes=(("n02", "b.JPEG", "a.jpg"), ("n01", "z.png"), ("n10", "c.webp"))):
    for number, (folder, *files) in enumerate(classes):
        (path / folder).mkdir(parents=True)
        for file in files:
            (path / folder / file).write_bytes(picture(10 * number))
    return path


def test_classes_and_files_are_in_the_order_of_their_names(tmp_path):
    folders(tmp_path)
    source = make_source("folders", path=tmp_path)
    assert source.class_names == ["n01", "n02", "n10"]
    records = [source[i] for i in range(len(source))]
    assert [(r["id"], r["label"]) for r in records] == [
        ("n01/z.png", 0), ("n02/a.jpg", 1), ("n02/b.JPEG", 1), ("n10/c.webp", 2),
    ]  # fmt: skip
    assert [r["image"] for r in records] == [picture(level) for level in (10, 0, 0, 20)]
    assert all(r["captions"] == {} for r in records)


def test_what_is_no_image_is_passed_over(tmp_path):
    folders(tmp_path)
    (tmp_path / "README.txt").write_text("?")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "n01" / "Thumbs.db").write_text("?")
    (tmp_path / "n01" / "._z.png").write_text("?")
    assert len(make_source("folders", path=tmp_path)) == 4


@pytest.mark.parametrize(
    "text",
    [
        "n01 tench, Tinca tinca\nn02 gold fish\nn03 shark\nn10 hen \n",
        "n01\ttench, Tinca tinca\r\nn10\then\r\n\r\nn02\tgold fish",
    ],
)
def test_names(tmp_path, text):
    folders(tmp_path / "train")
    (tmp_path / "names.txt").write_text(text)
    source = make_source("folders", path=tmp_path / "train", names=tmp_path / "names.txt")
    assert source.class_names == ["tench, Tinca tinca", "gold fish", "hen"]
    assert source[0]["label"] == 0


def test_names_that_are_not_there(tmp_path):
    folders(tmp_path / "train")
    arguments = {"path": tmp_path / "train", "names": tmp_path / "names.txt"}
    with pytest.raises(FileNotFoundError, match=r"names\.txt does not exist"):
        make_source("folders", **arguments)
    (tmp_path / "names.txt").write_text("n02 shark\nn10\n")
    with pytest.raises(ValueError, match=r"no name for 2 of 3 class folders: n01, n10\. Its lines"):
        make_source("folders", **arguments)


def test_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        make_source("folders", path=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no folders; it should hold one for each class"):
        make_source("folders", path=tmp_path)
    folders(tmp_path / "data" / "train")
    with pytest.raises(ValueError, match=r"data/train has no image\. Is .* or one above it"):
        make_source("folders", path=tmp_path / "data")


def test_pickling_and_fingerprint(tmp_path):
    source = make_source("folders", path=folders(tmp_path / "one"))
    copy = pickle.loads(pickle.dumps(source))
    assert copy[2] == source[2] and copy.class_names == source.class_names
    same = make_source("folders", path=folders(tmp_path / "two"))
    assert copy.fingerprint() == same.fingerprint() == source.fingerprint()
    (tmp_path / "names.txt").write_text("n01 a\nn02 b\nn10 c")
    others = [
        make_source("folders", path=tmp_path / "one", names=tmp_path / "names.txt"),
        make_source("folders", path=folders(tmp_path / "three", [("n01", "z.png", "a.png")])),
    ]
    assert len({s.fingerprint() for s in (source, *others)}) == 3
    with pytest.raises(IndexError, match="Index 4 is out of range: there are 4 records"):
        source[4]


def test_a_fraction_keeps_the_names(tmp_path):
    source = make_source("folders", fraction=0.9, path=folders(tmp_path))
    assert source.class_names == ["n01", "n02", "n10"] and len(source) <= 4


def test_prepared(tmp_path):
    folders(tmp_path / "train")
    output = tmp_path / "prepared"
    arguments = ["source", "--input", f"folders:path={tmp_path / 'train'}", "--output", str(output)]
    assert command.main([*arguments, "--workers", "1"]) == 0
    source, prepared = (
        make_source("folders", path=tmp_path / "train"),
        make_source("prepared", path=output),
    )
    assert prepared.class_names == source.class_names
    assert [prepared[i] for i in range(4)] == [source[i] for i in range(4)]
    assert json.loads((output / "dataset.json").read_text())["fields"]["label"] == "int"


def test_names_that_are_no_text_are_escaped_and_images_of_every_ending_taken(tmp_path):
    folders(tmp_path, [("caf\udce9", "x\udcff.JPE", "y.avif", "z.tif"), ("[a-b]*", "1.jpg")])
    source = make_source("folders", path=tmp_path)
    assert source.class_names == ["[a-b]*", r"caf\xe9"]
    assert [source[i]["id"] for i in range(4)] == [
        *("[a-b]*/1.jpg", r"caf\xe9/x\xff.JPE", r"caf\xe9/y.avif", r"caf\xe9/z.tif"),
    ]
    assert source[1]["image"] == picture(0)
    assert len(source.fingerprint()) == 16


def test_an_image_that_was_replaced_is_prepared_again(tmp_path, capsys):
    path = folders(tmp_path / "in")
    before = make_source("folders", path=path).fingerprint()

    def run():
        arguments = ["source", "--input", f"folders:path={path}", "--workers", "1"]
        assert command.main([*arguments, "--output", str(tmp_path / "out")]) == 0
        return make_source("prepared", path=tmp_path / "out")[0]["image"]

    assert run() == picture(10)
    replaced = picture(12)
    assert len(replaced) == len(picture(10)) and replaced != picture(10)
    file = path / "n01" / "z.png"
    file.write_bytes(replaced)
    os.utime(file, ns=(5, 5))  # of equal size, and older than the shards
    assert make_source("folders", path=path).fingerprint() == before  # known by its size
    assert run() == replaced
    assert "1 shards are made again: their input has changed." in capsys.readouterr().out
    file.write_bytes(replaced + b"longer")
    assert make_source("folders", path=path).fingerprint() != before
    run()
    capsys.readouterr()
    run()
    assert "1 of 1 shards are finished already (their input and its" in capsys.readouterr().out


def test_a_broken_link_does_not_keep_the_others_from_being_told_apart(tmp_path):
    folders(tmp_path)
    (tmp_path / "n01" / "y.jpg").symlink_to("nowhere")
    source = make_source("folders", path=tmp_path)
    before = source.fingerprint()
    (tmp_path / "n01" / "nowhere").write_bytes(b"back")
    assert source.fingerprint() != before
