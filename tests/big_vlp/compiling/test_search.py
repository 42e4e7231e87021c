"""The search for the fastest settings, with a compiler whose answers are a formula."""

import dataclasses
import types

import pytest

from big_vlp.compiling import programs, search
from big_vlp.compiling.setup import Setup, held
from big_vlp.experiment import ConfigError, Experiment
from tests import tiny_config

# Bytes for each row of a micro-batch, and seconds for each row, of the policies.
COSTS = {"full": (10, 4.0), "dots": (40, 3.2), "qkv,attention,out": (45, 3.1)}
COSTS |= {"qkv,attention,out,hidden": (60, 3.0), None: (100, 2.9)}
FIXED, BATCH = 1000, 1  # bytes, and bytes for each row of the whole batch


def work(remat, steps, batch):
    return FIXED + BATCH * batch + COSTS[remat][0] * batch // steps


@pytest.fixture(scope="module")
def tiny():
    config = tiny_config.get_config("method=clip")
    config.global_batch = 1024
    experiment = Experiment.from_config(config)
    return Setup.of(experiment, experiment.make_mesh())


@pytest.fixture
def setup(tiny, monkeypatch, tmp_path):
    """With 42,010 bytes beside the state; `compiled` lists what was."""
    made = dataclasses.replace(tiny, memory=held(tiny.state) + 42_010, device_kind="TPU v5 lite")
    compiled = []

    def compile_step(setup, image_size, batch, method):
        assert method.unroll is False and image_size == 16
        compiled.append((method.remat, method.accumulate_steps, batch))
        needed = work(*compiled[-1])
        if held(setup.state) + needed > setup.memory:
            raise programs.TooLargeError("too large")
        return programs.Report(needed, str(COSTS[method.remat][1] * batch))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(programs, "compile_step", compile_step)
    roofline = types.SimpleNamespace(
        roofline=lambda text, kind: types.SimpleNamespace(seconds=float(text)),
        UnknownDeviceError=search.roofline.UnknownDeviceError,
    )
    monkeypatch.setattr(search, "roofline", roofline)
    monkeypatch.setattr(search, "MARGIN", 0.0)
    monkeypatch.setattr(search, "products_per_sample", lambda e, method: 1.0)
    return made, compiled


def test_the_largest_batches_and_the_fewest_micro_batches(setup):
    made, compiled = setup
    rows, unfit, left = search.Candidates(made).rows()
    assert not (unfit or left) and len(compiled) == len(set(compiled))
    found = {(row.remat, row.steps): row.point.batch for row in rows}
    for remat, (bytes_a_row, _) in COSTS.items():
        largest = (42_010 - FIXED) // (bytes_a_row + BATCH)
        assert found.pop((remat, 1)) == min(largest, 1024)
        if largest < 1024:  # as on one device, so any batch is divided
            steps = next(k for k in (2**i for i in range(11)) if work(remat, k, 1024) <= 42_010)
            assert found.pop((remat, steps)) == 1024
    assert not found
    # Those with the whole batch are first, the fastest of them ahead.
    whole = [row for row in rows if row.point.batch == 1024]
    assert rows[: len(whole)] == whole and whole[0].remat is None and whole[0].steps > 1
    assert [row.rate for row in whole] == sorted((row.rate for row in whole), reverse=True)
    lines = search.table(rows, made).splitlines()
    assert len(lines) == len(rows) + 2 and lines[1].split()[0] == "None"


def test_a_search_that_was_ended_goes_on(setup, monkeypatch):
    made, compiled = setup
    monkeypatch.setattr(search, "MINUTES", -1)
    rows, _, left = search.Candidates(made).rows()
    assert rows == [] and left == [None, *search.POLICIES[:-1]] and not compiled  # its own first
    monkeypatch.setattr(search, "MINUTES", 30)
    monkeypatch.setattr(search, "POLICIES", search.POLICIES[:2])
    before, *_ = search.Candidates(made).rows()
    count = len(compiled)
    assert count
    monkeypatch.setattr(search, "MINUTES", -1)
    assert search.Candidates(made).rows() == (before, [], [])
    assert len(compiled) == count
    other = dataclasses.replace(made, memory=made.memory + 1)  # nothing is kept of these devices
    assert search.Candidates(other).rows()[0] == []


def test_the_first_that_fits_as_the_config_says(setup, monkeypatch, capsys):
    made, _ = setup
    shown = []

    def show_steps(chosen, with_roofline):
        experiment, method = chosen.experiment, chosen.method
        assert method.unroll == made.method.unroll
        assert (method.remat, method.accumulate_steps) == (
            experiment.method["remat"],
            experiment.method["accumulate_steps"],
        )
        shown.append((method.remat, experiment.global_batch))
        if method.remat is None:
            raise programs.TooLargeError("Written out it does not fit.")

    monkeypatch.setattr(search.report, "show_steps", show_steps)
    monkeypatch.setattr(search.report, "show_evaluators", lambda chosen: shown.append("evals"))
    search.search(made, with_roofline=False)
    assert shown == [(None, 1024), ("qkv,attention,out,hidden", 1024), "evals"]
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[:2] == ["--config.global_batch=1024", f"--config.method.remat={shown[1][0]}"]


def test_what_cannot_be_searched(setup, capsys):
    made, _ = setup
    with pytest.raises(ConfigError, match="memory of a TPU v5 lite is not known"):
        search.search(dataclasses.replace(made, memory=None), False)
    with pytest.raises(programs.TooLargeError, match="Nothing that was tried fits 1 x"):
        search.search(dataclasses.replace(made, memory=held(made.state)), False)
    assert "No batch fits with: None; full; dots; qkv" in capsys.readouterr().out


@pytest.mark.slow
def test_this_machine_as_a_tpu(tiny, capsys, monkeypatch, tmp_path):
    """Compiled for its CPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = dataclasses.replace(
        tiny, memory=3 * held(tiny.state) + 40 * 2**20, device_kind="TPU v5 lite"
    )
    search.search(made, with_roofline=True)
    text = capsys.readouterr().out
    assert "MFU is at most" in text and "retrieval: encode_text of 4 rows" in text
    assert text.splitlines()[-1].startswith("  --config.global_batch=")
