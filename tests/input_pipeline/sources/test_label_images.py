"""Images with masks that are images of numbers, in the layouts of the published data sets."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline.sources import make_source
from tests.input_pipeline.sources.toy_task import write_labelled

MASK = np.array([[0, 1, 255], [2, 254, 1]], np.uint8)


def open_source(root, **more):
    return make_source("label_images", path=root, images="images", masks="masks", **more)


@pytest.mark.parametrize(
    "first, expected",
    [
        (0, [[1, 2, 0], [3, 255, 2]]),
        (1, [[0, 1, 0], [2, 254, 1]]),
        (2, [[0, 0, 0], [1, 253, 0]]),
    ],
)
def test_values_are_classes_from_the_first_on(tmp_path, first, expected):
    write_labelled(tmp_path, "a", MASK)
    [record] = open_source(tmp_path, first_class=first)
    assert record["mask"].dtype == np.uint8 and record["mask"].tolist() == expected
    assert record["id"] == "a" and record["captions"] == {}
    assert record["image"] == (tmp_path / "images" / "a.jpg").read_bytes()


def test_colours_of_a_palette_are_their_numbers(tmp_path):
    """As VOC stores them."""
    mask = np.array([[0, 3, 255]], np.uint8)
    write_labelled(tmp_path, "a", mask)
    coloured = Image.fromarray(mask)
    coloured.putpalette(list(range(255, -1, -1)) * 3)
    coloured.save(tmp_path / "masks" / "a.png")
    assert open_source(tmp_path)[0]["mask"].tolist() == [[1, 4, 0]]


def test_names_choose_among_the_images(tmp_path):
    for name in ("a", "b", "c"):
        write_labelled(tmp_path, name, MASK)
    (tmp_path / "masks" / "b.png").unlink()  # as most of VOC's images have none
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "val.txt").write_text("c\na\n\n")
    source = open_source(tmp_path, names="sets/val.txt")
    assert [record["id"] for record in source] == ["c", "a"]
    assert (
        source.fingerprint()
        != open_source(tmp_path, names="sets/val.txt", first_class=1).fingerprint()
    )
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are missing: .*masks/b\.png"):
        open_source(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"File of names .*train\.txt does not exist"):
        open_source(tmp_path, names="sets/train.txt")


def test_folders_in_the_folders(tmp_path):
    """As Cityscapes has one for each city."""
    endings = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"
    for name in ("bonn/2", "aachen/1"):
        write_labelled(tmp_path, name, MASK, endings=endings)
    (tmp_path / "masks" / "bonn" / "2_gtFine_color.png").touch()
    source = open_source(tmp_path, image_ending=endings[0], mask_ending=endings[1])
    assert [record["id"] for record in source] == ["aachen/1", "bonn/2"]


def test_bad_input_is_explained(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"images does not exist\. path should be .*'masks'"
    ):
        open_source(tmp_path)
    write_labelled(tmp_path, "a", MASK)
    with pytest.raises(ValueError, match=r"images has no \.png file"):
        open_source(tmp_path, image_ending=".png")
    with pytest.raises(ValueError, match=r"a\.png is no mask .* up to 20, not uint8 .2, 3."):
        open_source(tmp_path, num_classes=20, first_class=1)[0]
