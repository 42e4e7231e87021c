"""A broken record: one error that names it, or another record that stands in, in every process."""

import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline.loader import MAX_STAND_INS, Loader
from input_pipeline.plans.constant import Plan as Constant
from input_pipeline.records import BrokenRecordError
from input_pipeline.sources import make_source
from input_pipeline.sources.shared import base
from input_pipeline.views import make_views

BATCH, STEPS, SIDE = 4, 8, 8


def make(source, views, rows=None, **changes):
    plan = Constant(image_size=SIDE, global_batch=BATCH, total_steps=STEPS, seed=3)
    rows = None if rows is None else {BATCH: rows}
    options = {"total_steps": STEPS, "seed": 3, "rows": rows, **changes}
    return Loader(source, {SIDE: views}, plan, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of two classes, of which one is cut; it is number 8."""
    path = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for number in range(12):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(file, "JPEG")
        data = file.getvalue()[: -20 if number == 8 else None]
        (path / "ab"[number // 6]).mkdir(exist_ok=True)
        (path / "ab"[number // 6] / f"{number:02d}.jpg").write_bytes(data)
    return path


def of_folder(folder, **changes):
    """A loader whose parts can be sent to worker processes."""
    views = make_views("labels", image_size=SIDE, num_classes=2)
    return make(make_source("folders", path=folder), views, **changes)


class Source(base.Source):
    """Records that are only an id; what `faults` has for one is raised instead, or is it."""

    def __init__(self, size, faults):
        self.size, self.faults = size, faults

    def __len__(self):
        return self.size

    def record(self, i):
        fault = self.faults.get(i, {"id": f"r{i}"})
        if isinstance(fault, Exception):
            raise fault
        return fault


def draw(record, rng):
    """The record's number and what its augmentation drew."""
    return {"row": np.int32(record["id"][1:]), "draw": np.float64(rng.random())}


def same(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_it_stops_the_run_with_one_line(folder, num_workers):
    batches = of_folder(folder, num_workers=num_workers).iterate(0)
    with pytest.raises(BrokenRecordError, match=r"^Record 'b/08.jpg': cannot decode") as caught:
        list(batches)
    batches.close()
    text = str(caught.value)
    assert "truncated" in text and "ask the doctor" in text and "\n" not in text
    # Tracebacks of grain's threads and workers say nothing about the record.
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_stand_ins_are_the_same_for_any_workers_rows_and_start(folder):
    made = of_folder(folder, on_broken="replace")
    expected = [made.batch(step) for step in range(STEPS)]
    with_workers = of_folder(folder, on_broken="replace", num_workers=2).iterate(0)
    same(with_workers, expected)
    threads = of_folder(folder, on_broken="replace", num_threads=3).iterate(2)
    same(threads, expected[2:])
    parts = [of_folder(folder, on_broken="replace", rows=rows) for rows in ([0, 1], [2, 3])]
    batches = [part.iterate(0) for part in parts]
    halves = zip(*batches)
    same([{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in halves], expected)
    # What was replaced comes along, of the own rows.
    assert {one.position for one in with_workers.replaced} == {
        one.position for one in batches[0].replaced + batches[1].replaced
    }
    assert [one.step for one in with_workers.replaced] == [
        one.position // BATCH for one in with_workers.replaced
    ]
    assert all(one.reason.startswith("Record 'b/08.jpg': ") for one in with_workers.replaced)
    # Two and two thirds epochs.
    assert 2 <= len(with_workers.replaced) <= 3


def test_only_the_broken_records_are_replaced():
    size = 10
    good = make(Source(size, {}), draw)
    found = make(Source(size, {7: ValueError("cut")}), draw, on_broken="replace")
    batches = found.iterate(0)
    positions = []
    for step, batch in enumerate(batches):
        expected = good.batch(step)
        broken = expected["row"] == 7
        positions += [step * BATCH + row for row in np.flatnonzero(broken)]
        np.testing.assert_array_equal(batch["row"][~broken], expected["row"][~broken])
        assert 7 not in batch["row"]
        # The augmentation belongs to the position.
        np.testing.assert_array_equal(batch["draw"], expected["draw"])
        assert found.ids(step) == [f"r{row}" for row in batch["row"]]
    assert [one.position for one in batches.replaced] == positions
    assert batches.replaced[0].reason == "Record number 7: cut"
    stand_ins = [found.ids(p // BATCH)[p % BATCH] for p in positions]
    assert len(positions) > 2 and len(set(stand_ins)) > 1


def test_a_weighted_mixture_keeps_to_its_components(folder):
    """The stand-in is drawn as all records are."""
    sources = [{"name": "folders", "path": str(folder), "weight": w} for w in (0.75, 0.25)]
    views = make_views("labels", image_size=SIDE, num_classes=2)
    made = make(make_source("mixture", sources=sources), views, on_broken="replace")
    same(made.iterate(3), [made.batch(step) for step in range(3, STEPS)])


@pytest.mark.parametrize(
    "fault, text",
    [
        (ValueError("two\n lines"), "Record number 2: two lines"),
        (FileNotFoundError(2, "No such file", "a.jpg"), "Record number 2: .*'a.jpg'"),
        ({"id": None}, "Record None: TypeError: .* \\(test_broken_records.py, line [0-9]+\\)"),
        ({"id": "rx"}, "Record 'rx': invalid literal"),
        ({}, "Record number 2: KeyError: 'id' \\(loader.py, line [0-9]+\\)"),
    ],
    ids=["value", "missing file", "type", "literal", "no id"],
)
def test_errors_of_many_types_are_the_records(fault, text):
    source = Source(4, {2: fault})
    with pytest.raises(BrokenRecordError, match=f"^{text}"):
        list(make(source, draw).iterate(0))
    batches = make(source, draw, on_broken="replace").iterate(0)
    assert all((batch["row"] != 2).all() for batch in batches)


@pytest.mark.parametrize("fault", [PermissionError("no"), TimeoutError("slow")])
def test_a_failing_disk_is_not_replaced(fault):
    """What is read would depend on luck."""
    for on_broken in ("stop", "replace"):
        batches = make(Source(4, {2: fault}), draw, on_broken=on_broken).iterate(0)
        with pytest.raises(BrokenRecordError, match=f"Record number 2: {fault}"):
            list(batches)


def test_want_of_memory_is_not_the_records_fault():
    for on_broken in ("stop", "replace"):
        with pytest.raises(MemoryError):
            list(make(Source(4, {2: MemoryError()}), draw, on_broken=on_broken).iterate(0))


def test_data_without_a_good_record_are_an_error():
    for size in (1, 5):
        source = Source(size, {i: ValueError("cut") for i in range(size)})
        text = f"Record number [0-4]: cut. {MAX_STAND_INS} records that should stand in"
        with pytest.raises(BrokenRecordError, match=text):
            make(source, draw, on_broken="replace").batch(0)


def test_on_broken_is_checked():
    with pytest.raises(ValueError, match="on_broken='skip'; choose stop or replace"):
        make(Source(4, {}), draw, on_broken="skip")


def test_malformed_fields_of_every_view_name_the_record():
    """What a view says of a record without what it needs; the mask is one pixel too wide."""
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    whole = {"id": "x/3", "image": file.getvalue(), "captions": {"caption": ["a cat"]}}
    text = {"tokenizer": "clip", "context_length": 8}
    cases = [
        ("clip", text, {"captions": {}}),
        ("clip", text, {"captions": {"caption": [None]}}),
        ("clip", text, {"captions": None}),
        ("cosmos", text, {"captions": {"caption": "a cat"}}),
        ("labels", {"num_classes": 2}, {}),
        ("labels", {"num_classes": 2}, {"label": "cat"}),
        ("labels", {"num_classes": 2, "multi_label": True}, {"labels": [1, "cat"]}),
        ("segmentation", {"num_classes": 2}, {"mask": np.zeros((20, 21), np.uint8)}),
        ("segmentation", {"num_classes": 2}, {"mask": "none"}),
        ("clip", text, {"image": None}),
    ]
    for name, arguments, change in cases:
        source = Source(1, {0: {**whole, **change}})
        made = make(source, make_views(name, image_size=SIDE, **arguments))
        with pytest.raises(BrokenRecordError, match="'x/3'"):
            made.batch(0)
