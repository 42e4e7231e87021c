"""Batches are a function of the step: any workers, threads, processes and starting point agree."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from input_pipeline import loader as program
from input_pipeline.loader import Loader
from input_pipeline.plans import make_plan
from input_pipeline.plans.constant import Plan as Constant
from input_pipeline.sources import make_source
from input_pipeline.sources.shared import base
from input_pipeline.views import make_views

ROOT = Path(__file__).parents[2]
SIZE, BATCH, STEPS = 10, 4, 6


class Source(base.Source):
    """Records that are only an id."""

    def __init__(self, size=SIZE):
        self.size = size

    def __len__(self):
        return self.size

    def record(self, i):
        return {"id": f"r{i}"}


def draw(record, rng):
    """The record's number and what its augmentation drew."""
    return {"row": np.int32(record["id"][1:]), "draw": np.float64(rng.random())}


def loader(views=draw, global_batch=BATCH, total_steps=STEPS, rows=None, **changes):
    plan = Constant(image_size=16, global_batch=global_batch, total_steps=total_steps, seed=5)
    rows = None if rows is None else {global_batch: rows}
    options = {"source": Source(), "views": {16: views}, "plan": plan, "rows": rows}
    return Loader(**{**options, "total_steps": total_steps, "seed": 5, **changes})


def scenes(**changes):
    """A loader whose parts can be sent to worker processes."""
    views = make_views(
        "clip", image_size=16, tokenizer="clip", context_length=12, crop_scale=(0.3, 1.0)
    )
    return loader(source=make_source("scenes", size=SIZE, image_size=32), views=views, **changes)


def same(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


@contextlib.contextmanager
def time_limit(seconds):
    """Fails a test that would hang."""

    def stop(*_):
        raise TimeoutError(f"Nothing happened for {seconds} s.")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_batches_are_stacked_examples():
    batch = scenes().batch(0)
    assert batch["image"].shape == (BATCH, 16, 16, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["tokens"].shape == (BATCH, 12)


@pytest.mark.parametrize("changes", [{}, {"num_threads": 3}, {"num_threads": 0}])
def test_iteration_gives_the_batches_in_order(changes):
    made = scenes(**changes)
    same(made.iterate(0), map(scenes().batch, range(STEPS)))


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_worker_processes_change_nothing(num_workers):
    with time_limit(120):
        found = list(scenes(num_workers=num_workers, num_threads=2).iterate(1))
    same(found, map(scenes().batch, range(1, STEPS)))


@pytest.mark.parametrize("parts", [1, 4, 5, 12], ids=lambda n: f"{n} parts")
@pytest.mark.parametrize("name", ["constant", "variable", "switch"])
def test_batches_in_parts_are_those_made_at_once(monkeypatch, name, parts):
    """Parts of twelve rows, three, two or three, and one, from any step on, and of other sizes."""
    own = {
        "constant": {},
        "variable": {"sizes": (8, 16), "batch_multiple": 4},
        "switch": {"first_size": 8, "at_step": 2},
    }[name]
    plan = make_plan(name, image_size=16, global_batch=12, total_steps=STEPS, seed=5, **own)
    rows = {batch: range(batch)[: batch // 2 + 6] for _, batch in plan.shapes}
    made = loader({}, plan=plan)
    made = Loader(**{**vars(made), "views": dict.fromkeys((8, 16), draw), "rows": rows})
    expected = [made.batch(step) for step in range(STEPS)]
    assert name != "variable" or len({len(batch["row"]) for batch in expected}) == 2
    monkeypatch.setattr(program, "_parts", lambda *_: (parts, parts))
    for start in (0, 3):
        same(made.iterate(start), expected[start:])


def test_workers_share_a_batch_and_hold_about_one_of_any_size():
    for count, workers, threads in itertools.product((256, 1000, 16_384), (1, 4, 16), (1, 2)):
        parts, ahead = program._parts([count, count // 2], workers, threads, 1)
        rows = -(-count // parts)
        assert parts % workers == 0 and rows <= 256
        # In the making; in a queue, before it, behind it, and in the hands of who reads it.
        assert workers * (threads + 2 * ahead + 2) * rows <= 1.3 * count
    assert program._parts([6, 3], 4, 1, 1)[0] == 3  # none without a row


@pytest.mark.parametrize("start", range(STEPS + 1))
def test_starting_later_gives_the_rest(start):
    whole = list(loader().iterate(0))
    assert len(whole) == STEPS
    same(loader().iterate(start), whole[start:])


@pytest.mark.parametrize("rows", [[0, 1], [2, 3], [0, 3], [1]])
def test_processes_make_their_rows_of_the_global_batch(rows):
    whole = loader().batch(3)
    same([loader(rows=rows).batch(3)], [{name: value[rows] for name, value in whole.items()}])


def run_of(made):
    """Rows and draws of a whole run, in order."""
    batches = list(made.iterate(0))
    return (np.concatenate([b[name] for b in batches]) for name in ("row", "draw"))


def test_every_epoch_is_another_permutation():
    """Also where an epoch ends within a batch."""
    rows, draws = run_of(loader(total_steps=10))
    epochs = rows.reshape(4, SIZE)
    for epoch in epochs:
        assert sorted(epoch) == list(range(SIZE))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # A record is augmented anew each time.
    assert len(set(draws)) == len(draws)


def test_the_batch_size_moves_no_example():
    """Order and augmentation belong to the position in the run, not to the step."""
    small, large = run_of(loader(total_steps=10)), run_of(loader(total_steps=5, global_batch=8))
    for a, b in zip(small, large):
        np.testing.assert_array_equal(a, b)


def test_seeds_draw_other_orders_and_augmentation():
    rows, draws = run_of(loader())
    other_rows, other_draws = run_of(loader(seed=6))
    assert (rows != other_rows).any()
    assert not set(draws) & set(other_draws)


@pytest.mark.parametrize("rows", [None, [2, 3]])
def test_ids_are_those_of_the_global_batch(rows):
    for step in range(STEPS):
        expected = [f"r{row}" for row in loader().batch(step)["row"]]
        assert loader(rows=rows).ids(step) == expected


def test_an_empty_source_is_an_error():
    with pytest.raises(ValueError, match="data source is empty"):
        loader(source=Source(0))


def test_small_sources_repeat_within_a_batch():
    rows, _ = run_of(loader(source=Source(3), total_steps=3))
    assert Counter(rows.tolist()) == {0: 4, 1: 4, 2: 4}


def test_errors_of_a_record_come_from_workers_in_full():
    views = make_views(
        "clip", image_size=16, tokenizer="clip", context_length=12, caption_mode="long"
    )
    made = loader(source=make_source("scenes", size=SIZE, image_size=32), views=views)
    for num_workers in (0, 1):
        batches = Loader(**{**vars(made), "num_workers": num_workers}).iterate(0)
        with time_limit(120), pytest.raises(ValueError, match="Record 'scenes-train-"):
            next(batches)


def mixture(**changes):
    """A weighted mixture whose parts can be sent to worker processes."""
    sources = [
        {"name": "scenes", "size": 6, "image_size": 32, "weight": 0.75},
        {"name": "scenes", "size": 5, "image_size": 32, "split": "val", "weight": 0.25},
    ]
    views = make_views(
        "clip", image_size=16, tokenizer="clip", context_length=12, crop_scale=(0.3, 1.0)
    )
    return loader(source=make_source("mixture", sources=sources), views=views, **changes)


def test_a_weighted_mixture_is_the_same_for_any_workers_rows_and_start():
    expected = [mixture().batch(step) for step in range(STEPS)]
    with time_limit(120):
        found = list(mixture(num_workers=2, num_threads=2).iterate(0))
    same(found, expected)
    same(mixture(num_threads=3).iterate(2), expected[2:])
    parts = [mixture(rows=rows).batch(3) for rows in ([0, 1], [2, 3])]
    same([{n: np.concatenate([p[n] for p in parts]) for n in parts[0]}], expected[3:4])
    same(
        [mixture(global_batch=8).batch(1)],
        [{n: np.concatenate([expected[2][n], expected[3][n]]) for n in parts[0]}],
    )


def test_a_weighted_mixture_has_its_shares_and_epochs():
    shown = [i for step in range(8) for i in mixture().ids(step)]
    assert [sum(i.startswith(c) for i in shown) for c in ("0:", "1:")] == [24, 8]
    first = [i for i in shown if i.startswith("0:")]
    assert all(len(set(first[i : i + 6])) == 6 for i in range(0, 24, 6))
    second = [i for i in shown if i.startswith("1:")]
    assert len(set(second[:5])) == 5
    assert [i for step in range(8) for i in mixture(seed=6).ids(step)] != shown


def test_a_mixture_without_weights_is_shuffled_as_one():
    source = make_source(
        "mixture", sources=[{"name": "scenes", "size": n, "image_size": 32} for n in (6, 4)]
    )
    numbers = {source[i]["id"]: f"r{i}" for i in range(SIZE)}
    for step in range(STEPS):
        assert [numbers[i] for i in loader(source=source).ids(step)] == loader().ids(step)


def test_the_order_of_examples_is_that_of_earlier_versions():
    """Written down: another order would change what a resumed run sees."""
    assert [loader().ids(step) for step in range(3)] == [
        ["r4", "r0", "r5", "r3"],
        ["r7", "r9", "r8", "r1"],
        ["r2", "r6", "r2", "r7"],
    ]


def workers(parent):
    """Process ids of the loader's workers that process `parent` started."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(status[1]) == parent and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
    return found


def runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds workers through /proc"
)


@needs_proc
def test_a_killed_worker_is_an_error_and_no_hang():
    before = workers(os.getpid())
    with time_limit(120):
        batches = scenes(num_workers=2, total_steps=10_000).iterate(0)
        next(batches)
        started = workers(os.getpid()) - before
        assert len(started) == 2
        os.kill(started.pop(), signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"orker process.*exit code -9"):
            for _ in batches:
                pass


# Without a main guard: workers that imported it would start workers of their own, an error.
PROGRAM = """
import time
from absl import flags
from input_pipeline.loader import Loader
from input_pipeline.plans.constant import Plan as Constant
from input_pipeline.sources import make_source
from input_pipeline.views import make_views
from input_pipeline.workers import leave_out_main

leave_out_main()
flags.FLAGS.mark_as_parsed()
views = make_views("clip", image_size=16, tokenizer="clip", context_length=12)
source = make_source("scenes", size=10, image_size=32)
plan = Constant(image_size=16, global_batch=4, total_steps=10_000, seed=0)
batches = Loader(source, {16: views}, plan, 10_000, seed=0, num_workers=1).iterate(0)
next(batches)
print("ready", flush=True)
time.sleep(120)
"""


@needs_proc
def test_workers_import_no_main_module_and_end_when_the_run_is_killed(tmp_path):
    """Left alone they would keep their memory, which the next run on the host needs."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command, environment = [sys.executable, program], {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
        with time_limit(120):
            assert run.stdout.readline() == "ready\n"
        started = workers(run.pid)
        run.kill()
    assert started
    try:
        deadline = time.monotonic() + 15
        while any(map(runs, started)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(runs, started))
    finally:
        for process in filter(runs, started):
            os.kill(process, signal.SIGKILL)
