"""The benchmarks' runner: it lists them, runs one and saves it, and names what it does not know."""

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import pytest

from big_vlp.experiment import Experiment
from input_pipeline.files.buckets import storage_path
from input_pipeline.files.whole import write_whole
from tests.benchmarks import __main__ as runner
from tests.benchmarks import accelerator, soak
from tests.benchmarks.accelerator import child, flops, kernels, models, recipes, steps

ROOT = Path(__file__).parent.parent


def run(*args, **variables):
    command = [sys.executable, "-m", "tests.benchmarks", *args]
    env = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False, env=env)


def test_without_names_all_are_listed():
    listed = run()
    assert listed.returncode == 0, listed.stderr
    for name in (
        "accelerator",
        "clip_step",
        "cosmos_step",
        "end_to_end",
        "flops",
        "loader",
        "soak",
        "tpu_memory",
    ):
        assert f"{name}: " in listed.stdout


def test_a_row_that_comes_by_itself():
    assert runner.line({"row": "3", "case": "x", "ms": 1.0}) == "3  x: ms=1"
    assert runner.line({"case": "x", "ms": 1.0, "target": None}) == "x: ms=1"


def test_the_soak_hurts_at_the_same_moments_each_time():
    found = soak.moments(2000, 20, seed=0)
    assert found == soak.moments(2000, 20, seed=0) != soak.moments(2000, 20, seed=1)
    assert [kind for kind, _ in found].count("SIGSTOP to one") == 4
    steps = [moment for _, moment in found if isinstance(moment, int)]
    assert steps == sorted(steps) and 10 < len(steps) < 20 and steps[-1] < 1900


def test_the_soak_sees_a_difference():
    log = {(0, "train", "loss"): 2.0, (1, "train", "loss"): 1.0}
    assert soak.difference(log, dict(log)) == 0
    assert soak.difference(log, {**log, (1, "train", "loss"): 1.5}) == 0.5
    assert soak.difference(log, {(0, "train", "loss"): 2.0}) == soak.difference({}, {}) == math.inf


def test_the_soak_sees_what_is_left(start_bucket_server, tmp_path):
    server = start_bucket_server("gs")
    server.make_bucket(soak.BUCKET)
    (tmp_path / "tmp").mkdir()

    def write(*names):
        for name in names:
            write_whole(storage_path(f"gs://{soak.BUCKET}/{name}"), LINE)

    for run in ("alone", "hurt"):
        write(f"{run}/metrics.jsonl", f"{run}/metrics-00001.jsonl")
        write(*(f"{run}/checkpoints/20/{name}" for name in ("commit_success.txt", "model/d/x")))
    assert soak.left_behind(server, tmp_path) == []
    logs = [soak.read_log(server, run) for run in ("alone", "hurt")]
    assert logs[0] == logs[1] == {(0, "train", "loss"): 1.5}
    write("hurt/lease/3", "hurt/checkpoints/40/model/d/x", "alone/x.orbax-checkpoint-tmp/y")
    (tmp_path / "tmp" / "forgotten").touch()
    found = soak.left_behind(server, tmp_path)
    assert found == [
        "alone/x.orbax-checkpoint-tmp/y", "hurt/lease/3", "40", "hurt/checkpoints/40, incomplete",
        str(tmp_path / "tmp" / "forgotten"),
    ]  # fmt: skip


LINE = b'{"step": 0, "time": 1, "split": "train", "values": {"loss": 1.5, "examples_per_s": 3}}\n'


def test_a_benchmark_is_shown_and_saved(tmp_path):
    file = tmp_path / "results.json"
    done = run("loader:num_images=2,repeats=1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text())
    assert saved["loader"]["options"] == {"num_images": 2, "repeats": 1}
    assert {"python", "jax", "numpy"} <= saved["environment"]["versions"].keys()
    assert saved["environment"]["cpu"] and saved["environment"]["cores"] >= 1
    rows = {row["case"]: row for row in saved["loader"]["rows"]}
    assert rows["geometry"]["target"] == 4
    for case, row in rows.items():
        assert row["ours_per_s"] > 0 and row["theirs_per_s"] > 0 and case in done.stdout


def test_wrong_names_and_options_are_explained():
    unknown = run("speed")
    assert unknown.returncode == 2 and "choose from accelerator, catlip_step" in unknown.stderr
    option = run("flops:batches=2")
    assert option.returncode == 2 and "Unknown config option 'batches'" in option.stderr


def test_saved_rows_are_json_whatever_they_hold(tmp_path):
    file = tmp_path / "rows.json"
    runner.save(file, {"x": {"rows": [{"error": math.nan, "all": (1.0, math.inf)}]}})
    saved = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert saved["x"] == {"rows": [{"error": "nan", "all": [1.0, "inf"]}]}
    assert list(tmp_path.iterdir()) == [file]


def test_without_an_accelerator_its_benchmark_is_one_error(tmp_path):
    done = run("accelerator", "--json", str(tmp_path / "rows.json"), JAX_PLATFORMS="cpu")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: accelerator: jax sees no accelerator here, only a CPU (JAX_PLATFORMS='cpu'); "
        "accelerator:tiny=true runs it in small."
    ]
    unknown = run("accelerator:tiny=true,only=c+g")
    assert unknown.returncode == 1 and "no rows 'g'" in unknown.stderr


def test_attention_on_a_cpu(tmp_path):
    file = tmp_path / "rows.json"
    done = run("accelerator:tiny=true,minutes=30,only=c", "--json", str(file))
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["accelerator"]["rows"]
    assert [row["row"] for row in rows] == list("accccccc"[: len(rows)])
    assert len(done.stdout.splitlines()) == len(rows)
    check_attention(rows)


def check_attention(rows):
    rows = [row for row in rows if row["row"] == "c"]
    assert {row["case"].rpartition(", ")[2] for row in rows} == {"xla", "cudnn"}
    for row in rows:
        if row["case"].endswith("cudnn"):  # which a CPU has not: the next is tried all the same
            assert "cuDNN" in row["error"]
        else:
            assert row["picked"] == ("mask" not in row["case"])  # which models have not
            assert row["forward_ms"] > 0 and row["both_ms"] > 0
            errors = [row[f"{name}_error"] for name in ("out", "dq", "dk", "dv")]
            assert all(0 < error < 0.05 for error in errors), row


@pytest.mark.slow
def test_all_of_the_accelerator_benchmark_in_small(tmp_path):
    file = tmp_path / "rows.json"
    done = run("accelerator:tiny=true,minutes=30", "--json", str(file))
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text())["accelerator"]
    assert saved["options"] == {"minutes": 30.0, "tiny": True, "only": ""}
    rows = saved["rows"]
    letters = [row["row"] for row in rows]
    assert letters == [*"adedf", *4 * "c", "b", *2 * "c"]
    found = dict(zip(letters, rows))
    assert found["a"]["platform"] == "cpu" and "jax" in found["a"]["versions"]
    for row in (rows[1], rows[3]):
        assert row["batch"] == 4 and row["step_ms"] > 0 and row["tflops"] > 0
        assert row["mfu"] is None and math.isfinite(row["loss"]) and row["too_large"] == []
    torch = found["e"]
    assert torch.get("skipped") == "torch is not installed" or torch["batch"] == 4
    shares = [kernel["share"] for kernel in found["f"]["kernels"]]
    assert 0 < len(shares) <= 25 and shares == sorted(shares, reverse=True) and sum(shares) <= 1.01
    check_attention(rows)
    recipe = next(row for row in rows if row["row"] == "b")
    assert len(recipe["losses"]) == 3
    for ours, theirs in zip(recipe["losses"], recipe["losses_cpu_fp32"]):
        assert ours == pytest.approx(theirs, rel=0.02)
    assert recipe["evaluations"].keys() == recipe["evaluations_cpu_fp32"].keys()
    assert {"written/exact_match", "captions/loss"} <= recipe["evaluations"].keys()


@pytest.fixture
def calls():
    made = child.Child({})
    yield made
    made.close()


def test_a_call_that_hangs_or_dies_says_so_and_the_next_is_made(calls):
    started = time.monotonic()
    hung = calls.call("signal:pause", {}, 3)["error"]
    assert hung.startswith("no answer within 3 s") and time.monotonic() - started < 30
    assert calls.call("os:abort", {}, 60)["error"].startswith("the process was killed by SIGABRT")
    assert calls.call("json:loads", {}, 60)["error"].startswith("TypeError: loads() missing")
    same = calls._running[0].pid  # a function's own error is no reason for a new process
    assert calls.call("time:get_clock_info", {"no": 1}, 60)["error"].startswith("TypeError")
    assert calls._running[0].pid == same
    assert calls.call("sysconfig:get_paths", {}, 60)["stdlib"]
    assert calls.call("sysconfig:get_paths", {}, 60, alone=True)["stdlib"]
    assert calls._running is None


def test_rows_that_fail_or_come_too_late(monkeypatch):
    def call(self, function, arguments, limit, alone=False):
        if "devices" in function:
            return {"platform": "gpu", "devices": 1, "peak_tflops": None}
        return {"error": "the process was killed by SIGSEGV"}

    monkeypatch.setattr(child.Child, "call", call)
    rows = list(accelerator.measure(only="c"))
    used, beside = accelerator.ATTENTION_OF_RECIPES, accelerator.ATTENTION_BESIDE
    assert len(rows) == 1 + 2 * len({*used, *beside})
    assert {row.get("error") for row in rows[1:]} == {"the process was killed by SIGSEGV"}
    monkeypatch.setattr(accelerator, "LEAST", 3600)
    late = list(accelerator.measure(only="b+c"))
    assert [row["row"] for row in late] == list("acbc")
    assert {row["skipped"] for row in late[1:]} == {"no time left"}
    assert late[2]["case"] == f"{len(recipes.cases())} more"
    assert "cogvlm:runlocal,method.layout=general" in late[2]["cases"]


def test_the_time_of_kernels_is_their_own():
    events = [(0, 10, "loop"), (1, 4, "dot"), (5, 9, "call"), (6, 8, "dot"), (10, 12, "copy")]
    assert kernels.own_time(events) == Counter(loop=3, dot=5, call=2, copy=2)


def test_flops_are_linear_in_layers(tmp_path):
    counted = flops.count("CatLIP B/16", True, str(tmp_path))
    expected = flops.flops("CatLIP B/16", True, str(tmp_path), {"image": 4})
    assert flops.total(counted, {"image": 4}) == pytest.approx(expected, rel=1e-4)


def test_every_recipe_with_a_laptop_version_is_run():
    cases = recipes.cases()
    texts = {path.stem: path.read_text() for path in (ROOT / "configs").glob("*.py")}
    laptop = {name for name, text in texts.items() if "runlocal" in text}
    assert laptop <= {case["recipe"] for case in cases}
    for case in cases:
        config = recipes.make_config(**case, dtype="bfloat16")
        experiment = Experiment.from_config(config)
        assert experiment.method["dtype"] == "bfloat16" and experiment.total_steps == 3
        writes = experiment.method["name"] == "cogvlm"
        assert ("written" in experiment.evals) == writes
    general = next(case for case in cases if case["values"])
    assert recipes.make_config(**general, dtype="float32").method.layout == "general"


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_full_size_steps_lower(tmp_path, name):
    for remat, unroll in models.variants(name, tiny=False):
        candidate = models.candidates(name, tiny=False)[-1]
        layers = {"text": candidate["layers"]} if "layers" in candidate else {}
        config = models.make_config(name, str(tmp_path), False, remat, unroll, layers)
        one = steps.Step(config, candidate["batch"])
        one.lower()
        rows = steps.random_rows(one)
        assert {k: (x.shape, x.dtype) for k, x in rows.items()} == (
            {k: (x.shape, x.dtype) for k, x in one.rows.items()}
        )
        assert one.held > sum(x.nbytes for x in jax.tree.leaves(rows))
