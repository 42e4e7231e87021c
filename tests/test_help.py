"""The help of every command: what it does, an example, every argument, in one form."""

import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from absl import flags

from input_pipeline import command_line
from input_pipeline.doctor import command as doctor

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_CONFIG = ["big_vlp.train", "big_vlp.evaluate", "big_vlp.compile", "big_vlp.show batch"]
OTHERS = [
    "big_vlp.generate",
    "big_vlp.show",
    "big_vlp.show words",
    "big_vlp.embed",
    "big_vlp.show retrieval",
    "big_vlp.show mistakes",
    "big_vlp.show predictions",
    "big_vlp.show segmentation",
    "big_vlp.show attention",
    "big_vlp.convert",
    "evaluators.answers",
    "evaluators.datasets",
    "evaluators.datasets check",
    "input_pipeline.prepare",
    "input_pipeline.prepare webdataset",
    "input_pipeline.prepare source",
    "input_pipeline.prepare index",
    "input_pipeline.corpus",
    "input_pipeline.corpus filter",
    "input_pipeline.corpus similarity",
    "input_pipeline.doctor",
    "input_pipeline.duplicates",
    "input_pipeline.duplicates hash",
    "input_pipeline.duplicates find",
    "input_pipeline.grounding",
    "input_pipeline.vocabulary",
    "input_pipeline.train_tokenizer",
]
PACKAGES = ("big_vlp.", "evaluators.", "input_pipeline.")
# One word for one thing: flag -> what stands for its value. Several have another kind of file.
VALUES = {
    "captions": {"FIELD,..."},
    "config": {"FILE[:OPTIONS]"},
    "image": {"FILE"},
    "input": {"'DIR/*.tar'", "'DIR/*.parquet'", "DIR|NAME:KEY=VALUE,..."},
    "model": {"DIR"},
    "output": {"DIR", "PNG", "FILE", "FILE.tsv", "FILE.model", "FILE.parquet"},
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
        if "big_vlp" in flags.FLAGS.find_module_defining_flag(name):
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


def documented():
    """The commands without a config that the documents have in blocks of a shell's lines."""
    for path in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                own = words[:2] == ["python", "-m"] and words[2].startswith(PACKAGES)
                if own and "--config" not in words:
                    yield words[2:]


@pytest.mark.parametrize("words", list(documented()), ids=" ".join)
def test_the_commands_of_the_documents_can_be_read(words, monkeypatch):
    read = []
    monkeypatch.setattr(command_line, "run", lambda command, args: read.append(args) or 0)
    monkeypatch.setattr(doctor, "diagnose", lambda *args: read.append(args) or [])
    module = {
        "big_vlp.convert": "big_vlp.convert.__main__",
        "big_vlp.show": "big_vlp.show.__main__",
        "evaluators.answers": "evaluators.answers.shared.command",
        "evaluators.datasets": "evaluators.datasets.command",
        "input_pipeline.corpus": "input_pipeline.corpus.command",
        "input_pipeline.doctor": "input_pipeline.doctor.command",
        "input_pipeline.duplicates": "input_pipeline.duplicates.command",
        "input_pipeline.grounding": "input_pipeline.grounding.command",
        "input_pipeline.prepare": "input_pipeline.prepare.command",
    }.get(words[0], words[0])
    assert importlib.import_module(module).main(words[1:]) == 0
    (args,) = read
    if words[:2] == ["input_pipeline.prepare", "source"] and not args.input.startswith("data/"):
        assert command_line.parse_source(args.input)[1]
