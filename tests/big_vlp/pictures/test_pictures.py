"""Pictures of label maps and of attention: what they show can be read off their pixels."""

import numpy as np
import pytest
from PIL import Image

from big_vlp.pictures import attention, label_maps

GREY = np.full((40, 60, 3), 128, np.uint8)


def colours_of(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(colour): count for colour, count in zip(colours.tolist(), counts)}


def test_each_class_has_a_colour(tmp_path):
    labels = np.kron(np.array([[0, 1, -1]]), np.ones((40, 20), int))
    row = label_maps.Segmented("a.jpg", GREY, labels)
    label_maps.draw(tmp_path / "1.png", [row, row], ["sky", "sea", "boat"])
    large = sorted(count for count in colours_of(tmp_path / "1.png").values() if count > 10_000)
    assert len(large) >= 5  # paper, the image, two classes, and neither


def test_the_legend_says_what_there_is():
    labels = np.zeros((10, 10), int)
    labels[:3] = 1
    labels[9, 9] = -1
    colours = label_maps._colours([label_maps.Segmented("", GREY, labels)], 3)
    found = label_maps._legend(labels, ["sky", "sea", "boat"], colours)
    assert [(name, round(float(share), 2)) for name, share, _ in found] == [
        *(("sky", 0.69), ("sea", 0.3), (label_maps.OTHERS, 0.01))
    ]
    assert len({tuple(colour) for *_, colour in found}) == 3


def test_attention_has_levels_and_a_map(tmp_path):
    assert attention.levels([0.1, 0.2, 0.31, 0.4]).tolist() == [0, 1, 2, 2]
    assert attention.levels([0.5, 0.5]).tolist() == [0, 0] and not attention.levels([]).size
    patches = np.zeros((4, 4), np.float32)
    patches[0, 0] = 1
    words = [(word, number) for number, word in enumerate(("a boat at sea " * 6).split())]
    row = attention.Attended("a.jpg", GREY, patches, words)
    attention.draw(tmp_path / "1.png", [row])
    found = colours_of(tmp_path / "1.png")
    for level in attention._LEVELS:
        assert found[tuple(int(level[i : i + 2], 16) for i in (1, 3, 5))] > 1000
    attention.draw(tmp_path / "2.png", [row._replace(words=[])])


@pytest.mark.parametrize("count", [1, 3])
def test_a_row_for_each_image(tmp_path, count):
    row = label_maps.Segmented("a.jpg", GREY, np.zeros((40, 60), int))
    label_maps.draw(tmp_path / "1.png", [row] * count, ["sky"])
    assert 300 * count < Image.open(tmp_path / "1.png").height < 400 * count
