"""The help of every command: what it does, an example, every argument, in one form."""

import re
import runpy
import sys

import pytest
from absl import flags

WITH_CONFIG = ["big_vlp.train", "big_vlp.evaluate", "big_vlp.compile", "big_vlp.show batch"]
OTHERS = [
    "big_vlp.generate",
    "big_vlp.show",
    "big_vlp.show words",
    "big_vlp.convert",
    "input_pipeline.prepare",
    "input_pipeline.prepare webdataset",
    "input_pipeline.prepare source",
    "input_pipeline.prepare index",
    "input_pipeline.doctor",
    "input_pipeline.vocabulary",
    "input_pipeline.train_tokenizer",
]
# One word for one thing: flag -> what stands for its value. Several have another kind of file.
VALUES = {
    "captions": {"FIELD,..."},
    "config": {"FILE[:OPTIONS]"},
    "image": {"FILE"},
    "input": {"'DIR/*.tar'", "DIR|NAME:KEY=VALUE,..."},
    "model": {"DIR"},
    "output": {"DIR", "PNG", "FILE.tsv", "FILE.model"},
    "records": {"N"},
    "seed": {"N"},
    "step": {"N"},
    "weights": {"{model,averaged}"},
    "workdir": {"DIR"},
    "workers": {"N"},
}


@pytest.fixture
def help_of(monkeypatch, capsys):
    """The help of a command, in this process."""
    known = set(flags.FLAGS)

    def show(command):
        module, *words = command.split()
        monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert not ended.value.code
        return capsys.readouterr().out

    yield show
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("command", [*WITH_CONFIG, *OTHERS])
def test_help(command, help_of):
    text = help_of(command)
    usage, rest = text.split("\n\n", 1)
    assert f"usage: python -m {command} " in usage
    assert re.search(rf"^    python -m {command} .*--", rest, re.MULTILINE)  # an example
    own = re.findall(r"^  (--?[a-z].*?)(?:  +(\S.*)|\n {10,}(\S.*))$", rest, re.MULTILINE)
    assert own and own[0][0] == "-h, --help"
    for words, beside, below in own[1:]:
        assert beside or below, words
        name, _, value = words.removeprefix("--").partition(" ")
        if value.startswith("FILE [FILE"):
            value = "FILE"
        assert value in VALUES.get(name, {value}), words
    if command in WITH_CONFIG:
        assert "--config.SECTION.KEY VALUE" in text
        assert "--config FILE[:OPTIONS]" in text and "(required)" in text


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_help_of_training_says_how_to_change_and_print_the_config(help_of):
    text = " ".join(help_of("big_vlp.train").split())
    assert "python -m big_vlp.train --config configs/demo.py --workdir runs/demo" in text
    assert "--config.total_steps=1000" in text and "print the config with all its defaults" in text
