"""Weights & Biases, with a stand-in for its package."""

import json
import sys

import jax
import pytest

from big_vlp.experiment import ConfigError, Experiment
from big_vlp.run.log import MetricLog, read_log
from big_vlp.telemetry.tracker import Tracker
from tests.big_vlp.config.toy_config import make_config

PACKAGE = """
import json, os

class Run:
    def log(self, values):
        say("log", values)
    def define_metric(self, name, step_metric):
        say("metric", [name, step_metric])
    def finish(self):
        say("finish", None)

def say(what, value):
    if what == os.environ.get("WANDB_FAILS_IN"):
        raise ValueError("no network")
    with open(os.environ["WANDB_SAYS"], "a") as file:
        file.write(json.dumps([what, value]) + "\\n")

def init(**given):
    say("init", given)
    return Run()
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installed; gives what it was told so far."""
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_SAYS", str(tmp_path / "told"))
    yield lambda: [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    sys.modules.pop("wandb", None)


def log_of(workdir, start_step=0, say=lambda text: None, **given):
    tracker = Tracker("vlp", **given).of(workdir, {"seed": 3})
    return MetricLog(workdir, start_step, say=say, tracker=tracker)


def test_it_gets_what_the_log_gets_and_a_run_that_goes_on_is_the_same(package, tmp_path):
    for start in (0, 2):
        log = log_of(tmp_path / "run", start)
        log.write(start, "train", {"loss": 1.5})
        log.write(start + 1, "coco", {"R@1": 0.5})
        log.close()
    told = package()
    assert [what for what, _ in told] == ["init", "metric", "log", "log", "finish"] * 2
    first, second = (value for what, value in told if what == "init")
    assert first == second
    assert first["project"] == "vlp" and first["name"] == "run" and first["config"] == {"seed": 3}
    assert first["resume"] == "allow" and len(first["id"]) == 32
    assert ["metric", ["*", "step"]] in told
    assert ["log", {"step": 0, "train/loss": 1.5}] in told
    assert ["log", {"step": 3, "coco/R@1": 0.5}] in told


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_its_failure_is_said_and_the_log_goes_on(package, tmp_path, monkeypatch, where):
    monkeypatch.setenv("WANDB_FAILS_IN", where)
    said = []
    log = log_of(tmp_path / "run", say=said.append)
    for step in range(3):
        log.write(step, "train", {"loss": 1.0})
    log.close()
    assert [line["step"] for line in read_log(tmp_path / "run")] == [0, 1, 2]
    assert len(said) == 1 and "Weights & Biases" in said[0] and "no network" in said[0]


def test_process_0_alone_tells_it(package, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    log = log_of(tmp_path / "run")
    log.write(0, "train", {"loss": 1.0})
    log.close()
    assert not (tmp_path / "told").exists() and "wandb" not in sys.modules


def test_the_config_asks_for_it(package, tmp_path):
    config = make_config()
    assert Experiment.from_config(config).make_tracker(tmp_path) is None
    config.wandb = dict(project="vlp", entity="lab")
    assert Experiment.from_config(config).make_tracker(tmp_path) is not None
    config.wandb.projekt = "vlp"
    with pytest.raises(ConfigError, match=r"config\.wandb.*projekt"):
        Experiment.from_config(config).make_tracker(tmp_path)
    assert "wandb" not in sys.modules


def test_without_the_package_it_is_one_error(tmp_path, monkeypatch):
    """The folder that its runs leave is no package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    config = make_config()
    config.wandb = dict(project="vlp")
    with pytest.raises(ConfigError, match=r"config\.wandb: .*pip install wandb"):
        Experiment.from_config(config).make_tracker(tmp_path)
