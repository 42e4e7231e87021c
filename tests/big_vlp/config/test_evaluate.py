"""Evaluator jobs: following a run that deletes, and what they write. Whole runs: test_train."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from big_vlp import evaluate
from big_vlp.experiment import Experiment, ScheduledEvaluator
from big_vlp.storage import arrays
from big_vlp.storage.checkpoint import CheckpointError, Checkpoints
from evaluators.datasets import report, tasks
from tests.big_vlp.config.toy_config import make_config

ROOT = Path(__file__).parents[3]
MODEL = {"w": jnp.ones((50, 40))}
SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), MODEL)


class Follower:
    """Follows a run in `workdir`; `events` happen just before a step is read."""

    def __init__(self, workdir, monkeypatch):
        self.workdir, self.results = workdir, workdir / "evaluate"
        self.results.mkdir()
        self.trainer = Checkpoints(workdir, keep_latest=100)
        self.checkpoints = Checkpoints(workdir, read_only=True)
        self.events, self.evaluated = {}, []
        monkeypatch.setattr("time.sleep", lambda _: self.arrive())
        self.arrivals = []

    def save(self, *steps):
        for i in steps:
            self.trainer.save(i, {"model": MODEL}, {})
        self.trainer.wait()

    def delete(self, *steps):
        for i in steps:
            shutil.rmtree(self.path(i))

    def path(self, i):
        return self.workdir / "checkpoints" / str(i)

    def damage(self, i):
        (self.path(i) / "model" / "manifest.ocdbt").write_bytes(b"")

    def arrive(self):
        """What happens while the follower sleeps."""
        self.arrivals.pop(0)()

    def follow(self, total_steps):
        def run(i):
            self.events.pop(i, lambda: None)()
            self.checkpoints.restore(i, {"model": SHAPES})
            self.evaluated.append(i)
            (self.results / f"{i}.json").write_text("{}")

        evaluate._follow(self.checkpoints, total_steps, self.results, run)


@pytest.fixture
def follower(tmp_path, monkeypatch):
    return Follower(tmp_path, monkeypatch)


def test_oldest_first_and_no_step_twice(follower):
    follower.save(2, 4, 6, 8)
    for name in ("4.json", "best.json", "2 copy.json"):
        (follower.results / name).write_text("{}")
    follower.follow(6)  # 8 is of a run that was longer
    assert follower.evaluated == [2, 6]


def test_what_goes_before_it_is_read_is_passed_over_and_the_newest_is_next(follower, capsys):
    follower.save(1, 2, 3, 4)
    follower.events[1] = lambda: (follower.delete(1), follower.save(5, 6))
    follower.follow(6)
    assert follower.evaluated == [6, 2, 3, 4, 5]
    said = capsys.readouterr().out
    assert "Passed over step 1: " in said
    assert "has no checkpoint of step 1; it has [2, 3, 4, 5, 6]." in said


@pytest.mark.parametrize("part", ["metadata", "read"])
def test_what_goes_while_it_is_read_is_passed_over(follower, monkeypatch, capsys, part):
    follower.save(1, 2, 3)
    read = getattr(arrays, part)

    def delete_first(path, *args):
        if path.parent.name == "1":
            follower.delete(1)
        return read(path, *args)

    monkeypatch.setattr(arrays, part, delete_first)
    follower.follow(3)
    assert follower.evaluated == [3, 2]
    assert "Passed over step 1: " in capsys.readouterr().out


def test_a_damaged_one_is_passed_over_until_it_is_written_again(follower, capsys):
    follower.save(1, 2)
    follower.damage(1)
    follower.arrivals = [
        lambda: follower.delete(1),
        lambda: (follower.trainer._manager.reload(), follower.save(1, 3)),
    ]
    follower.follow(3)
    assert follower.evaluated == [2, 1, 3]
    said = capsys.readouterr().out
    assert "Passed over step 1: checkpoint 1 " in said
    assert said.count("Passed over") == 1
    assert said.count(f"Waiting for checkpoints in {follower.workdir}/checkpoints, up to 3.") == 1


def test_a_damaged_last_one_is_an_error(follower):
    follower.save(1, 2)
    follower.damage(2)
    with pytest.raises(CheckpointError, match=r"checkpoint 2 .* is damaged \(model: .*delete it"):
        follower.follow(2)
    assert follower.evaluated == [1]


def test_a_last_one_that_goes_is_waited_for(follower):
    follower.save(1, 2)
    follower.events[2] = lambda: follower.delete(2)
    follower.arrivals = [lambda: (follower.trainer._manager.reload(), follower.save(2))]
    follower.follow(2)
    assert follower.evaluated == [1, 2]


NOTHING_BESIDE = {"chance": None, "paper": None}


class Measured:
    def run(self, model):
        return {"nan": math.nan, "inf": -math.inf, "one": jnp.float32(1)}.items()


@pytest.fixture
def run_of_two(tmp_path):
    """A config whose run saved its first and last state."""
    config = make_config("clip")
    experiment = Experiment.from_config(config)
    method = experiment.make_method()
    shapes = method.shapes[0]
    model = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    checkpoints = Checkpoints(tmp_path, keep_latest=2)
    for i in (0, config.total_steps):
        checkpoints.save(i, {"model": model}, {})
    checkpoints.close()
    return config, tmp_path


def test_results_are_json_and_frozen_parameters_are_read_once(run_of_two, monkeypatch):
    config, workdir = run_of_two
    made = {"fake": ScheduledEvaluator(Measured(), every_steps=1)}
    monkeypatch.setattr(Experiment, "make_evaluators", lambda *_: made)
    reads = []
    monkeypatch.setattr(evaluate, "restore_frozen", lambda *args: reads.append(args) or {})
    evaluate.evaluate(config, workdir, follow=True)
    assert len(reads) == 1
    assert sorted(p.name for p in (workdir / "evaluate").iterdir()) == [
        *("0.json", "0_table.json", "0_table.md", "6.json", "6_table.json", "6_table.md"),
    ]

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (workdir / "evaluate" / "6.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "step": 6,
        "fake": {"nan": "NaN", "inf": "-Infinity", "one": 1.0},
    }
    table = json.loads((workdir / "evaluate" / "6_table.json").read_text(), parse_constant=refuse)
    assert table == {
        "rows": [{"name": "fake", "metric": "nan", "values": {"model": "NaN"}} | NOTHING_BESIDE]
    }
    assert (workdir / "evaluate" / "6_table.md").read_text().splitlines() == [
        "| task | metric | model | chance | paper |",
        "| --- | --- | ---: | ---: | ---: |",
        "| fake | nan | nan | - | - |",
    ]

    shutil.rmtree(workdir / "evaluate")
    (workdir / "evaluate").touch()
    with pytest.raises(CheckpointError, match="result cannot be written"):
        evaluate.evaluate(config, workdir)


@pytest.mark.parametrize("given", [None, "cosmos_vitb32_cc3m"])
def test_the_papers_numbers_stand_beside_an_imported_model_of_that_name(
    run_of_two, monkeypatch, given
):
    config, workdir = run_of_two
    found = ScheduledEvaluator(Measured(), 1, task="cosmos/imagenet1k", paper=given)
    monkeypatch.setattr(Experiment, "make_evaluators", lambda *_: {"imagenet1k": found})
    read = Checkpoints.meta
    source = {"source": {"name": "cosmos_vitb16_cc3m", "format": "cosmos"}}
    monkeypatch.setattr(Checkpoints, "meta", lambda self, step: read(self, step) | source)
    evaluate.evaluate(config, workdir)
    (row,) = json.loads((workdir / "evaluate" / "6_table.json").read_text())["rows"]
    assert row["paper"] == tasks.paper(given or "cosmos_vitb16_cc3m")["imagenet1k"]["top1_accuracy"]


def test_two_jobs_may_write_one_result(tmp_path):
    path, failures = tmp_path / "evaluate" / "1.json", []
    found = {"a": report.Evaluated({"b": 5.0}, "model")}  # no share, so no chart

    def write():
        try:
            for _ in range(30):
                evaluate._write(path.parent, 1, found)
                assert json.loads(path.read_text())["a"] == {"b": 5.0}
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == ["1.json", "1_table.json", "1_table.md"]


def test_ctrl_c_ends_it_quietly(tmp_path):
    command = [sys.executable, "-m", "big_vlp.evaluate", "--follow"]
    command += [f"--config={ROOT}/tests/tiny_config.py:method=clip", f"--workdir={tmp_path}/run"]
    job = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "Waiting for checkpoints in" in job.stdout.readline()
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=10)
    assert job.returncode == -signal.SIGINT
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
