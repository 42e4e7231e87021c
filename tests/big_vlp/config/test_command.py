"""The start of programs that take a config: what is wrong is one line with the nearest name."""

import json
import subprocess
import sys

import ml_collections
import pytest
from absl import flags

from big_vlp import command
from big_vlp.experiment import ConfigError, Experiment
from input_pipeline.checks import errors

CONFIG = """
import ml_collections

from big_vlp.recipes import parse_options


def get_config(arg=None):
    options = parse_options(arg, model="small", wide=False)
    return ml_collections.ConfigDict(
        dict(steps=3, optim=dict(rate=0.5, norm=None, switch=False, name="adam", sizes=(1, 2)))
    )
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    return tmp_path / "tiny.py"


@pytest.fixture
def program(file):
    """Parses the flags of a program as it starts: arguments -> the config."""
    command.define_config()
    command.define_run("")
    flags.DEFINE_integer("step", None, "", lower_bound=0)

    def parse(*arguments, config=file):
        command.parse(["program", f"--config={config}", "--workdir=w", *arguments])
        return flags.FLAGS.config

    yield parse
    for name in ("config", "workdir", "print_config", "step"):
        delattr(flags.FLAGS, name)
    flags.FLAGS.mark_as_parsed()


def stopped(call, *arguments, **options) -> str:
    with pytest.raises(SystemExit) as error:
        call(*arguments, **options)
    message = error.value.code
    assert message.startswith("error: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    "argument, path, expected",
    [
        ("--config.steps=7", "steps", 7),
        ("-config.steps=7", "steps", 7),
        ("--config.steps=2.5", "steps", 2.5),  # refused by its bounds, as in the file
        ("--config.steps=nan", "steps", "nan"),
        ("--config.optim.rate=1", "optim.rate", 1.0),
        ("--config.optim.rate=-1e-3", "optim.rate", -0.001),
        ("--config.optim.norm=1.5", "optim.norm", 1.5),
        ("--config.optim.rate=None", "optim.rate", None),
        ("--config.optim.switch=true", "optim.switch", True),
        ("--config.optim.switch", "optim.switch", True),
        ("--noconfig.optim.switch", "optim.switch", False),
        ("--config.optim.name=3", "optim.name", "3"),
        ("--config.optim.name=None", "optim.name", None),
        ("--config.optim.sizes=(4,5)", "optim.sizes", (4, 5)),
        ("--config.optim.sizes=4", "optim.sizes", (4,)),
        ("--config.optim.fresh=4", "optim.fresh", 4),
        ("--config.optim={'rate': 2.0}", "optim", {"rate": 2.0}),
    ],
)
def test_a_change_on_the_command_line(program, argument, path, expected):
    config = program(argument)
    for key in path.split("."):
        config = config[key]
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    assert (str(config), type(config)) in (
        (str(expected), type(expected)),
        (str(expected), float),
    )


def test_a_value_that_must_be_given(file):
    config = ml_collections.ConfigDict(dict(optim=dict(rate=1.0)))
    config.steps = ml_collections.config_dict.required_placeholder(int)
    with pytest.raises(ConfigError, match="a value that must be given is not"):
        Experiment.from_config(config)
    command.change(config, "steps", "3")
    assert config.steps == 3
    config.steps = None
    with pytest.raises(command.CommandError, match=r"did you mean 'optim'\?"):
        command.change(config, "optm.rate", "1")


def test_values_may_stand_apart_and_later_ones_count(program):
    config = program("--config.steps", "7", "--config.optim.rate", "-2", "--config.steps=9")
    assert (config.steps, config.optim.rate) == (9, -2.0)
    assert config.is_locked


def test_names_of_flags_have_either_dash_and_values_are_as_given(program):
    program("--print-config", "--workdir", "my-own-run")
    assert flags.FLAGS.print_config and flags.FLAGS.workdir == "my-own-run"
    program("--noprint-config", "--workdir=a/x--my-run")
    assert not flags.FLAGS.print_config and flags.FLAGS.workdir == "a/x--my-run"


@pytest.mark.parametrize(
    "argument, parts",
    [
        ("--config.optm.rate=1", ["--config.optm.rate", "'optm'; did you mean 'optim'?"]),
        ("--config.optim=3", ["--config.optim=3", "a section", "'rate'"]),
        ("--config.steps.rate=3", ["config.steps is 3, no section"]),
        ("--config.optim.norm.x=3", ["config.optim.norm is None, no section"]),
        ("--config.optim.rate=true", ["--config.optim.rate=true", "a number, no switch"]),
        ("--config.optim.switch=maybe", ["--config.optim.switch=maybe", "true or false"]),
        ("--confg=x", ["confg", "Did you mean: config"]),
        ("--confg.steps=3", ["confg.steps", "--config.KEY=VALUE"]),
        ("--step=-1", ["--step=-1"]),
        ("--step=x", ["--step=x"]),
        ("stray", ["'stray'"]),
    ],
)
def test_a_wrong_argument(program, argument, parts):
    message = stopped(program, argument)
    assert all(part in message for part in parts), message


def test_a_missing_flag(program, file):
    assert "The flag --workdir is missing." in stopped(
        command.parse, ["program", "--config", str(file)]
    )
    flags.FLAGS.unparse_flags()
    flags.FLAGS["config"].unparse()
    assert "The flag --config is missing." in stopped(command.parse, ["program", "--workdir=w"])


@pytest.mark.parametrize(
    "argument, parts",
    [
        ("tiny.py:modle=small", ["tiny.py: ", "'modle'; did you mean 'model'?"]),
        ("tiny.py:wide=maybe", ["tiny.py: ", "wide is a switch"]),
        ("tny.py", ["no config file", "tny.py; did you mean", "tiny.py?"]),
        ("nowhere/tiny.py", ["no config file", "there is no directory"]),
        (".", ["is a directory", "tiny.py"]),
        ("syntax.py", ["syntax.py, line 2: "]),
        ("empty.py", ["empty.py has no function get_config"]),
        ("nothing.py", ["get_config returned None"]),
        ("nothing.py:wide", ["takes no options"]),
        ("needs.py", ["needs options"]),
        ("reads.py", ["reads.py: ", "No such file", "gone.txt"]),
    ],
)
def test_a_config_file_that_cannot_be_loaded(program, file, argument, parts):
    (file.parent / "syntax.py").write_text("import os\ndef get_config(:\n")
    (file.parent / "empty.py").write_text("")
    (file.parent / "nothing.py").write_text("def get_config():\n    pass\n")
    (file.parent / "needs.py").write_text("def get_config(arg):\n    pass\n")
    (file.parent / "reads.py").write_text("def get_config():\n    return open('gone.txt')\n")
    message = stopped(program, config=file.parent / argument)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("bug", ["missing_name", "1 + 'a'", "{}['key']", "import_module('gone')"])
def test_a_bug_of_the_config_file_keeps_its_traceback(program, file, capsys, bug):
    text = f"from importlib import import_module\n\ndef inner():\n    return {bug}\n\n"
    file.write_text(f"{text}def get_config():\n    return inner()\n")
    message = stopped(program)
    assert f"{file}, line 4: " in message and "Error: " in message
    shown = capsys.readouterr().err
    assert "in get_config" in shown and f"return {bug}" in shown
    assert "absl" not in shown and "command.py" not in shown


def test_tracebacks_of_one_line_errors_on_demand(monkeypatch, capsys):
    def fail():
        try:
            raise KeyError("cause")
        except KeyError as error:
            try:
                raise ValueError(f"for the user: {error}") from error
            except ValueError as error:
                errors.stop(error)

    assert stopped(fail) == "error: for the user: 'cause'"
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("BIG_VLP_TRACEBACK", "1")
    stopped(fail)
    assert "Traceback" in (shown := capsys.readouterr().err) and "KeyError" in shown


@pytest.mark.parametrize(
    "name",
    [
        "big_vlp.train",
        pytest.param("big_vlp.evaluate", marks=pytest.mark.slow),
        "big_vlp.show batch",
    ],
)
def test_programs_start_by_it(name, tmp_path):
    arguments = ["--config", "tests/tiny_config.py:methd=clip"]
    if "show" not in name:
        arguments += ["--workdir", str(tmp_path)]
    found = subprocess.run(
        [sys.executable, "-m", *name.split(), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 1
    (line,) = found.stderr.strip().splitlines()
    assert line.startswith("error: ") and "did you mean 'method'?" in line


def test_a_section_that_the_recipe_leaves_out(program):
    """Every key that a part accepts can be given; what it does not accept, the part refuses."""
    config = program(
        "--config.mesh.fsdp=4", "--config.plan.sizes=(16,32)", "--config.init.a.step=3"
    )
    assert config.mesh.to_dict() == {"fsdp": 4} and config.plan.sizes == (16, 32)
    assert config.init.to_dict() == {"a": {"step": 3}}


def test_the_config_is_printed_with_its_defaults(tmp_path):
    options = ["--config", "tests/tiny_config.py:method=clip", "--print_config"]
    for more, key in (([], 1), (["--config.mesh.tensor=2", "--config.optim.clip_norm=1.0"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "big_vlp.train", *options, *more],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        printed = json.loads(done.stdout)
        assert printed["mesh"]["tensor"] == key and printed["max_bad_steps"] == 20
