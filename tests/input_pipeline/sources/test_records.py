"""Records that are read at once are those that are read one by one, broken ones among them."""

import io
import json
import random
import tarfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline import loader, records
from input_pipeline.plans.constant import Plan
from input_pipeline.sources import make_source
from input_pipeline.sources.shared import base
from input_pipeline.tars import index
from input_pipeline.workers import in_processes
from tests.input_pipeline.prepare.prepare_data import image, write_prepared

COUNT = 12
BROKEN = 5
URL = "http://x/{}.jpg"


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same images as prepared shards, tars, files with a JSON, a table and a folder."""
    folder = tmp_path_factory.mktemp("data")
    images = [image(seed) for seed in range(COUNT)]
    captions = [f"animals/{i}. Number {i}" for i in range(COUNT)]
    write_prepared(
        folder / "prepared",
        [
            {"id": f"r{i}", "image": images[i], "captions": {"txt": [captions[i]]}}
            for i in range(COUNT)
        ],
    )
    (folder / "tars").mkdir()
    for number in range(2):
        with tarfile.open(folder / "tars" / f"{number}.tar", "w") as tar:
            for i in range(number, COUNT, 2):
                add(tar, f"{i:03d}.jpg", images[i])
                add(tar, f"{i:03d}.json", json.dumps({"url": URL.format(i)}).encode())
                if i == BROKEN:  # far from its image
                    add(tar, f"{i:03d}.bin", bytes(200_000))
                add(tar, f"{i:03d}.txt", captions[i].encode())
    index.build(f"{folder}/tars/*.tar", folder / "tars" / "index", in_processes(1))
    (folder / "images" / "a").mkdir(parents=True)
    for i in range(COUNT):
        (folder / "images" / "a" / f"{i}.jpg").write_bytes(images[i])
    (folder / "list.json").write_text(
        json.dumps([{"image": f"a/{i}.jpg", "caption": captions[i]} for i in range(COUNT)])
    )
    urls = [f"{captions[i]}\ta/{i}.jpg\t{URL.format(i)}" for i in range(COUNT)]
    (folder / "table.tsv").write_text("\n".join(["text\tfile\turl", *urls, ""]))
    return folder


def sources(folder):
    prepared = {"name": "prepared", "path": folder / "prepared"}
    tars = {"name": "webdataset", "path": folder / "tars" / "index", "captions": ["txt"]}
    table = {"name": "table", "path": folder / "table.tsv", "captions": ["text"]}
    coco = {"name": "coco", "annotations": folder / "list.json", "images": folder / "images"}
    yield prepared
    yield tars
    yield coco
    yield {**table, "image_column": "file", "image_root": folder / "images"}
    yield {**table, "url_column": "url", "downloads": folder / "tars" / "index"}
    yield {"name": "folders", "path": folder / "images"}
    yield {"name": "scenes", "size": COUNT, "image_size": 32}
    yield {**tars, "fraction": 0.6}
    yield {"name": "field_labels", "data": tars, "field": "txt"}
    yield {"name": "mixture", "sources": [prepared, tars, {**coco, "fraction": 0.5}]}


@pytest.mark.parametrize("number", range(10))
def test_they_are_those_of_one_by_one(data, number):
    source = make_source(**list(sources(data))[number])
    chosen = random.Random(number).choices(range(len(source)), k=40)
    assert len(set(chosen)) > 3
    found, expected = source.records(chosen), [source[i] for i in chosen]
    assert list(map(records.encode, found)) == list(map(records.encode, expected))
    assert source.records([]) == []
    without = [{name: one[name] for name in one if name != "image"} for one in expected]
    assert list(map(records.encode, source.fields(chosen))) == list(map(records.encode, without))


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Exception):
            assert (type(one), str(one)) == (type(other), str(other))
        else:
            assert one == other


class Broken(base.Source):
    """Some of its records are errors."""

    def __len__(self):
        return COUNT

    def record(self, index):
        if index % BROKEN == 0:
            raise (ValueError if index else FileNotFoundError)(f"record {index} is gone")
        return {"id": f"b{index}", "captions": {"txt": ["animals/x"]}}


def test_broken_ones_stand_in_their_places(data, tmp_path, monkeypatch):
    (tmp_path / "images" / "a").mkdir(parents=True)
    made = make_source("coco", annotations=data / "list.json", images=data / "images")
    made._folder = str(tmp_path / "images")  # whose files went away
    (tmp_path / "images" / "a" / "3.jpg").write_bytes(image(3))
    found = made.records([3, BROKEN, 3])
    assert found[0] == found[2] == made[3]
    assert isinstance(found[1], FileNotFoundError) and "5.jpg" in str(found[1])

    monkeypatch.setattr("input_pipeline.sources.mixture.make_source", lambda **_: Broken())
    mixed = make_source("mixture", sources=[{"name": "a"}, {"name": "b"}])
    indices = [1, BROKEN, COUNT + 2, COUNT, 0, COUNT + 10, 1]
    same(mixed.records(indices), [records.attempt(mixed.__getitem__, i) for i in indices])
    assert [isinstance(one, Exception) for one in mixed.records(indices)] == [
        False, True, False, True, True, True, False,
    ]  # fmt: skip


class AtOnce(base.Wrapper):
    """Counts what is read at once."""

    calls: list

    def record(self, index):
        raise AssertionError("a single record was read")

    def records(self, indices):
        self.calls.append(len(indices))
        return [records.attempt(self._source.__getitem__, index) for index in indices]

    def identity(self):
        return "counted"


def draw(record, rng):
    return {"row": np.int32(record["id"][1:]), "draw": np.float64(rng.random())}


def make_loader(source, batch, on_broken):
    plan = Plan(image_size=8, global_batch=batch, total_steps=4, seed=1)
    return loader.Loader(source, {8: draw}, plan, total_steps=4, seed=1, on_broken=on_broken)


@pytest.mark.parametrize("batch", [3, 70])
def test_the_loader_reads_a_batch_at_once(batch):
    """Only what stands in for a broken record is read by itself."""
    whole = Broken()
    whole.record = lambda index: {"id": f"b{index}", "captions": {}}
    counted = AtOnce(whole)
    counted.calls = []
    made = make_loader(counted, batch, "stop")
    for step in (0, 3):
        expected = [f"b{i}" for i in make_loader(whole, batch, "stop").batch(step)["row"]]
        counted.calls.clear()
        assert [f"b{i}" for i in made.batch(step)["row"]] == expected
        assert counted.calls == [min(64, batch)] + [batch - 64] * (batch > 64)
        assert made.ids(step) == expected


def test_a_batch_is_that_of_single_records():
    """Stand-ins, reasons and draws are what the records' order says, however they are read."""
    made = make_loader(Broken(), 30, "replace")
    batch, replaced = made._batch(1, slice(None))
    order = made._order()
    for row, position in enumerate(made.positions(1)):
        reasons = []
        for stand_in in loader._stand_ins(1, position, COUNT):
            index = int(order[stand_in])
            if index % BROKEN:
                break
            reasons.append(f"Record {index} is gone")
        assert batch["row"][row] == index
        assert batch["draw"][row] == random.Random(f"1/{position}").random()
        said = [one.reason for one in replaced if one.position == position]
        assert said == [f"Record number {r.split()[1]}: {r.lower()}" for r in reasons[:1]]
    assert replaced


def test_the_first_broken_record_of_a_batch_is_told():
    made = make_loader(Broken(), 30, "stop")
    order = made._order()
    first = next(i for i in (int(order[p]) for p in made.positions(0)) if i % BROKEN == 0)
    with pytest.raises(records.BrokenRecordError, match=f"Record number {first}: record {first} "):
        made.batch(0)


def test_masks_and_conversations(tmp_path):
    """Sources of two files a record: contents and order of files."""
    root = tmp_path / "ade"
    for kind, ending in (("images", "jpg"), ("annotations", "png")):
        (root / kind / "training").mkdir(parents=True)
        for i in range(3):
            file = io.BytesIO()
            Image.fromarray(np.full((4, 4), i, np.uint8)).save(file, "PNG")
            (root / kind / "training" / f"{i}.{ending}").write_bytes(file.getvalue())
    source = make_source("ade20k", path=root, split="training")
    found = source.records([2, 0])
    assert [one["id"] for one in found] == ["2", "0"]
    assert [one["mask"][0, 0] for one in found] == [2, 0]
    kinds = [str(path).rpartition(".")[2] for path in source.files()]
    assert kinds == ["jpg"] * 3 + ["png"] * 3
