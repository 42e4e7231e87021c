"""Images with masks of classes, in the layout of ADE20K's scene parsing benchmark."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from input_pipeline.prepare import command
from input_pipeline.sources import make_source


def encode(pixels, format):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def benchmark(path, names=("ADE_val_2", "ADE_val_1"), split="validation"):
    rng = np.random.default_rng(0)
    for kind in ("images", "annotations"):
        (path / kind / split).mkdir(parents=True, exist_ok=True)
    masks = {}
    for name in sorted(names):
        height, width = rng.integers(5, 9, 2)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        masks[name] = rng.integers(0, 151, (height, width)).astype(np.uint8)
        (path / "images" / split / f"{name}.jpg").write_bytes(encode(image, "JPEG"))
        (path / "annotations" / split / f"{name}.png").write_bytes(encode(masks[name], "PNG"))
    return masks


def open_ade20k(path, split="validation"):
    return make_source("ade20k", path=path, split=split)


def test_masks_are_those_of_the_files(tmp_path):
    masks = benchmark(tmp_path)
    source = open_ade20k(tmp_path)
    assert [source[i]["id"] for i in range(len(source))] == ["ADE_val_1", "ADE_val_2"]
    for i, mask in enumerate(masks.values()):
        record = source[i]
        assert record["mask"].dtype == np.uint8
        np.testing.assert_array_equal(record["mask"], mask)
        file = tmp_path / "images" / "validation" / f"{record['id']}.jpg"
        assert record["image"] == file.read_bytes() and record["captions"] == {}
    with pytest.raises(IndexError, match="Index 2 is out of range: there are 2 records"):
        source[2]


def test_class_names_are_the_first_ones_in_the_datas_own_list(tmp_path):
    benchmark(tmp_path)
    assert open_ade20k(tmp_path).class_names == [str(i) for i in range(1, 151)]
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    lines += [f"{i} \t0.1\t9\t9\t1\tname {i} , other\r" for i in range(1, 151)]
    lines[2] = "2\t0.1\t9\t9\t1\tbuilding;edifice"
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines))
    names = open_ade20k(tmp_path).class_names
    assert names[:3] == ["name 1", "building", "name 3"] and len(names) == 150
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"no list of 150 classes: no line begins with .*150"):
        open_ade20k(tmp_path)


def test_missing_files(tmp_path):
    benchmark(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"images/val does not exist\. path should be"):
        open_ade20k(tmp_path, "val")
    (tmp_path / "annotations" / "validation" / "ADE_val_1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are missing: .*ADE_val_1.png"):
        open_ade20k(tmp_path)
    (tmp_path / "images" / "training").mkdir()
    with pytest.raises(ValueError, match=r"images/training has no \.jpg"):
        open_ade20k(tmp_path, "training")


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.full((4, 4), 151, np.uint8), "uint8 .4, 4. up to 151"),
        (np.zeros((4, 4, 3), np.uint8), "uint8 .4, 4, 3. up to 0"),
        (np.zeros((4, 4), np.uint16), "uint16|int32"),
    ],
)
def test_other_masks(tmp_path, mask, message):
    benchmark(tmp_path)
    file = tmp_path / "annotations" / "validation" / "ADE_val_1.png"
    file.write_bytes(encode(mask, "PNG"))
    with pytest.raises(ValueError, match=f"ADE_val_1.png is no mask .* not ({message})"):
        open_ade20k(tmp_path)[0]
    file.write_bytes(b"?")
    with pytest.raises(ValueError, match=r"ADE_val_1\.png cannot be read"):
        open_ade20k(tmp_path)[0]


def test_pickling_and_fingerprint(tmp_path):
    benchmark(tmp_path)
    benchmark(tmp_path, ["ADE_train_1"], "training")
    source = open_ade20k(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]["mask"], source[1]["mask"])
    assert copy.fingerprint() == source.fingerprint()
    assert open_ade20k(tmp_path, "training").fingerprint() != source.fingerprint()


def test_prepared_masks_are_arrays(tmp_path):
    masks = benchmark(tmp_path / "ade")
    output = tmp_path / "prepared"
    arguments = ["source", "--input", f"ade20k:path={tmp_path / 'ade'},split=validation"]
    assert command.main([*arguments, "--output", str(output), "--workers", "1"]) == 0
    prepared = make_source("prepared", path=output)
    assert len(prepared.class_names) == 150
    for i, mask in enumerate(masks.values()):
        np.testing.assert_array_equal(prepared[i]["mask"], mask)
        assert prepared[i]["mask"].dtype == np.uint8
