"""A full disk, or a bucket that refuses, at each kind of write: what a run does about it."""

import contextlib
import errno
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from big_vlp.evaluate import evaluate
from big_vlp.experiment import Experiment, ScheduledEvaluator
from big_vlp.run import boards, lease, step
from big_vlp.run.broken_records import FILE as BROKEN_RECORDS
from big_vlp.run.log import LogError, read_log
from big_vlp.storage.checkpoint import CheckpointError, Checkpoints
from big_vlp.train import train
from input_pipeline.files import buckets, lines, whole
from input_pipeline.sources.scenes import Source
from tests.big_vlp.run.test_log import tensorboard_events
from tests.big_vlp.train.test_train import tiny_config

STEPS, EVERY = 8, 4
BAD_STEP = 2
DISPENSABLE = (
    "contact_sheet.png", "tensorboard", "curves.png", BROKEN_RECORDS, "nonfinite.json", "lease",
)  # fmt: skip


def config(method="clip", **changes):
    fixed = dict(total_steps=STEPS, checkpoint__every_steps=EVERY, on_nonfinite="skip", evals={})
    return tiny_config(f"method={method}", **{**fixed, **changes})


class Storage:
    """`refuses`: what of a workdir cannot be written from now on."""

    refuses = None

    def check(self, path):
        if self.refuses and self.refuses in os.fspath(path).removeprefix(self.workdir):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))


@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def storage(request, tmp_path, monkeypatch):
    storage = Storage()
    if request.param == "bucket":
        storage.path = request.getfixturevalue("bucket")
        storage.faults = request.getfixturevalue("bucket_server").faults
    else:
        storage.path = tmp_path
    storage.workdir = os.fspath(storage.path)

    def checked(function):
        def call(path, *args, **options):
            storage.check(path)
            return function(path, *args, **options)

        return call

    for module in (whole, lines, boards, buckets):
        monkeypatch.setattr(module, "open", checked(open), raising=False)
    monkeypatch.setattr(buckets, "write", checked(buckets.write))
    monkeypatch.setattr(buckets, "create", checked(buckets.create))
    monkeypatch.setattr(lease, "_overwrite", checked(lease._overwrite))
    return storage


made = {}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Parts that are made once, and steps that do nothing, of which one is not finite; `quick[i]`
    is called before step i."""
    hooks = {}

    def once(owner, name, key):
        make = getattr(owner, name)

        def get(*args):
            at = name, key(*args)
            if at not in made:
                made[at] = make(*args)
            return made[at]

        monkeypatch.setattr(owner, name, get)

    def of_config(experiment, *_):
        return json.dumps([experiment.as_json()["optim"], experiment.as_json()["views"]])

    for name in ("make_mesh", "make_method", "make_optimizer", "abstract_state"):
        once(Experiment, name, of_config)
    once(step, "make_init", lambda *parts: tuple(map(id, parts)))

    def compiled_step(method, optimizer, placement, mesh):
        def train_step(state, batch, i, key):
            hooks.get(i, lambda: None)()
            return state, {"loss": 1.0, "bad_steps": np.int32(i >= BAD_STEP)}

        return train_step

    monkeypatch.setattr(step, "compiled_step", compiled_step)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    return hooks


@pytest.mark.parametrize("name", DISPENSABLE)
def test_a_run_goes_on_without(name, storage, quick, monkeypatch, capsys):
    record = Source.record

    def some_are_broken(self, i):
        return {"id": "broken"} if i % 5 == 0 else record(self, i)

    monkeypatch.setattr(Source, "record", some_are_broken)
    if name == "lease":  # it is renewed, later
        quick[1] = lambda: setattr(storage, "refuses", name)
    else:
        storage.refuses = name
    train(config(loader__on_broken="replace", loader__max_broken_share=0.5), storage.path)
    said = [line for line in capsys.readouterr().err.splitlines() if "the run goes on" in line]
    assert len(said) == 1 and "No space left on device" in said[0], said
    assert ("TensorBoard" if name == "tensorboard" else name) in said[0]
    assert [line["step"] for line in read_log(storage.path)] == list(range(STEPS))
    assert Checkpoints(storage.path, read_only=True).all_steps() == [EVERY, STEPS]


def test_what_a_run_went_on_without_comes_when_it_can(storage, quick):
    """Of TensorBoard's numbers a disk has those from then on, a bucket all."""
    storage.refuses = "tensorboard"
    quick[5] = lambda: setattr(storage, "refuses", None)
    train(config(), storage.path)
    [board] = (storage.path / "tensorboard").iterdir()
    events = [event for event in tensorboard_events(board.read_bytes()) if event.summary.value]
    steps = {event.step for event in events}
    assert steps == ({5, 6, 7} if isinstance(storage.path, Path) else set(range(STEPS)))


@pytest.mark.parametrize("name", ["config.json", "labels.json", "frozen"])
def test_a_run_does_not_begin_without(name, storage, monkeypatch):
    storage.refuses = name
    changes = {}
    if name == "frozen":  # by Orbax
        changes["optim__rules"] = (("image.*", 0.0, 0.0), ("(?!image).*", 1.0, 1.0))

        def save(self, path, *args, **options):
            storage.check(path)

        monkeypatch.setattr(ocp.Checkpointer, "save", save)
    method = "catlip" if name == "labels.json" else "clip"
    with pytest.raises(CheckpointError, match=r"No space left on device.*Make room"):
        train(config(method, **changes), storage.path)
    assert not Checkpoints(storage.path, read_only=True).all_steps()


def test_a_log_that_fails_ends_the_run_with_its_last_checkpoint(storage, quick, capsys):
    quick[6] = lambda: setattr(storage, "refuses", "metrics.jsonl")
    with pytest.raises(LogError, match=r"metrics.jsonl cannot be written.*Make room"):
        train(config(), storage.path)
    assert "Traceback" not in capsys.readouterr().err
    assert Checkpoints(storage.path, read_only=True).all_steps() == [EVERY]
    storage.refuses = None
    quick.clear()
    train(config(), storage.path)
    assert [line["step"] for line in read_log(storage.path)] == list(range(STEPS))


def wait_until_quiet(directory):
    """Orbax does not wait for the writers beside the one that failed, which the end of a program
    would end; here the next run would meet them."""
    seen = []
    while len(seen) < 10 or len({frozenset(files) for files in seen[-10:]}) > 1:
        if isinstance(directory, Path):
            seen.append(list(map(os.fspath, directory.rglob("*"))))
        else:  # whose paths know no "**"
            seen.append(buckets.files_of(directory).find(os.fspath(directory)))
        time.sleep(0.1)


def test_a_checkpoint_that_fails_ends_the_run_with_the_one_before(storage, quick, capsys):
    """Arrays are larger than the limit on files, or refused by the bucket."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with contextlib.ExitStack() as undo:
        if isinstance(storage.path, Path):
            undo.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limit)

            def begin():
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        else:

            def refused(number, method, path):
                return 403 if method != "GET" and f"checkpoints%2F{STEPS}" in path else None

            def begin():
                undo.enter_context(storage.faults.spoiling(refused))

        def begin_after_the_first():
            while not Checkpoints(storage.path, read_only=True).all_steps():
                time.sleep(0.02)
            begin()

        quick[6] = begin_after_the_first
        with pytest.raises(CheckpointError, match=f"last complete one is step {EVERY}"):
            train(config(), storage.path)
    assert "Traceback" not in capsys.readouterr().err
    assert Checkpoints(storage.path, read_only=True).all_steps() == [EVERY]
    wait_until_quiet(storage.path / "checkpoints")
    quick.clear()
    train(config(), storage.path)
    assert Checkpoints(storage.path, read_only=True).all_steps() == [EVERY, STEPS]


def test_a_result_that_cannot_be_written_is_one_error(storage, monkeypatch):
    monkeypatch.setattr(ScheduledEvaluator, "run", lambda self, state: {"x": 1.0})
    train(config(), storage.path)
    storage.refuses = "evaluate"
    evaluated = tiny_config("method=clip", total_steps=STEPS)
    with pytest.raises(CheckpointError, match=r"result cannot be written.*No space left"):
        evaluate(evaluated, storage.path)
    storage.refuses = None
    evaluate(evaluated, storage.path)
    assert json.loads((storage.path / "evaluate" / f"{STEPS}.json").read_text())["step"] == STEPS
