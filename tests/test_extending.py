"""docs/extending.md: its files are written as they stand there, and used from outside."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import pytest

from big_vlp.command import load_config
from big_vlp.evaluate import evaluate
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.methods import Method
from big_vlp.run.log import read_log
from big_vlp.telemetry.meter import CLOCKED
from big_vlp.train import train

ROOT = Path(__file__).parents[1]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config of the page, whose files can be imported."""
    text = (ROOT / "docs" / "extending.md").read_text()
    files = dict(re.findall(r"^`(my_lab/\w+\.py)`\n\n```python\n(.*?)^```", text, re.M | re.S))
    assert len(files) == 4
    (tmp_path / "my_lab").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    yield load_config(str(tmp_path / "my_lab" / "config.py"))
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def logged(workdir):
    return [
        (x["step"], x["split"], {k: v for k, v in x["values"].items() if k not in CLOCKED})
        for x in read_log(workdir)
    ]


def test_parts_of_ones_own_train_resume_and_are_evaluated(config, tmp_path):
    whole = tmp_path / "whole"
    train(config, whole)
    lines = logged(whole)
    first, *_, (step, split, values) = lines
    assert first[2]["loss"] > 1 and (step, split) == (60, "worst")
    assert values["worst_class_accuracy"] > 0.9
    assert (whole / "contact_sheet.png").exists()

    shutil.copytree(whole, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "60")
    train(config, tmp_path / "resumed")
    assert logged(tmp_path / "resumed") == lines
    evaluate(config, whole, at_step=30)
    assert (whole / "evaluate" / "30.json").exists()


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("data.name", "my_lab.ramp", "Unknown data source 'my_lab.ramp'.*see PYTHONPATH"),
        ("data.sise", 3, "unexpected keyword argument 'sise'; did you mean 'size'"),
        ("method.name", "my_lab.ramps", "Module my_lab.ramps has no Method"),
        ("method.patches", 3, "patches=3 must divide"),
        ("evals.worst.min_cuont", 1, "'min_cuont'; did you mean 'min_count'"),
    ],
)
def test_what_is_wrong_with_them_is_one_error(config, tmp_path, path, value, message):
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[key] = value
    with pytest.raises(ConfigError, match=message):
        experiment = Experiment.from_config(config)
        experiment.make_loader()
        experiment.make_evaluators(experiment.make_method(), experiment.make_mesh())


def test_what_a_subclass_names_without_a_default_must_be_given():
    @dataclasses.dataclass(frozen=True)
    class Mine(Method):
        width: int
        ema_decay: float

    with pytest.raises(TypeError, match="ema_decay"):
        Mine(width=3)
    assert Mine(3, 0.5).dtype == "float32" and Mine(3, 0.5).vocab_size is None
