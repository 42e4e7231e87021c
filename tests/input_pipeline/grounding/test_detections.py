"""Files of boxes: their layouts, what is wrong with them, and finding an image's in many."""

import collections
import functools
import json
import random

import pytest
from rich.console import Console

from input_pipeline.grounding import detections, store
from input_pipeline.grounding.detections import Detection

BOX = {"label": "dog", "box": [0.1, 0.2, 0.5, 0.6], "score": 0.7}
DOG = Detection("dog", (0.1, 0.2, 0.5, 0.6), 0.7)
COCO = {
    "images": [{"id": 7, "width": 200, "height": 100}],
    "categories": [{"id": 3, "name": "dog"}],
}
RESULTS = [{"image_id": 7, "category_id": 3, "bbox": [20, 20, 80, 40], "score": 0.7}]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(path, annotations=None):
    found = {image: boxes for image, boxes, _ in detections.read(path, annotations)}
    for image, boxes in found.items():
        found[image] = [one._replace(box=tuple(round(c, 6) for c in one.box)) for one in boxes]
    return found


PIXELS = {"size": [200, 100], "boxes": [{**BOX, "box": [20, 20, 100, 60]}]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"7": [BOX]}),
        ("a.json", {"7": {"boxes": [BOX]}}),
        ("a.json", {"7": PIXELS}),
        ("a.json", {"7": [{"phrase": "dog", "box": BOX["box"], "score": 0.7}]}),
        ("a.jsonl", json.dumps({"id": 7, "boxes": [BOX]}) + "\n\n"),
        ("a.jsonl", json.dumps({"id": "7", **PIXELS})),
        ("a.json", {**COCO, "annotations": RESULTS}),
        ("results.json", RESULTS),
        ("results.json", [{**RESULTS[0], "label": "dog", "category_id": None}]),
    ],
)
def test_all_layouts_say_the_same(name, content, tmp_path):
    path = write(tmp_path / name, content)
    assert read(path, write(tmp_path / "coco.json", COCO)) == {"7": [DOG]}


def test_what_a_box_may_leave_out_and_say(tmp_path):
    boxes = [
        {"label": "cat", "box": [-0.01, 0, 1.02, 1]},  # ends a little outside
        {"label": "cat", "box": [0, 0.5, 1, 0.5]},  # of no area
        {**BOX, "span": [2, 5], "caption": "a dog"},
    ]
    assert read(write(tmp_path / "a.json", {"x": boxes, "y": []})) == {
        "x": [Detection("cat", (0, 0, 1, 1), 1.0), DOG._replace(span=(2, 5), caption="a dog")],
        "y": [],
    }


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '{"7": [{"label": "dog", "box"', "is no JSON, or cut off"),
        ("a.jsonl", '{"id": 1, "boxes": []}\n{"id": 2, "bo', "line 2: no {id, boxes}, or cut off"),
        ("a.jsonl", '{"id": 1}', "line 1.*'boxes'"),
        ("a.json", "7", "holds no boxes"),
        ("a.json", {"7": 8}, "image '7': its boxes are no list"),
        ("a.json", {"7": [{"box": [0, 0, 1, 1]}]}, "a box without label"),
        ("a.json", {"7": [{"label": "dog"}]}, r"image '7', box 0: box None is not"),
        ("a.json", {"7": [[0, 0, 1, 1]]}, r"image '7', box 0: .* is no {label, box}"),
        ("a.json", {"7": [{**BOX, "box": 4}]}, "image '7', box 0: box 4 is not"),
        ("a.json", {"7": [{**BOX, "score": "x"}]}, "score 'x'"),
        ("a.json", {"7": {"boxes": [BOX], "size": 7}}, "size 7 is not"),
        ("a.json", {"7": [{**BOX, "box": [0, 0, 1]}]}, r"box \[0, 0, 1\] is not"),
        ("a.json", '{"7": [{"label": "dog", "box": [0, 0, NaN, 1]}]}', "box .* is not"),
        ("a.json", {"7": [{**BOX, "box": [20, 20, 100, 60]}]}, "pixels: give .size"),
        ("a.json", {"7": [{**BOX, "box": [0.5, 0.5, 1.2, 0.9]}]}, "outside the picture"),
        ("a.json", {"7": {**PIXELS, "size": [90, 50]}}, "outside the picture"),
        ("a.json", {"7": {**PIXELS, "size": [0, 50]}}, r"size \[0, 50\] is not"),
        ("a.json", {"7": [{**BOX, "box": [0.5, 0.5, 0.2, 0.2]}]}, "is not .x0, y0, x1, y1"),
        ("a.json", {"7": [{**BOX, "span": [5, 2]}]}, "span .* is not"),
        ("a.json", RESULTS, "--annotations"),
        ("a.json", {**COCO, "annotations": [{**RESULTS[0], "image_id": 8}]}, "not listed"),
        ("a.json", {**COCO, "annotations": [{**RESULTS[0], "category_id": 9}]}, "holds no boxes"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_file(name, content, expected, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=expected) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_single_odd_boxes_are_left_out_and_told(tmp_path):
    odd = [[0, 0, 1, 1], {**BOX, "label": " "}, {**BOX, "box": [0.5, 0.5, 1.06, 0.9]}]
    path = write(tmp_path / "a.json", {"7": [BOX, *odd, BOX], "8": [BOX, BOX]})
    assert list(detections.read(path)) == [
        ("7", [DOG, DOG], ["no {label, box}", "no label", "outside the picture"]),
        ("8", [DOG, DOG], []),
    ]
    (found,) = build([path], tmp_path / "out").find(["7"])
    assert found.boxes == [DOG, DOG] and found.broken.total() == 3


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Boxes file .* does not exist"):
        read(tmp_path / "a.json")


def serially(function, tasks, unit, console):
    for label, arguments in tasks:
        assert label.size >= 0
        yield label, function(*arguments)


def build(paths, output, run=serially):
    return store.build(paths, None, output, run, Console(quiet=True))


@pytest.fixture
def files(tmp_path):
    """Three files about many images, some of them in several; and what they say together."""
    rng, expected, paths = random.Random(0), collections.defaultdict(list), []
    for number in range(3):
        lines = []
        for image in rng.sample(range(200), 90):
            boxes = [{**BOX, "label": f"{number}-{k}"} for k in range(rng.randrange(3))]
            expected[f"images/{image}"] += [DOG._replace(label=box["label"]) for box in boxes]
            lines.append(json.dumps({"id": f"images/{image}", "boxes": boxes}))
        paths.append(write(tmp_path / f"{number}.jsonl", "\n".join(lines)))
    return paths, expected


def test_a_store_has_each_images_boxes_in_the_order_of_the_files(files, tmp_path):
    paths, expected = files
    found = build(paths, tmp_path / "out")
    assert found.images == 270 and found.example in expected
    names = [f"images/{image}" for image in range(200)]
    found = [one and one.boxes for one in found.find(names)]
    assert found == [expected.get(name) for name in names]
    store.remove(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_store_goes_on_with_what_is_there(files, tmp_path):
    paths, _ = files
    asked = []

    def counting(function, tasks, unit, console):
        asked.append([label.name for label, _ in tasks])
        return serially(function, tasks, unit, console)

    first = build(paths[:2], tmp_path / "out", counting)
    second = build(paths, tmp_path / "out", counting)
    assert asked == [list(map(str, paths[:2])), [str(paths[2])]]
    assert first.fingerprint != second.fingerprint
    assert build(paths, tmp_path / "out", counting) == second and asked[2] == []


def test_ids_of_one_hash_are_told_apart(files, tmp_path, monkeypatch):
    paths, expected = files
    hashes = store._hash
    monkeypatch.setattr(store, "_hash", lambda image: hashes(image) & 2)
    found = build(paths, tmp_path / "out")
    names = [f"images/{image}" for image in range(200)]
    found = [one and one.boxes for one in found.find(names)]
    assert found == [expected.get(name) for name in names]


def test_broken_files_of_a_store(files, tmp_path, capsys):
    paths, _ = files
    write(paths[0], "{")
    with pytest.raises(ValueError, match=r"0\.jsonl, line 1"):
        build(paths[:1], tmp_path / "one")
    write(paths[1], "[")
    run = functools.partial(store.build, paths, None, tmp_path / "two", serially)
    with pytest.raises(ValueError, match="2 of 3 files of boxes failed"):
        run(Console())
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["FAILED"] * 2
    write(paths[0], "")
    with pytest.raises(ValueError, match="there is no box"):
        build(paths[:1], tmp_path / "three")
