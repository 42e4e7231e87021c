"""The whole program: exact resume after every kind of stop, and faults met on the way."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from big_vlp.evaluate import evaluate
from big_vlp.experiment import ConfigError
from big_vlp.run.commit import commit
from big_vlp.run.log import read_log
from big_vlp.storage.checkpoint import CheckpointError, Checkpoints
from big_vlp.telemetry.meter import CLOCKED
from big_vlp.train import NonFiniteError, train
from input_pipeline.loader import Loader
from tests.big_vlp.parallel.clusters import TERMINATED

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "tests" / "tiny_config.py"
TIMEOUT = 300
# Collectives block threads, several of each device: with few threads they may wait for ever.
EIGHT_DEVICES = {"JAX_NUM_CPU_DEVICES": "8", "NPROC": "64"}


def tiny_config(arg=None, **changes):
    spec = importlib.util.spec_from_file_location("tiny_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(arg)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture(scope="session")
def command():
    """Starts `python -m big_vlp.train` on the tiny config."""

    def start(workdir, *options):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        run = [sys.executable, "-m", "big_vlp.train", f"--config={CONFIG}", f"--workdir={workdir}"]
        return subprocess.Popen(
            [*run, *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def uninterrupted(command, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    process = command(workdir)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return workdir, output


def training_metrics(workdir):
    """All numbers of every step that do not depend on the clock."""
    return [
        (line["step"], {k: v for k, v in line["values"].items() if k not in CLOCKED})
        for line in read_log(workdir)
        if line["split"] == "train"
    ]


def evaluations(workdir):
    return [(x["step"], x["values"]) for x in read_log(workdir) if x["split"] != "train"]


def wait_for_step(process, workdir, step):
    log = workdir / "metrics.jsonl"
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.02)
    pytest.fail(f"The run did not reach step {step}:\n{process.communicate(timeout=TIMEOUT)[0]}")


def test_a_run_leaves_what_it_says(uninterrupted):
    workdir, output = uninterrupted
    for name in ("checkpoints", "curves.png", "contact_sheet.png", "metrics.jsonl"):
        assert (workdir / name).exists()
        assert str(workdir / name) in output
    steps = [step for step, _ in training_metrics(workdir)]
    assert steps == list(range(30))
    assert [step for step, _ in evaluations(workdir)] == [20, 30]
    assert Checkpoints(workdir, read_only=True).all_steps() == [25, 30]
    assert "image_tower/patch/kernel" in output  # the parameter table


def test_resume_after_kill_is_bit_equal_with_other_workers(command, uninterrupted, tmp_path):
    process = command(tmp_path)
    wait_for_step(process, tmp_path, 13)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)
    resumed = command(tmp_path, "--config.loader.num_workers=2")
    output, _ = resumed.communicate(timeout=TIMEOUT)
    assert resumed.returncode == 0, output
    assert "Going on from" in output
    assert "loader.num_workers: 0 -> 2" in output
    assert training_metrics(tmp_path) == training_metrics(uninterrupted[0])
    assert evaluations(tmp_path) == evaluations(uninterrupted[0])


@pytest.mark.slow
def test_sigterm_saves_and_resumes(command, uninterrupted, tmp_path):
    process = command(tmp_path)
    wait_for_step(process, tmp_path, 6)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == TERMINATED, output
    stopped_at = Checkpoints(tmp_path, read_only=True).latest_step()
    assert f"step {stopped_at} is saved" in output
    assert training_metrics(tmp_path)[-1][0] == stopped_at - 1  # nothing is done twice
    resumed = command(tmp_path)
    output, _ = resumed.communicate(timeout=TIMEOUT)
    assert resumed.returncode == 0, output
    assert training_metrics(tmp_path) == training_metrics(uninterrupted[0])


@pytest.mark.slow
def test_catlip_resumes_across_image_sizes_bit_equally(tmp_path):
    """Sizes and batches follow the plan; statistics, average and curriculum go on with the rest."""
    changes = dict(total_steps=8, checkpoint__every_steps=3, checkpoint__keep_latest=5)
    config = tiny_config("method=catlip", **changes)
    train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for step in (6, 8):
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / str(step))
    train(config, tmp_path / "killed")
    assert training_metrics(tmp_path / "killed") == training_metrics(tmp_path / "whole")
    if commit(ROOT) is not None:
        starts = (tmp_path / "killed" / "COMMIT").read_text()
        assert re.findall(r"step (\d+): ", starts) == ["0", "3"]
    assert evaluations(tmp_path / "killed") == evaluations(tmp_path / "whole")
    assert (tmp_path / "whole" / "labels.json").exists()

    # The same file in another order would give each class another meaning.
    lines = Path(config.views.vocabulary).read_text().splitlines(keepends=True)
    comments = [line for line in lines if line.startswith("#")]
    words = [line.split("\t") for line in lines if not line.startswith("#")]
    (tmp_path / "other.tsv").write_text(
        "".join(comments) + "".join(f"{key}\t1\t{name}" for key, _, name in reversed(words))
    )
    config.views.vocabulary = str(tmp_path / "other.tsv")
    config.evals.words.data.vocabulary = config.views.vocabulary
    with pytest.raises(ConfigError, match="was trained on 37 classes"):
        train(config, tmp_path / "whole")


ON_EIGHT_DEVICES = """
import sys
from big_vlp.parallel import placing
from big_vlp.train import train
from tests.big_vlp.train.test_train import tiny_config

placing.FSDP_MIN_BYTES = 64
train(tiny_config(mesh__fsdp=2, mesh__tensor=2), sys.argv[1])
"""


@pytest.mark.slow
def test_eight_devices_go_on_from_one(uninterrupted, tmp_path):
    """A checkpoint moves to another mesh, on which everything is split, and training is the same:
    loader, augmentation, loss, update, teacher."""
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "30")
    run = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES, str(tmp_path / "run")],
        env={**os.environ, **EIGHT_DEVICES},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "on each of 8 devices" in run.stderr
    assert "Going on from" in run.stderr
    found, expected = (training_metrics(path)[25:] for path in (tmp_path / "run", uninterrupted[0]))
    assert [step for step, _ in found] == [25, 26, 27, 28, 29]
    for (_, ours), (_, plain) in zip(found, expected):
        for name, value in plain.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-5, err_msg=name)


def test_evaluate_gives_what_training_logged(uninterrupted):
    workdir = uninterrupted[0]
    evaluate(tiny_config(), workdir)
    result = json.loads((workdir / "evaluate" / "30.json").read_text())
    logged = dict(evaluations(workdir))[30]
    for name, value in logged.items():
        np.testing.assert_allclose(result["retrieval"][name], value, rtol=1e-5, err_msg=name)


def test_evaluate_follows_a_run_to_its_end(uninterrupted, tmp_path):
    (tmp_path / "checkpoints").symlink_to(uninterrupted[0] / "checkpoints")
    evaluate(tiny_config(), tmp_path, follow=True)
    assert sorted(p.name for p in (tmp_path / "evaluate").glob("*[0-9].json")) == [
        "25.json",
        "30.json",
    ]


def test_evaluate_takes_a_checkpoint_of_step_0(uninterrupted, tmp_path):
    """SIGTERM before the first step leaves one."""
    shutil.copytree(uninterrupted[0] / "checkpoints" / "25", tmp_path / "checkpoints" / "0")
    evaluate(tiny_config(), tmp_path)
    assert [p.name for p in (tmp_path / "evaluate").glob("*[0-9].json")] == ["0.json"]


def test_evaluate_without_the_checkpoint(uninterrupted, tmp_path):
    with pytest.raises(CheckpointError, match="No complete checkpoint"):
        evaluate(tiny_config(), tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; it has \[25, 30\]"):
        evaluate(tiny_config(), uninterrupted[0], at_step=7)


def poison(monkeypatch, bad_step):
    """Puts NaN into the images of one step; float images pass to the model as they are."""
    clean = Loader.batch

    def batch(self, step, part):
        rows = clean(self, step, part)
        rows["image"] = rows["image"].astype(np.float32) / 255
        if step == bad_step:
            rows["image"][0] = np.nan
        return rows

    monkeypatch.setattr(Loader, "batch", batch)


def test_a_bad_batch_stops_the_run_and_is_named(monkeypatch, tmp_path):
    poison(monkeypatch, bad_step=3)
    config = tiny_config("method=clip", total_steps=6, evals={}, checkpoint__every_steps=1)
    with pytest.raises(NonFiniteError, match="step 3") as error:
        train(config, tmp_path)
    assert "nonfinite.json" in str(error.value)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["first_bad_step"] == 3
    assert len(report["record_ids"]) == 8
    assert all(i.startswith("scenes-train-") for i in report["record_ids"])


def test_a_bad_batch_can_be_skipped(monkeypatch, tmp_path):
    poison(monkeypatch, bad_step=3)
    train(tiny_config("method=clip", total_steps=6, evals={}, on_nonfinite="skip"), tmp_path)
    metrics = dict(training_metrics(tmp_path))
    assert np.isnan(metrics[3]["loss"])
    # The step after is finite, so no poisoned weight was kept; the count goes on being shown.
    assert all(np.isfinite(metrics[i]["loss"]) for i in (0, 1, 2, 4, 5))
    assert [metrics[i]["bad_steps"] for i in range(6)] == [0, 0, 0, 1, 1, 1]


def test_checkpoint_of_another_model(uninterrupted, tmp_path):
    (tmp_path / "checkpoints").symlink_to(uninterrupted[0] / "checkpoints")
    wider = tiny_config()
    wider.method.model.image.width = 32
    with pytest.raises(CheckpointError, match=r"image_tower/class_token is \(16,\)") as error:
        train(wider, tmp_path)
    assert "image_token_mapping/kernel is (16, 16), should be (32, 16)" in str(error.value)


def test_a_refused_checkpoint_leaves_the_log_alone(uninterrupted, tmp_path):
    """Opening the log drops the lines of steps to be made again; here none will be."""
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "30")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    wider = tiny_config()
    wider.method.model.image.width = 32
    with pytest.raises(CheckpointError):
        train(wider, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_unknown_key_on_the_command_line(command, tmp_path):
    process = command(tmp_path, "--config.optim.learning_rat=1")
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    assert "learning_rat" in output


def test_unknown_key_in_the_file(tmp_path):
    config = tiny_config()
    config.optim.momentum = 0.9
    with pytest.raises(ConfigError, match=r"config\.optim.*momentum"):
        train(config, tmp_path)
