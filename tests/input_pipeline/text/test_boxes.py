"""Boxes as text, exactly both ways; what can be read and what cannot; overlap."""

import numpy as np
import pytest

from input_pipeline.text.boxes import find_boxes, format_boxes, iou, parse_boxes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_thousandth_survives_both_ways(dtype):
    for first in range(0, 1000, 4):
        thousandths = np.arange(first, first + 4)
        text = format_boxes((thousandths / 1000).astype(dtype))
        assert text == "[[" + ",".join(f"{k:03d}" for k in thousandths) + "]]"
        (box,) = parse_boxes(text)
        np.testing.assert_array_equal(np.rint(box * 1000), thousandths)
        assert format_boxes(box) == text


def test_coordinates_are_rounded_down_and_clipped():
    assert format_boxes([0.0, 0.0019, 0.9999, 1.0]) == "[[000,001,999,999]]"
    assert format_boxes([-0.01, 0.99899, 1.2, np.inf]) == "[[000,998,999,999]]"
    rng = np.random.default_rng(0)
    for box in rng.random((300, 4)):
        (read,) = parse_boxes(format_boxes(box))
        assert (read <= np.minimum(box, 0.999)).all() and (box - read < 0.001 + 1e-9).all()


def test_several_boxes_share_the_brackets():
    boxes = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
    text = format_boxes(boxes)
    assert text == "[[100,200,300,400;500,600,700,800]]"
    np.testing.assert_array_equal(parse_boxes(text), boxes)


def test_boxes_are_found_where_they_stand():
    text = "A cat [[302,198,694,857]] and birds [[001,002,003,004;005,006,007,008]]."
    found = find_boxes(text)
    assert [text[f.start : f.end] for f in found] == [
        "[[302,198,694,857]]",
        "[[001,002,003,004;005,006,007,008]]",
    ]
    assert [f.boxes.shape for f in found] == [(1, 4), (2, 4)]
    assert parse_boxes(text).shape == (3, 4)
    assert find_boxes("A cat.") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "on the left",
        "[[]]",
        "[100,200,300,400]",
        "[[100,200,300]]",
        "[[100,200,300,400,500]]",
        "[[100, 200, 300, 400]]",
        "[[x0,y0,x1,y1]]",
        "[[0.1,0.2,0.3,0.4]]",
        "[[100,200,300,1000]]",
        "[[-10,200,300,400]]",
        "[[100,200,300,4²]]",
        "[[100,200,300,٣٣٣]]",
        "[[100,200,300,]]",
        "[[100,200,300,400",
    ],
)
def test_what_is_no_box(text):
    assert find_boxes(text) == []
    with pytest.raises(ValueError, match=r"There is no box in .*\[\[x0,y0,x1,y1\]\]"):
        parse_boxes(text)


def test_good_groups_beside_bad_ones_are_kept():
    (box,) = parse_boxes("[[oops;1,20,300,999]] [[x]]")
    np.testing.assert_allclose(box, [0.001, 0.02, 0.3, 0.999])


@pytest.mark.parametrize(
    "boxes", [[], [[]], [[0.1, 0.2, 0.3]], np.zeros((1, 1, 4)), [[0, 0, 1, np.nan]]]
)
def test_what_cannot_be_written(boxes):
    with pytest.raises(ValueError, match=r"Boxes are numbers \[K, 4\]"):
        format_boxes(boxes)


def test_iou():
    whole, left, right = [0, 0, 1, 1], [0, 0, 0.5, 1], [0.5, 0, 1, 1]
    assert iou(whole, whole) == 1
    assert iou(whole, left) == 0.5 and iou(left, right) == 0
    assert iou([0, 0, 0.2, 0.2], [0.1, 0.1, 0.3, 0.3]) == pytest.approx(1 / 7)
    assert iou(left, [0.6, 0.6, 0.7, 0.7]) == 0  # apart along x only
    for empty in ([0.2, 0.2, 0.2, 0.9], [0.9, 0.9, 0.1, 0.1]):
        assert iou(empty, whole) == iou(empty, empty) == 0
    pairs = iou(np.array([whole, left])[:, None], np.array([whole, left, right])[None])
    np.testing.assert_array_equal(pairs, [[1, 0.5, 0.5], [0.5, 1, 0]])


def test_iou_equals_counted_pixels():
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:40, :40]
    for _ in range(50):
        a, b = rng.integers(0, 40, (2, 4))
        inside = [(x >= c[0]) & (x < c[2]) & (y >= c[1]) & (y < c[3]) for c in (a, b)]
        union = (inside[0] | inside[1]).sum()
        empty = not (inside[0].any() and inside[1].any())
        expected = 0 if empty else (inside[0] & inside[1]).sum() / union
        assert iou(a / 40, b / 40) == pytest.approx(expected)
