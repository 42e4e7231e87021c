"""The words of the commands: sources, flags, errors."""

import argparse

import pytest

from input_pipeline import command_line
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.command_line import parse_source, written_source


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("scenes", "scenes", {}),
        ("my_lab.mine:size=3", "my_lab.mine", {"size": 3}),
        ("scenes:size=3,split=val", "scenes", {"size": 3, "split": "val"}),
        (
            'webdataset:path=/x,captions=["a", "b"],split_sentences=true',
            "webdataset",
            {"path": "/x", "captions": ["a", "b"], "split_sentences": True},
        ),
        # A comma that is no end: in JSON, and in text where no KEY= follows.
        ('a:x=["p,q=1", "r"],y={"z": "p,q=2"}', "a", {"x": ["p,q=1", "r"], "y": {"z": "p,q=2"}}),
        ("a:x=2014,2017,y=Image Path", "a", {"x": "2014,2017", "y": "Image Path"}),
        ("a:x=,y=k=v", "a", {"x": "", "y": "k=v"}),
        ('a:x="3",y=null', "a", {"x": "3", "y": None}),
    ],
)
def test_a_source_is_one_word(text, name, arguments):
    assert parse_source(text) == (name, arguments)
    assert parse_source(written_source(name, arguments)) == (name, arguments)


def test_what_is_hard_to_write_comes_back():
    arguments = {"x": "3", "y": "a,b=1", "z": "null", "w": "[", "v": "b,"}
    assert parse_source(written_source("a", arguments)) == ("a", arguments)


def test_a_directory_holds_prepared_shards(tmp_path):
    assert parse_source(str(tmp_path)) == ("prepared", {"path": str(tmp_path)})


@pytest.fixture
def parser():
    parser = command_line.Parser(prog="program", description="Does it.\n\n    program --a-b 3")
    parser.add_argument("--a-b", type=int, default=2, metavar="N", help="so many")
    parser.add_argument("--switch", action="store_true", help="whether")
    parser.add_argument("--must", required=True, metavar="X", help="this")
    parser.add_renamed("--old", "--a-b")
    return parser


def test_names_of_flags_have_either_dash(parser):
    for flag in ("--a-b", "--a_b"):
        assert parser.parse_args([flag, "3", "--must=x_y"]).a_b == 3
        assert parser.parse_args([f"{flag}=3", "--must", "x_y"]).must == "x_y"
    assert parser.parse_known_args(["--must=x", "--of_others=1"])[1] == ["--of_others=1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--old", "3"], "error: argument --old: it is called --a-b now"),
        (["--must=x", "--a-b=y"], "error: argument --a-b: invalid int value: 'y'"),
        (["--mus=x"], "error: the following arguments are required: --must"),
        (["--must=x", "stray"], "error: unrecognized arguments: stray"),
    ],
)
def test_a_wrong_word_is_one_line(parser, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"{message}; see program --help\n"


def test_help_tells_defaults_and_what_must_be_given(parser):
    text = parser.format_help()
    assert "Does it.\n\n    program --a-b 3\n" in text
    assert "so many (default: 2)\n" in text and "this (required)\n" in text
    assert "whether\n" in text and "--old" not in text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BigVlpError("mend it"), 1),
        (ValueError("mend it"), 1),
        (OSError("mend it"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_how_a_command_ends(error, status, capsys):
    def command(args):
        raise error

    assert command_line.run(command, argparse.Namespace()) == status
    assert capsys.readouterr().err == ("error: mend it\n" if status == 1 else "")
    assert command_line.run(lambda args: None, argparse.Namespace()) == 0
