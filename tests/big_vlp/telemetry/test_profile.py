"""Traces of a loop's steps: when they are taken, where they lie, and what the table says."""

import gzip
import json
import os
import re
import signal
from collections import Counter
from types import SimpleNamespace as Namespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.telemetry.meter import Meter
from big_vlp.telemetry.profile import Profile, _add_own, costliest
from input_pipeline.files.buckets import files_of


@pytest.fixture(scope="module")
def scheme():
    return "gs"


@jax.jit
def work(x):
    return jax.lax.fori_loop(0, 3, lambda i, y: jnp.tanh(y @ x), x)


@pytest.fixture
def run(tmp_path):
    """A loop of so many steps with a profile; gives what was said."""

    def go(count, workdir=tmp_path, told_at=None, **given):
        said, x = [], jnp.ones((64, 64))
        with Meter() as meter:
            profile = Profile(**given).open(workdir, meter, said.append)
            for step in range(count):
                if step == told_at:
                    os.kill(os.getpid(), signal.SIGUSR1)
                with meter.waiting():
                    pass
                meter.dispatched(work(x), 1, 1)
                profile.dispatched(step)
            values = meter.read(0)
            profile.close()
        return said, values

    return go


def test_a_trace_of_the_steps_that_the_config_names(run, tmp_path):
    said, values = run(6, at_step=2, steps=2)
    (text,) = said
    assert text.startswith("Profile of steps 2 to 3") and str(tmp_path / "profile") in text
    rows = [line.split() for line in text.splitlines()[2:-1]]
    assert any(re.match(r"while|dot|.*fusion", row[-1]) for row in rows)
    np.testing.assert_allclose(sum(float(row[1].rstrip("%")) for row in rows), 100, atol=1)
    assert values["profile_seconds"] > 0
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert len(list((tmp_path / "profile").rglob("*.trace.json.gz"))) == 1  # what xprof reads
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1
    assert costliest(tmp_path / "profile", 2) in text


def test_a_signal_asks_for_one(run, tmp_path):
    before = signal.getsignal(signal.SIGUSR1)
    said, _ = run(6, told_at=1, steps=1)
    assert [text.partition(",")[0] for text in said] == ["Profile of steps 2 to 2"]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_none_is_taken_that_would_not_end(run, tmp_path):
    said, _ = run(4, at_step=3, steps=5)
    assert said == ["The profile is dropped: the run ended before step 7."]
    assert not (tmp_path / "profile").exists()
    assert len(run(4, at_step=2, steps=1)[0]) == 1  # the profiler is free again


def test_without_a_word_there_is_none(run, tmp_path):
    said, values = run(4)
    assert said == [] and "profile_seconds" not in values and not list(tmp_path.iterdir())


def test_other_processes_take_one_only_when_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert run(4, at_step=1, steps=1)[0] == []
    run(4, told_at=1, steps=1)
    assert list((tmp_path / "profile" / "process_1").rglob("*.xplane.pb"))


def test_in_a_bucket(run, bucket):
    said, _ = run(4, workdir=bucket, at_step=1, steps=1)
    assert len(said) == 1
    names = map(os.path.basename, files_of(bucket).find(os.fspath(bucket)))
    assert "perfetto_trace.json.gz" in names


def test_a_profiler_that_fails_is_said(run, monkeypatch):
    def busy(*_, **__):
        raise RuntimeError("Only one profile may be run at a time.")

    monkeypatch.setattr(jax.profiler, "start_trace", busy)
    said, _ = run(4, at_step=1, steps=1)
    assert len(said) == 1 and "Only one profile" in said[0] and "goes on without" in said[0]


def test_what_an_operation_calls_is_not_its_own():
    spent, times = Counter(), Counter()
    events = [(0, 100, "while"), (10, 30, "dot"), (15, 5, "copy"), (50, 30, "dot"), (200, 7, "dot")]
    _add_own([(b * 1e9, d * 1e9, name) for b, d, name in events], spent, times)
    assert spent == {"while": 40, "dot": 62, "copy": 5} and times["dot"] == 3


def event(name, start, duration, **stats):
    return Namespace(name=name, start_ns=start, duration_ns=duration, stats=stats.items())


def line(name, *events):
    return Namespace(name=name, events=events)


DEVICES = {
    "TPU": [
        line("XLA Modules", event("jit_train_step", 0, 900)),
        line(
            "XLA Ops",
            event("%while.3 = (f32[]) while(...)", 0, 600),
            event("%fusion.1 = f32[8] fusion(...)", 100, 500, tf_op="jit(f)/blocks/dot_general:"),
        ),
    ],
    "GPU": [
        line(
            "Stream #7(Compute)", event("gemm", 0, 500, hlo_op="fusion.1"), event("copy", 600, 100)
        ),
        line("Launch Stats", event("gemm", 0, 5_000)),
    ],
}


@pytest.mark.parametrize("device", DEVICES)
def test_planes_of_devices(device, tmp_path, monkeypatch):
    """The host's work is not theirs, and no operation counts on two lines."""
    host = Namespace(name="/host:CPU", lines=[line("python", event("x", 0, 99, hlo_op="x"))])
    planes = [host, Namespace(name=f"/device:{device}:0", lines=DEVICES[device])]
    read = Namespace(from_file=lambda path: Namespace(planes=planes))
    monkeypatch.setattr(jax.profiler, "ProfileData", read)
    (tmp_path / "a.xplane.pb").touch()
    table = costliest(tmp_path, 1)
    rows = [row.split() for row in table.splitlines()[1:-1]]
    second = {"TPU": "while.3", "GPU": "copy"}[device]
    assert [(row[1], row[3]) for row in rows] == [("83.3%", "fusion.1"), ("16.7%", second)]
    assert ("blocks/dot_general" in table) == (device == "TPU")
