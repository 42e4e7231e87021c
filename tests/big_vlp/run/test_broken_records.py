"""Broken records in a run: counted over its steps, named once, and too many of them end it."""

import collections
import importlib.util
import io
import json
import re
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from big_vlp import train as program
from big_vlp.run.broken_records import FILE, BrokenRecords
from big_vlp.run.log import read_log
from input_pipeline.loader import Replaced
from input_pipeline.records import BrokenRecordError

BATCH = 50
CONFIG = Path(__file__).parents[2] / "tiny_config.py"


def loader(**changes):
    options = {"on_broken": "replace", "max_broken_share": 0.1, **changes}
    return types.SimpleNamespace(plan=lambda step: (8, BATCH, step * BATCH), **options)


def batches(*positions):
    replaced = [Replaced(p // BATCH, p, f"Record 'r{p}': cut") for p in positions]
    return types.SimpleNamespace(replaced=collections.deque(replaced))


def records_of(workdir, first_step=0, said=None, **changes):
    said = [] if said is None else said
    return BrokenRecords(workdir, loader(**changes), first_step, said.append)


def lines(workdir):
    return [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]


def test_counts_are_those_of_the_steps_that_were_made(tmp_path):
    said = []
    records, made = records_of(tmp_path, said=said), batches(3, 10, 51)
    assert records.report(0, made) == {"broken_records": 2}
    (text,) = said
    assert "2 more broken records" in text and "Record 'r3': cut" in text and FILE in text
    # Batches are fetched ahead: that of step 1 is not yet trained on.
    assert [one.position for one in made.replaced] == [51]
    assert records.report(1, made) == {"broken_records": 1}
    assert records.report(2, made) == {"broken_records": 0} and len(said) == 2
    assert [(one["step"], one["position"]) for one in lines(tmp_path)] == [(0, 3), (0, 10), (1, 51)]


def test_each_record_is_named_once_also_after_a_kill(tmp_path):
    records_of(tmp_path).report(0, batches(3, 10))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 1, "posi')
    said = []
    again = records_of(tmp_path, said=said)
    assert again.report(0, batches(3, 4)) == {"broken_records": 2}
    assert again.report(0, batches(3, 4)) == {"broken_records": 2}
    (text,) = said
    assert "1 more broken records" in text
    assert [one["position"] for one in lines(tmp_path)] == [3, 10, 4]


def test_rows_that_several_processes_hold_count_once(tmp_path, monkeypatch):
    """As along a tensor axis; and what other processes have met counts as well."""
    other = [vars(one) for one in batches(5, 10).replaced]
    monkeypatch.setattr("big_vlp.parallel.cluster.gather", lambda mine: [mine, other])
    assert records_of(tmp_path).report(0, batches(3, 10)) == {"broken_records": 3}
    assert [one["position"] for one in lines(tmp_path)] == [3, 5, 10]


def test_a_share_above_the_limit_ends_the_run(tmp_path):
    """Few examples are no share: the first ten may all be broken."""
    records = records_of(tmp_path, 4)
    assert records.report(4, batches(*range(200, 210))) == {"broken_records": 10}
    with pytest.raises(BrokenRecordError, match=r"11 of 100 examples .*max_broken_share=0.1") as e:
        records.report(5, batches(250))
    assert "Record 'r250': cut" in str(e.value) and str(tmp_path / FILE) in str(e.value)
    assert len(lines(tmp_path)) == 11
    none = records_of(tmp_path, max_broken_share=0.0)
    assert none.report(0, batches()) == {"broken_records": 0}
    with pytest.raises(BrokenRecordError):
        none.report(1, batches(60))
    every = records_of(tmp_path, max_broken_share=1.0)
    assert every.report(0, batches(*range(50))) == {"broken_records": 50}


def test_a_run_that_stops_at_broken_records_says_nothing_of_them(tmp_path):
    stop = records_of(tmp_path, on_broken="stop")
    assert stop.report(0, batches()) == {}
    assert not list(tmp_path.iterdir())


@pytest.fixture
def config(tmp_path):
    """A short run over twelve images, of which number 3 is cut."""
    spec = importlib.util.spec_from_file_location("tiny_config", CONFIG)
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    config = tiny.get_config("method=clip")
    rng = np.random.default_rng(0)
    captions = {"images": [], "annotations": []}
    for number in range(12):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(file, "JPEG")
        (tmp_path / f"{number}.jpg").write_bytes(file.getvalue()[: -20 if number == 3 else None])
        captions["images"].append({"id": number, "file_name": f"{number}.jpg"})
        captions["annotations"].append({"image_id": number, "caption": "a cat"})
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    path = str(tmp_path / "captions.json")
    config.data = dict(name="coco", annotations=path, images=str(tmp_path))
    config.evals, config.total_steps = dict(), 6
    return config


@pytest.mark.slow
def test_a_run_goes_on_without_them_and_counts_them(config, tmp_path):
    config.loader.on_broken = "replace"
    program.train(config, tmp_path / "run")
    counts = [
        line["values"]["broken_records"]
        for line in read_log(tmp_path / "run")
        if line["split"] == "train"
    ]
    assert len(counts) == 6 and sum(counts) == 4  # one in each of four epochs
    (found,) = lines(tmp_path / "run")
    assert found["reason"].startswith("Record '3': cannot decode")
    assert counts[found["step"]] and not any(counts[: found["step"]])


@pytest.mark.slow
def test_the_command_stops_with_one_line(config, tmp_path, monkeypatch, capsys):
    flags = types.SimpleNamespace(
        FLAGS=types.SimpleNamespace(config=config, workdir=tmp_path / "r")
    )
    monkeypatch.setattr(program, "flags", flags)
    monkeypatch.setattr(program.cluster, "connect_processes", lambda: None)
    with pytest.raises(SystemExit) as caught:
        program.main(None)
    assert caught.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: Record '3': cannot decode .*ask the doctor.*", line)
