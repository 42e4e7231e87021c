"""How a run ends, and what may not happen to what is there: in-process, on the tiny CLIP."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from big_vlp.evaluate import evaluate
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.run import progress, step
from big_vlp.run.bad_steps import NonFiniteError
from big_vlp.run.lease import Lease, LeaseError
from big_vlp.run.log import LOG_FILE, LogError, MetricLog, read_log
from big_vlp.storage.checkpoint import Checkpoints
from big_vlp.train import train
from evaluators.shared.rows import RowMap
from input_pipeline.checks.paths import PathError
from input_pipeline.loader import Loader
from input_pipeline.sources.scenes import Source
from tests.big_vlp.train.test_train import ROOT, TIMEOUT, tiny_config


def config(**changes):
    changes = (
        dict(total_steps=8, checkpoint__every_steps=4, evals__retrieval__every_steps=4) | changes
    )
    return tiny_config("method=clip", **changes)


def tree(directory):
    """Every file's bytes, but for the pictures' and TensorBoard's."""
    return {
        path.relative_to(directory): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
        if "tensorboard" not in path.parts
    }


def logged(workdir):
    return [(line["split"], line["step"]) for line in read_log(workdir)]


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture(autouse=True)
def programs_are_shared(finished, made, monkeypatch):
    """Runs of equal sections share method, optimizer and jitted functions: most time is tracing."""

    def shared(owner, name, key):
        make = getattr(owner, name)

        def get(*args):
            parts = (name, *key(*args))
            if parts not in made:
                made[parts] = make(*args), args  # holding args keeps their ids
            return made[parts][0]

        monkeypatch.setattr(owner, name, get)

    def sections(*names):
        def key(experiment, *parts):
            return (*(json.dumps(experiment.as_json()[n]) for n in names), *map(id, parts))

        return key

    def ids(*parts):
        return tuple(map(id, parts[:2]))

    shared(Experiment, "make_mesh", sections("mesh"))
    shared(Experiment, "make_method", sections("method", "preprocess", "views"))
    shared(Experiment, "make_optimizer", sections("optim", "total_steps"))
    shared(Experiment, "abstract_state", sections("global_batch"))
    shared(Experiment, "make_evaluators", sections("evals"))
    shared(step, "make_init", ids)
    shared(step, "compiled_step", ids)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps that evaluates at 4 and 8; tracing one of its programs again is an error."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    once, make_step, make_row_map = (
        chex.assert_max_traces(n=1),
        step.make_train_step,
        RowMap.__init__,
    )
    chex.clear_trace_counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowMap, "__init__", lambda self, fn, mesh: make_row_map(self, once(fn), mesh))
        patch.setattr(step, "make_train_step", lambda *args: once(make_step(*args)))
        train(config(), workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_everything_is_compiled_once(finished):
    """The last evaluation, too, is in the mesh that the ones before it were traced in."""
    assert logged(finished)[-1] == ("retrieval", 8)


def test_the_log_says_where_the_time_goes(finished):
    lines = [line["values"] for line in read_log(finished) if line["split"] == "train"]
    always = {"examples_per_s", "input_wait", "step_seconds_p50", "run_seconds", "goodput"}
    assert all(always <= line.keys() for line in lines)
    assert "compile_seconds" in lines[0] and "mfu" not in lines[0]  # a CPU has no peak
    for name in ("evaluation_seconds", "checkpoint_seconds"):
        assert [i for i, line in enumerate(lines) if name in line] == [4]  # before that step
    assert lines[0]["goodput"] < lines[-1]["goodput"] < 1


def test_goodput_goes_on_and_a_profile_is_taken(copy, capsys):
    shutil.rmtree(copy / "checkpoints" / "8")
    train(config(profile=dict(at_step=5, steps=2)), copy)
    lines = [line for line in read_log(copy) if line["split"] == "train"]
    first_starts = [line["time"] - line["values"]["run_seconds"] for line in lines]
    assert len(lines) == 8 and max(first_starts) - min(first_starts) < 2
    assert "Profile of steps 5 to 6, the costliest operations:" in capsys.readouterr().err
    assert "profile_seconds" in lines[6]["values"] and list(
        (copy / "profile").rglob("perfetto_trace*")
    )


def test_a_lower_total_steps_is_refused(copy):
    before = tree(copy)
    for total_steps in (7, 4):
        with pytest.raises(
            ConfigError, match=f"checkpoint of step 8.*total_steps is {total_steps}"
        ):
            train(config(total_steps=total_steps, checkpoint__keep_latest=1), copy)
    assert tree(copy) == before


def test_a_finished_run_has_nothing_to_do(copy, monkeypatch):
    before = tree(copy)
    for name in ("curves.png", "config.json", "COMMIT"):  # the latter are of the last start
        before.pop(Path(name), None)
    # With a training step it would fail, and so it would with an evaluation.
    monkeypatch.setattr(Loader, "batch", None)
    monkeypatch.setattr(RowMap, "__call__", None)
    train(config(), copy)
    train(config(evals={}), copy)
    after = tree(copy)
    assert {path: after[path] for path in before} == before


def test_a_finished_run_evaluates_what_is_missing_or_changed(copy):
    log = copy / LOG_FILE
    whole = [(x["step"], x["split"], x["values"]) for x in read_log(copy)]
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))  # ended before it
    assert logged(copy)[-1] == ("train", 7)
    train(config(), copy)
    assert [(x["step"], x["split"], x["values"]) for x in read_log(copy)] == whole
    train(config(evals__retrieval__data__size=6), copy)
    assert logged(copy) == [(split, step) for step, split, _ in whole]
    assert read_log(copy)[-1]["values"] != whole[-1][2]


def test_an_evaluation_of_the_checkpoint_is_not_made_again(copy):
    """A run that goes on from where it has evaluated."""
    shutil.rmtree(copy / "checkpoints" / "8")
    before = read_log(copy)
    train(config(), copy)
    after = read_log(copy)
    assert [(x["split"], x["step"]) for x in after] == [(x["split"], x["step"]) for x in before]
    times = {(x["split"], x["step"]): x["time"] for x in before}
    unchanged = {key for key, time in times.items() if time in [x["time"] for x in after]}
    assert unchanged == {*(("train", i) for i in range(4)), ("retrieval", 4)}


def signal_while_evaluating(monkeypatch, workdir, number, evaluation):
    """Sends a signal from the evaluation of that number, at its second batch."""
    read, seen = Source.__getitem__, []

    def getitem(self, index):
        if self._split == "val" and index == 5:
            seen.append(index)
            if len(seen) == evaluation:
                os.kill(os.getpid(), number)
        return read(self, index)

    monkeypatch.setattr(Source, "__getitem__", getitem)


@pytest.mark.parametrize(
    "number, evaluation, at", [(signal.SIGTERM, 1, 4), (signal.SIGINT, 2, 8)], ids=["first", "last"]
)
def test_a_signal_in_an_evaluation(number, evaluation, at, finished, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signal_while_evaluating(patch, tmp_path, number, evaluation)
        with pytest.raises(SystemExit) as stop:
            train(config(), tmp_path)
    assert stop.value.code == 128 + number
    assert f"step {at} is saved; the same command goes on" in capsys.readouterr().err
    assert Checkpoints(tmp_path, read_only=True).latest_step() == at
    assert logged(tmp_path)[-1] == ("train", at - 1)
    train(config(), tmp_path)
    assert logged(tmp_path) == logged(finished)
    values = [
        [x["values"] for x in read_log(w) if x["split"] != "train"] for w in (tmp_path, finished)
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("seconds", [0, 1])  # of the wait when it comes, or about so
def test_a_signal_while_it_waits_for_input(seconds, tmp_path, monkeypatch, capsys):
    clean, never, log = Loader.batch, threading.Event(), tmp_path / "metrics.jsonl"
    sent = []

    def batch(self, step, part):
        if step == 3:
            deadline = time.monotonic() + 60  # batches are made ahead
            while '"step": 1,' not in log.read_text() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGTERM)
            sent.append(time.monotonic())
            never.wait(60)
        return clean(self, step, part)

    monkeypatch.setattr(Loader, "batch", batch)
    with pytest.raises(SystemExit) as stop:
        train(config(evals={}), tmp_path)
    assert time.monotonic() - sent[0] < 30
    never.set()
    assert stop.value.code == 143
    at = Checkpoints(tmp_path, read_only=True).latest_step()
    assert 1 < at <= 3 and f"SIGTERM: step {at} is saved" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_in_a_compilation_ends_the_program_at_once(tmp_path):
    """Python's own end would wait for the compilation, and then crash."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_LOG_COMPILES="1")
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "empty")
    for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS"):  # for it to take its time
        environment.pop(name, None)
    command = [sys.executable, "-m", "big_vlp.train", f"--config={ROOT / 'configs' / 'demo.py'}"]
    log = tmp_path / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path / 'run'}"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + TIMEOUT
        while "Compiling jit(train_step)" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 143
    assert "Segmentation" not in log.read_text()


def poison(monkeypatch, bad_steps):
    """Puts NaN into the images of some steps; float images pass to the model as they are."""
    clean = Loader.batch

    def batch(self, step, part):
        rows = clean(self, step, part)
        rows["image"] = rows["image"].astype(np.float32) / 255
        if step in bad_steps:
            rows["image"][0] = np.nan
        return rows

    monkeypatch.setattr(Loader, "batch", batch)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"on_nonfinite": "skip"},
        pytest.param({"optim__learning_rate": 1e-4}, marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_after_a_refused_update(changes, tmp_path, monkeypatch):
    """Also when nothing looked at it before the checkpoint was due."""
    poison(monkeypatch, {1})
    rarely = dict(log_every_steps=100, evals={}, checkpoint__every_steps=3)
    with pytest.raises(NonFiniteError, match="of step 1"):
        train(config(**rarely), tmp_path)
    assert Checkpoints(tmp_path, read_only=True).latest_step() == 3
    train(config(**rarely | changes), tmp_path)
    assert logged(tmp_path) == [("train", 0), ("train", 7)]
    assert read_log(tmp_path)[-1]["values"]["bad_steps"] == 1


def test_a_signal_does_not_hide_a_refused_update(tmp_path, monkeypatch):
    poison(monkeypatch, {1})
    is_due = Checkpoints.is_due

    def is_due_and_told(self, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return is_due(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "is_due", is_due_and_told)
        with pytest.raises(NonFiniteError, match="of step 1"):
            train(config(log_every_steps=100, evals={}), tmp_path)
    train(config(log_every_steps=100, evals={}), tmp_path)


def test_refused_updates_end_the_run_at_the_limit(tmp_path, monkeypatch):
    poison(monkeypatch, {1, 4, 5, 6, 7})
    skipping = dict(on_nonfinite="skip", max_bad_steps=3, evals={})
    with pytest.raises(NonFiniteError, match=r"3 in a row, config\.max_bad_steps is 3"):
        train(config(**skipping), tmp_path)
    assert logged(tmp_path)[-1] == ("train", 6)
    assert Checkpoints(tmp_path, read_only=True).latest_step() == 7


def test_a_broken_record_ends_the_run_with_its_state_saved(tmp_path, monkeypatch, capsys):
    clean = Loader.batch

    def batch(self, step, part):
        if step == 5:
            raise ValueError("Record 'x7' is broken.")
        return clean(self, step, part)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", batch)
        with pytest.raises(ValueError, match="x7"):
            train(config(evals={}), tmp_path)
    assert "Record 'x7' is broken." in capsys.readouterr().err.splitlines()[-1]
    assert Checkpoints(tmp_path, read_only=True).latest_step() == 5
    assert logged(tmp_path)[-1] == ("train", 4)
    train(config(evals={}), tmp_path)
    assert logged(tmp_path) == [("train", i) for i in range(8)]


def test_any_exception_closes_everything_after_its_reason(tmp_path, monkeypatch, capsys):
    order, closed = [], []

    def noting(kind, name):
        close = getattr(kind, name)

        def note(self):
            order.append(capsys.readouterr().err)
            closed.append(kind)
            close(self)

        monkeypatch.setattr(kind, name, note)

    noting(MetricLog, "close")
    noting(Checkpoints, "close")
    noting(Lease, "release")

    def update(*args, **kwargs):
        raise RuntimeError("oops")

    monkeypatch.setattr(progress.LiveLine, "update", update)
    with pytest.raises(RuntimeError, match="oops"):
        train(config(evals={}), tmp_path)
    assert closed == [MetricLog, Checkpoints, Lease]
    assert "error: RuntimeError: oops" in order[0]
    assert "oops" not in "".join(order[1:]) + capsys.readouterr().err
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_second_run_in_the_directory_is_refused(copy):
    before = tree(copy)
    held = Lease.acquire(copy)
    with pytest.raises(LeaseError, match=f"in use by process {os.getpid()}"):
        train(config(total_steps=12), copy)
    held.check()
    held.release()
    assert tree(copy) == before


def test_a_run_that_lost_its_lease_writes_no_more(tmp_path, monkeypatch):
    check, calls = Lease.check, []

    def lost(self):
        calls.append(1)
        if len(calls) == 3:
            self._file.unlink()  # as who takes over does
            self._renewed -= 3600
        check(self)

    monkeypatch.setattr(Lease, "check", lost)
    with pytest.raises(LeaseError, match="has taken over"):
        train(config(evals={}), tmp_path)
    assert logged(tmp_path) == [("train", 0), ("train", 1)]
    assert Checkpoints(tmp_path, read_only=True).latest_step() is None


@pytest.mark.parametrize("run", [train, evaluate])
@pytest.mark.parametrize("url", ["az://b/x", "file:///tmp/x", ""])
def test_a_url_is_refused_before_anything_is_built(run, url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PathError):
        run(config(), url)
    assert not list(tmp_path.iterdir())


def test_home_is_where_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shortest = dict(total_steps=4, evals={}, log_every_steps=4)
    train(config(**shortest), "~/a run")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    workdir = tmp_path / "home" / "a run"
    for name in (
        "metrics.jsonl",
        "curves.png",
        "contact_sheet.png",
        "checkpoints/4",
        "tensorboard",
    ):
        assert (workdir / name).exists()
    evaluate(config(total_steps=4), "~/" + workdir.name)
    assert (workdir / "evaluate" / "4.json").exists()


def test_a_broken_log_is_named(copy):
    log = copy / LOG_FILE
    log.write_text("{oops}\n" + log.read_text())
    with pytest.raises(LogError, match=r"metrics\.jsonl, line 1"):
        train(config(), copy)


@pytest.mark.slow
def test_the_contact_sheet_needs_its_own_rows_only(tmp_path, monkeypatch):
    made, sizes = Loader._batch, []

    def counted(self, step, part):
        sizes.append(len(self.positions(step, part)))
        return made(self, step, part)

    monkeypatch.setattr(Loader, "_batch", counted)
    train(config(total_steps=4, evals={}, global_batch=16), tmp_path)
    assert sizes[0] == 6 and set(sizes[1:]) == {16}
    versions = Checkpoints(tmp_path, read_only=True).meta(4)["versions"]
    assert versions["jax"] == jax.__version__ and versions["numpy"] == np.__version__
    assert {"grain", "opencv-python-headless", "simplejpeg", "big_vlp"} < versions.keys()


def test_checkpoints_by_the_clock(tmp_path):
    """Beside those of `every_steps`; how long each took is in the log."""
    changes = dict(checkpoint__every_steps=1000, checkpoint__keep_latest=50, evals={})
    train(tiny_config("method=clip", total_steps=8, **changes), tmp_path / "a")
    assert Checkpoints(tmp_path / "a", read_only=True).all_steps() == [8]
    config = tiny_config("method=clip", total_steps=8, **changes)
    config.checkpoint.every_minutes = 1e-4
    train(config, tmp_path / "b")
    steps = Checkpoints(tmp_path / "b", read_only=True).all_steps()
    assert len(steps) > 3 and steps[-1] == 8
    lines = [line["values"] for line in read_log(tmp_path / "b")]
    assert sum("save_seconds" in line for line in lines) > 1
    assert [line["loss"] for line in lines] == [
        line["values"]["loss"] for line in read_log(tmp_path / "a")
    ]
