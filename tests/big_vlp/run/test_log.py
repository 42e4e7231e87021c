"""The log survives kills, resumes and NaN; the live line, the table and the curves are readable."""

import io
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from big_vlp.run import tables
from big_vlp.run.curves import CURVES_FILE, _panels, plot_curves
from big_vlp.run.log import LOG_FILE, LogError, MetricLog, read_log
from big_vlp.run.progress import LiveLine
from big_vlp.run.tables import parameter_table
from input_pipeline.checks.paths import PathError
from tests.input_pipeline.checks.test_paths import ODD_NAMES


def fill(workdir, steps, start_step=0, value=1.0):
    log = MetricLog(workdir, start_step)
    for step in steps:
        log.write(step, "train", {"loss": value * step})
    log.close()


def test_lines_come_back_as_written(tmp_path):
    log = MetricLog(tmp_path / "new" / "run")
    log.write(0, "coco", {"R@1": 0.25})
    log.write(np.int64(3), "train", {"loss": jnp.float32(1.5), "lr": np.float64(1e-3)})
    log.close()
    first, second = read_log(tmp_path / "new" / "run")
    assert (first["step"], first["split"], first["values"]) == (0, "coco", {"R@1": 0.25})
    assert (second["step"], second["split"]) == (3, "train")
    assert second["values"] == {"loss": 1.5, "lr": 1e-3}
    assert abs(second["time"] - time.time()) < 60


def test_values_that_are_not_finite_survive_standard_json(tmp_path):
    log = MetricLog(tmp_path)
    log.write(1, "train", {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0})
    log.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / LOG_FILE).read_text(), parse_constant=refuse)
    values = read_log(tmp_path)[0]["values"]
    assert math.isnan(values["a"]) and values["b"] == math.inf
    assert values["c"] == -math.inf and values["d"] == 0


@pytest.mark.parametrize("resume_at", [0, 4, 7, 10])
def test_no_step_appears_twice_after_a_resume(tmp_path, resume_at):
    fill(tmp_path, range(10))
    fill(tmp_path, range(resume_at, 12), start_step=resume_at, value=2.0)
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == list(range(12))
    expected = [step * (1 if step < resume_at else 2) for step in range(12)]
    assert [line["values"]["loss"] for line in lines] == expected


def test_a_line_cut_short_is_dropped_and_a_broken_one_reported(tmp_path):
    fill(tmp_path, range(3))
    path = tmp_path / LOG_FILE
    with path.open("a") as file:
        file.write('{"step": 3, "time": 17')
    assert len(read_log(tmp_path)) == 3
    fill(tmp_path, [3], start_step=3)
    assert [line["step"] for line in read_log(tmp_path)] == [0, 1, 2, 3]
    path.write_text("{oops}\n" + path.read_text())
    for broken in (lambda: read_log(tmp_path), lambda: MetricLog(tmp_path, 2)):
        with pytest.raises(ValueError, match=r"line 1"):
            broken()


def test_a_failed_rewrite_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    fill(tmp_path, range(5))
    before = (tmp_path / LOG_FILE).read_text()

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        MetricLog(tmp_path, 2)
    assert (tmp_path / LOG_FILE).read_text() == before


def test_a_killed_process_loses_no_line_that_write_returned_from(tmp_path):
    code = (
        "import sys; from big_vlp.run.log import MetricLog\n"
        "log = MetricLog(sys.argv[1])\n"
        "for step in range(10**9):\n"
        "    log.write(step, 'train', {'loss': 1.0}); print(step, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    for line in process.stdout:
        if int(line) >= 200:
            break
    process.send_signal(signal.SIGKILL)
    last = int([line, *process.stdout.read().split()][-1])
    process.wait()
    steps = [line["step"] for line in read_log(tmp_path)]
    assert steps == list(range(len(steps))) and len(steps) > last


def test_tensorboard_gets_the_finite_values_and_the_resume_step(tmp_path):
    fill(tmp_path, range(4))
    log = MetricLog(tmp_path, 2)
    log.write(2, "train", {"loss": 7.0, "bad": math.nan})
    log.close()
    scalars, restarts = tensorboard(tmp_path)
    assert ("train/loss", 2, 7.0) in scalars and ("train/loss", 1, 1.0) in scalars
    assert not any(tag == "train/bad" for tag, _, _ in scalars)
    assert 2 in restarts


def tensorboard(workdir):
    """(tag, step, value) of all scalars, file by file, and the steps at which runs went on."""
    scalars, restarts = [], []
    for file in sorted((workdir / "tensorboard").iterdir()):
        for event in tensorboard_events(file.read_bytes()):
            if event.HasField("session_log"):
                restarts.append(event.step)
            for value in event.summary.value:
                scalars.append((value.tag, event.step, value.simple_value))
    return scalars, restarts


def tensorboard_events(data):
    """TFRecords: u64 length, u32 crc, payload, u32 crc."""
    while data:
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event()
        event.ParseFromString(data[12 : 12 + length])
        yield event
        data = data[16 + length :]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    fill(tmp_path / "run", range(3))
    assert plot_curves(tmp_path / "run") == tmp_path / "run" / CURVES_FILE
    assert list(tmp_path.iterdir()) == []
    line, stream = live(total=10, tty=True)
    line.update(1, 1.0, VALUES)
    line.message("hello")
    line.close()
    assert stream.getvalue() == ""


def test_another_url_is_refused(tmp_path, monkeypatch):
    """By whatever opens a workdir; that training does so first, test_train_ends.py shows."""
    monkeypatch.chdir(tmp_path)
    for url in ("az://bucket/run", pathlib.Path("gs://bucket/run")):
        with pytest.raises(PathError, match="mount"):
            MetricLog(url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_workdir_of_any_name(name, tmp_path):
    fill(tmp_path / name, range(3))
    assert [line["step"] for line in read_log(tmp_path / name)] == [0, 1, 2]
    assert plot_curves(tmp_path / name) == tmp_path / name / CURVES_FILE
    found = {path.name for path in (tmp_path / name).iterdir()}
    assert found == {LOG_FILE, CURVES_FILE, "tensorboard"}
    assert os.listdir(tmp_path) == [name]


def test_evaluations_of_the_step_gone_on_from_can_stay(tmp_path):
    log = MetricLog(tmp_path)
    for step, split in [(1, "train"), (2, "coco"), (2, "old"), (2, "train"), (3, "coco")]:
        log.write(step, split, {"loss": 1.0})
    log.close()
    log = MetricLog(tmp_path, 2, keep={"coco"})
    log.close()
    assert [(x["step"], x["split"]) for x in read_log(tmp_path)] == [(1, "train"), (2, "coco")]
    assert tensorboard(tmp_path)[0].count(("coco/loss", 2, 1.0)) == 2  # one is after the restart


def test_a_log_that_cannot_be_written_is_one_error(tmp_path, monkeypatch):
    log = MetricLog(tmp_path)
    (tmp_path / LOG_FILE).unlink()
    (tmp_path / LOG_FILE).symlink_to("/dev/full")
    with pytest.raises(LogError, match=r"metrics\.jsonl cannot be written .*No space"):
        log.write(0, "train", {"loss": 1.0})


class Terminal(io.StringIO):
    tty = True

    def isatty(self):
        return self.tty


def live(total, tty, times=()):
    stream = Terminal()
    stream.tty = tty
    times = iter(times)
    return LiveLine(total, stream, clock=lambda: next(times, 0.0)), stream


VALUES = {"examples_per_s": 1.0, "input_wait": 0.0, "goodput": 1.0}


def test_live_line_says_how_far_how_fast_and_how_long(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    line, stream = live(1000, tty=False, times=[100.0, 110.0])
    line.update(10, 2.34567, {**VALUES, "examples_per_s": 123456.7, "input_wait": 0.034})
    line.update(30, 2.0, {**VALUES, "input_wait": 0.5, "goodput": 0.87, "mfu": 0.4567})
    first, second = stream.getvalue().splitlines()
    assert "10/1000" in first and "2.3457" in first and "123,457 examples/s" in first
    assert "input wait 3% |" in first and "goodput 100%" in first and "MFU" not in first
    assert "? left" in first
    assert "input wait 50% (input-bound) |" in second and "goodput 87%" in second
    assert "MFU 45.7%" in second and "0:08:05 left" in second  # 970 steps of half a second
    assert "\r" not in stream.getvalue()


def test_on_a_terminal_the_line_refreshes_and_messages_stay(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    line, stream = live(10, tty=True)
    line.update(1, 1.0, VALUES)
    line.update(2, 1.0, VALUES)
    line.message("coco R@1 0.5")
    line.update(3, 1.0, VALUES)
    line.close()
    line.close()
    # What a terminal shows in the end: after "\r\x1b[K" a line starts anew.
    shown = [re.split(r"\r\x1b\[K", row)[-1] for row in stream.getvalue().split("\n")]
    assert shown[0] == "coco R@1 0.5"
    assert shown[1].startswith("step  3/10") and len(shown[1]) < 40
    assert shown[2:] == [""]


def tree():
    shape = jax.ShapeDtypeStruct
    return {
        "image": {"proj": shape((64, 32), jnp.float32), "cls": shape((64,), jnp.bfloat16)},
        "logit_scale": shape((), jnp.float32),
    }


GROUPS = {"image/proj": "lr x1, wd x1", "image/cls": "frozen", "logit_scale": "lr x1, wd x0"}


def test_table_has_every_parameter_and_the_totals():
    table = parameter_table(tree(), GROUPS)
    rows = [re.split(r"\s{2,}", row.strip()) for row in table.splitlines()]
    assert ["image/proj", "64x32", "float32", "2,048", "lr x1, wd x1", "whole", "8,192"] in rows
    assert ["image/cls", "64", "bfloat16", "64", "frozen", "whole", "128"] in rows
    assert ["logit_scale", "scalar", "float32", "1", "lr x1, wd x0", "whole", "4"] in rows
    assert "image: 2 arrays, 2,112 parameters" in table
    assert "all: 3 arrays, 2,113 parameters, 8,324 bytes per device" in table
    assert "frozen: 1 arrays, 64 parameters (3.0%)" in table


@pytest.mark.parametrize("wrong", [{"image/cls": None}, {"image/typo": "frozen"}])
def test_table_wants_one_group_for_every_parameter(wrong):
    groups = {k: v for k, v in (GROUPS | wrong).items() if v is not None}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        parameter_table(tree(), groups)


def test_curves_show_losses_and_evaluations(tmp_path):
    log = MetricLog(tmp_path)
    for step in range(300):
        if step % 100 == 0:
            names = ("image_to_text_R@1", "image_to_text_R@5", "image_to_text_R@1_chance")
            log.write(step, "coco", dict.fromkeys(names, 0.1) | {"image_to_text_mean_rank": 9.0})
            log.write(step, "pets", {"top1_accuracy": 0.5, "top1_accuracy_chance": 0.1})
            words = {"macro_ap": 0.3, "macro_ap_baseline": 0.1, "num_classes_present": 37}
            log.write(step, "words", words)
        loss = math.nan if step in (7, 8) else 300 - step
        log.write(step, "train", {"loss": loss, "clip_loss": 1.0, "lr": 1e-3})
    log.close()
    panels = _panels(read_log(tmp_path))
    assert {title: sorted(curves) for title, curves in panels.items()} == {
        "train: losses": ["clip_loss", "loss"],
        "coco: image_to_text_R@k": sorted(names),
        "coco: rank": ["image_to_text_mean_rank"],
        "pets: accuracy": ["top1_accuracy", "top1_accuracy_chance"],
        "words: accuracy": ["macro_ap", "macro_ap_baseline"],
    }
    steps, values = panels["train: losses"]["loss"]
    np.testing.assert_array_equal(steps, np.arange(300))
    assert np.isnan(values[[7, 8]]).all() and values[-1] == 1
    path = plot_curves(tmp_path)
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape[0] > 500 and image.shape[1] > 1500
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20  # drawn, not blank
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        CURVES_FILE, LOG_FILE, "tensorboard",
    ]  # fmt: skip


def test_what_chance_or_frequencies_give_stands_beside_the_metric():
    values = {"ap": 0.5, "top1": 0.25, "top1_chance": 0.1, "ap_baseline": 0.125}
    lines = tables.metric_table(values).splitlines()
    assert [line.split() for line in lines] == [
        ["ap", "0.5000", "(baseline", "0.1250)"],
        ["top1", "0.2500", "(chance", "0.1000)"],
    ]


def test_curves_need_a_log(tmp_path):
    with pytest.raises(FileNotFoundError, match="workdir of a run"):
        plot_curves(tmp_path)
    MetricLog(tmp_path).close()
    with pytest.raises(ValueError, match="no losses"):
        plot_curves(tmp_path)
