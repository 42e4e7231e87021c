"""Every path that a command, a config or a function takes: a URL that cannot be read is one error
that says so, and never a folder of that name."""

import importlib
import re
from pathlib import Path

import pytest

import big_vlp
from big_vlp.command import CommandError, load_config
from big_vlp.evaluate import evaluate
from big_vlp.experiment import Experiment
from big_vlp.show import __main__ as show
from big_vlp.storage.warm_start import WarmStart
from big_vlp.train import train
from input_pipeline import command_line
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.checks.paths import PathError
from tests.test_help import OTHERS
from tests.tiny_config import get_config

URL = "ftp://server/a/file.tsv"
# What each command cannot do without.
NEEDED = {
    "big_vlp.generate": ["--model", "DIR"],
    "big_vlp.embed": ["--model", "DIR", "--images", "scenes", "--output", "FILE.npz"],
    "big_vlp.show words": ["--model", "DIR", "--image", "FILE"],
    "big_vlp.show segmentation": ["--model", "DIR", "--image", "FILE"],
    "big_vlp.show attention": ["--model", "DIR", "--image", "FILE", "--text", "a"],
    "big_vlp.show retrieval": ["--model", "DIR", "--input", "scenes", "--caption-field", "a"],
    "big_vlp.show mistakes": ["--model", "DIR", "--input", "scenes"],
    "big_vlp.show predictions": [
        *("--predictions", "FILE", "--input", "scenes", "--metric", "vqa")
    ],
    "evaluators.answers": ["--predictions", "FILE", "--input", "scenes", "--metric", "vqa"],
    "evaluators.datasets check": [],
    "big_vlp.convert": ["import", "catlip", "FROM", "TO"],
    "input_pipeline.prepare webdataset": ["--input", "x.tar", "--captions", "a", "--output", "DIR"],
    "input_pipeline.prepare source": ["--input", "scenes", "--output", "DIR"],
    "input_pipeline.prepare index": ["--input", "x.tar", "--output", "DIR"],
    "input_pipeline.corpus filter": [
        *("--input", "x.parquet", "--output", "DIR", "--max-aspect-ratio", "6")
    ],
    "input_pipeline.corpus similarity": [
        *("--input", "x.parquet", "--embeddings", "FILE", "--threshold", "0", "--output", "DIR")
    ],
    "input_pipeline.duplicates hash": ["--input", "scenes", "--output", "DIR"],
    "input_pipeline.duplicates find": ["--hashes", "DIR", "--output", "FILE.parquet"],
    "input_pipeline.doctor": ["PATH"],
    "input_pipeline.grounding": ["--input", "scenes", "--boxes", "x.json", "--output", "DIR"],
    "input_pipeline.vocabulary": ["--input", "scenes", "--output", "FILE.tsv"],
    "input_pipeline.train_tokenizer": [
        *("--input", "scenes", "--vocab-size", "9", "--output", "FILE.model")
    ],
}
ENDS = dict.fromkeys(("big_vlp.convert", "big_vlp.show"), ".__main__")
ENDS["evaluators.answers"] = ".shared.command"
ENDS |= dict.fromkeys(("input_pipeline.doctor", "evaluators.datasets"), ".command")
ENDS |= dict.fromkeys(("input_pipeline.corpus", "input_pipeline.duplicates"), ".command")
ENDS |= dict.fromkeys(("input_pipeline.grounding", "input_pipeline.prepare"), ".command")
OF_A_PATH = re.compile(r"DIR|FILE|PATH|FROM|\bTO\b|PNG|\.tsv")


def program(command):
    module, *words = command.split()
    return importlib.import_module(module + ENDS.get(module, "")).main, words


def parser_of(command, monkeypatch):
    """The parser of a command, or of its part, without running it."""
    main, words = program(command)
    used = []

    class Parsed(Exception):
        pass

    def parse(self, args=None, namespace=None):
        used.append(self)
        if len(used) > len(words):
            raise Parsed
        return super(command_line.Parser, self).parse_known_args(args, namespace)

    with monkeypatch.context() as changed, pytest.raises(Parsed):
        changed.setattr(command_line.Parser, "parse_known_args", parse)
        main([*words, *NEEDED[command]])
    return used[-1]


def test_no_command_is_forgotten():
    parts = {command for command in OTHERS if f"{command} " not in "\n".join([*OTHERS, ""])}
    assert parts - {"big_vlp.show"} == NEEDED.keys()


@pytest.mark.parametrize("command", sorted(NEEDED))
def test_commands(command, monkeypatch, capsys, tmp_path):
    main, words = program(command)
    actions = [
        action
        for action in parser_of(command, monkeypatch)._actions
        if OF_A_PATH.search(str(action.metavar)) and ":PATH" not in action.metavar
    ]
    assert actions
    monkeypatch.chdir(tmp_path)
    for action in actions:
        given, url = list(NEEDED[command]), URL
        if "*" in action.metavar:
            url = "ftp://server/a/*.tar"
        if not action.option_strings:
            given[given.index(action.metavar)] = url
        elif action.option_strings[0] in given:
            given[given.index(action.option_strings[0]) + 1] = url
        else:
            given += [action.option_strings[0], url]
        try:
            status = main([*words, *given])
        except SystemExit as end:
            status = end.code
        said = "".join(capsys.readouterr())
        assert status == 1, action.metavar
        assert re.search("ftp:/+server", said) and "Traceback" not in said, action.metavar
        assert said.count("error: ") + said.count("WRONG ") == 1, action.metavar
        if action.type is not None or "*" not in action.metavar:
            assert "mount the bucket" in said, action.metavar
        assert not list(tmp_path.iterdir()), action.metavar


def test_values_of_configs():
    config = get_config("method=clip")
    config.preprocess.tokenizer = f"sentencepiece:{URL}"
    with pytest.raises(BigVlpError, match=r"config\.views: .* mount the bucket"):
        Experiment.from_config(config).make_views(16)
    config = get_config("method=catlip")
    config.views.vocabulary = URL
    with pytest.raises(BigVlpError, match=r"config\.views: .* mount the bucket"):
        Experiment.from_config(config).make_views(32)


def test_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = get_config("method=clip")
    for call in (
        lambda: train(config, URL),
        lambda: evaluate(config, URL),
        lambda: show.draw_batch(config, 0, URL),
        lambda: big_vlp.load(URL),
        lambda: WarmStart(URL).apply({}, None, None),
    ):
        with pytest.raises(BigVlpError, match="mount the bucket"):
            call()
    with pytest.raises(CommandError, match="is a URL: copy the file to this machine"):
        load_config("gs://bucket/config.py:option=1")
    assert not list(tmp_path.iterdir())


def test_path_arguments(monkeypatch):
    assert command_line.path_argument("out/x.tsv") == Path("out/x.tsv")  # relative paths stay so
    monkeypatch.setenv("HOME", "/somewhere")
    assert command_line.path_argument("~/out") == Path("/somewhere/out")
    with pytest.raises(PathError, match="mount the bucket"):
        command_line.parse_source(URL)
