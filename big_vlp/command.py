"""The start of every program that takes --config FILE[:OPTIONS]: flags, help, config, errors.

The other programs have `input_pipeline.command_line`; both have one dialect.

`--config.SECTION.KEY=VALUE` changes a value of the config, or adds a key, or a section; whether
there is such a key is for what the section describes to say. Values are Python literals, as in the
file; where the file has a string, the text as it is.
"""

import argparse
import ast
import dataclasses
import difflib
import importlib.machinery
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import ml_collections
from absl import app, flags
from ml_collections import config_dict

from big_vlp.experiment import Experiment
from big_vlp.storage.model_dir import WEIGHTS
from input_pipeline.checks.arguments import unknown
from input_pipeline.checks.errors import BigVlpError, stop
from input_pipeline.checks.paths import is_url
from input_pipeline.command_line import Parser, path_argument

_CHANGE = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]+)(=(?P<text>.*))?", re.DOTALL)
_DASHES = re.compile(r"\A--?([a-z]+(-[a-z]+)+)(?==|\Z)")
SECTIONS = [f.name for f in dataclasses.fields(Experiment) if f.type is dict or f.name == "init"]
_SWITCH = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


class CommandError(BigVlpError):
    """The command line or the config file is wrong; the message says where."""


_METAVARS = {
    "config": "FILE[:OPTIONS]",
    "workdir": "DIR",
    "step": "N",
    "topology": "NAME",
    "output": "PNG",
}


def define_config() -> None:
    """Defines --config, parsed an `ml_collections.ConfigDict`, and --print_config, which ends."""
    text = (
        "the recipe: a Python file whose get_config returns the config, such as those in configs/; "
        "OPTIONS (key=value,...) are those that its get_config names"
    )
    flag = flags.Flag(_ConfigParser(), None, "config", None, text)
    flags.DEFINE_flag(flag)
    flags.mark_flag_as_required("config")
    flags.DEFINE_bool(
        "print_config", False, "print the config with all its defaults, as JSON, and end"
    )


def define_run(workdir: str) -> None:
    """Defines --workdir, which must be given unless the config is only printed.

    Args:
      workdir: help of that flag.
    """
    flags.DEFINE_string("workdir", None, workdir)
    flags.register_multi_flags_validator(
        ["workdir", "print_config"],
        lambda given: given["workdir"] is not None or given["print_config"],
        message="Flag --workdir must have a value other than None.",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flags --model and --weights, of commands that ask a trained model."""
    parser.add_argument(
        "--model",
        required=True,
        type=path_argument,
        metavar="DIR",
        help="the workdir of a run, or a directory of big_vlp.convert",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="the weights as trained, or their average; by default the average where there is one",
    )


def run(main: Callable, argv: list[str] | None = None) -> NoReturn:
    """Parses the command line and calls `main`; exits with status 1 after an error of the user's.

    Args:
      main: its docstring, or else its module's, is the help's text.
      argv: name of the program and its arguments; default: those of the process.
    """
    program, *given = argv or (f"python -m {main.__globals__['__spec__'].name}", *sys.argv[1:])
    if {"-h", "--help"} & set(given):
        _help(program, inspect.getdoc(main) or main.__globals__["__doc__"]).print_help()
        sys.exit()

    def print_or_run(rest):
        if not flags.FLAGS.print_config:
            return main(rest)
        try:
            print(json.dumps(Experiment.from_config(flags.FLAGS.config).as_json(), indent=1))
        except BigVlpError as error:
            stop(error)

    app.run(print_or_run, argv, flags_parser=parse)


def _help(program: str, description: str) -> Parser:
    """What looks like the help of the other commands."""
    parser = Parser(prog=program, description=description)
    modules = flags.FLAGS.flags_by_module_dict()
    for flag in (f for module in (__name__, sys.argv[0]) for f in modules.get(module, [])):
        form = {"action": "store_true"} if flag.boolean else {"metavar": _METAVARS[flag.name]}
        if flag.name in ("config", "workdir"):
            form["required"] = True
        parser.add_argument(f"--{flag.name}", default=flag.default, help=flag.help, **form)
    parser.add_argument(
        "--config.SECTION.KEY",
        metavar="VALUE",
        help="changes a value of the config, or adds a key, such as --config.total_steps=1000; "
        "may be repeated. A VALUE is a Python literal, as in the file",
    )
    return parser


def load_config(argument: str) -> ml_collections.ConfigDict:
    """The config of FILE or FILE:OPTIONS: what the file's `get_config` returns for the options.

    Raises:
      CommandError: there is no such file, it is no Python, or `get_config` raises a ValueError or
        an OSError, which are how it refuses options. Its other errors are left as they are.
    """
    if is_url(argument):
        raise CommandError(
            f"--config={argument} is a URL: copy the file to this machine. A config is a program, "
            "which is read only where it can be looked at."
        )
    name, colon, options = argument.partition(":")
    path = Path(name)
    if not path.is_file():
        raise CommandError(_no_file(path))
    loader = importlib.machinery.SourceFileLoader("config_file", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("config_file", loader))
    sys.modules["config_file"] = module  # dataclasses look for their module
    try:
        loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise CommandError(f"{path} has no function get_config, which returns the config.")
        given = (options,) if colon else ()
        try:
            inspect.signature(get_config).bind(*given)
        except TypeError:
            takes = "takes no options" if colon else "needs options (FILE:OPTIONS)"
            raise CommandError(f"{path}: its get_config {takes}.") from None
        config = get_config(*given)
    except SyntaxError as error:
        raise CommandError(f"{error.filename}, line {error.lineno}: {error.msg}.") from error
    except (OSError, ValueError) as error:
        raise CommandError(f"{path}: {error}") from error
    if isinstance(config, dict):
        config = ml_collections.ConfigDict(config)
    if not isinstance(config, ml_collections.ConfigDict):
        raise CommandError(f"{path}: get_config returned {config!r}, no config.")
    return config


def change(config: ml_collections.ConfigDict, path: str, text: str) -> None:
    """Sets the value at a dotted path as a command line writes it.

    Raises:
      CommandError: there is no such section, or the value is of another type than the file's.
    """
    *sections, key = path.split(".")
    section, where = config, "config"
    for name in sections:
        if name not in section:  # the recipe leaves it at its defaults
            if section is config and name not in SECTIONS:
                values = {k: _current(section, k) for k in section}
                own = [k for k, v in values.items() if isinstance(v, ml_collections.ConfigDict)]
                known = sorted({*own, *SECTIONS})
                raise CommandError(f"--config.{path}: {where}: {unknown('section', name, known)}")
            with section.unlocked():
                section[name] = ml_collections.ConfigDict()
        section, where = _current(section, name), f"{where}.{name}"
        if not isinstance(section, ml_collections.ConfigDict):
            raise CommandError(f"--config.{path}: {where} is {section!r}, no section of keys.")
    try:
        value = _value(text, _current(section, key))
    except ValueError as error:
        raise CommandError(f"--config.{path}={text}: {error}") from None
    with section.unlocked(), section.ignore_type():
        section[key] = value


def _current(section: ml_collections.ConfigDict, key: str):
    """The value of a key; None where there is none, or one that is still to be given."""
    try:
        return section.get(key)
    except config_dict.RequiredValueError:
        return None


def _value(text: str, old):
    """The value that a text writes, where `old` stands; raises ValueError where it does not fit."""
    if text == "None":
        return None
    if isinstance(old, str):
        return text
    if isinstance(old, bool):
        if text.lower() not in _SWITCH:
            raise ValueError("it is a switch; give true or false.")
        return _SWITCH[text.lower()]
    value = _literal(text)
    if isinstance(old, ml_collections.ConfigDict):
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"it is a section; set one of its keys {list(old)}.")
        return value
    if isinstance(old, tuple | list) and value is not None:
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    if isinstance(old, int | float) and isinstance(value, bool):
        raise ValueError("it is a number, no switch.")
    return value  # for its bounds, or its part, to refuse


def _literal(text: str):
    for read in (int, float, ast.literal_eval):  # float knows nan and inf, for bounds to refuse
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
    return {"true": True, "false": False}.get(text.lower(), text)


class _BrokenConfig(Exception):
    """The config file has a bug; the cause is what it raised."""


class _ConfigParser(flags.ArgumentParser):
    """Loads the config; `source` is what was asked for."""

    source: str | None = None

    def parse(self, argument):
        self.source = argument
        try:
            return load_config(argument)
        except CommandError:
            raise
        except Exception as error:  # absl would take some for its own
            raise _BrokenConfig from error

    def flag_type(self):
        return "config"


def parse(argv: list[str]) -> list[str]:
    """The parser of flags for `app.run`."""
    try:
        changes, others = _split(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
        _, *unexpected = flags.FLAGS(others)
        if unexpected:
            raise CommandError(f"Unexpected argument {unexpected[0]!r}; flags begin with --.")
        for path, text in changes:
            change(flags.FLAGS.config, path, text)
        flags.FLAGS.config.lock()
        return others[:1]
    except _BrokenConfig as error:
        _stop_at_bug(error.__cause__, flags.FLAGS["config"].parser.source.partition(":")[0])
    except flags.UnrecognizedFlagError as error:
        keys = (
            ". Keys of the config are set by --config.KEY=VALUE." if "." in error.flagname else ""
        )
        stop(CommandError(f"{error}{keys}"))
    except (CommandError, flags.Error) as error:
        missing = re.search("Flag (--.*) must have a value other than None", str(error))
        stop(CommandError(f"The flag {missing[1]} is missing.") if missing else error)


def _split(argv: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """[(path, text)] of the changes of the config, and all other arguments."""
    changes, others, left = [], argv[:1], argv[1:]
    while left:
        argument = left.pop(0)
        found = _CHANGE.fullmatch(argument)
        if found is None:
            others.append(_DASHES.sub(lambda name: "--" + name[1].replace("-", "_"), argument))
        elif found["no"]:
            changes.append((found["path"], "false"))
        elif found["text"] is not None:
            changes.append((found["path"], found["text"]))
        else:  # the next argument, unless it is a flag; a switch may stand alone
            alone = not left or re.match(r"--?[a-zA-Z]", left[0])
            changes.append((found["path"], "true" if alone else left.pop(0)))
    return changes, others


def _no_file(path: Path) -> str:
    if path.is_dir():
        files = sorted(str(file) for file in path.glob("*.py"))
        return f"--config={path} is a directory; give a file{f' of {files}' if files else ''}."
    if not path.parent.is_dir():
        return f"There is no config file {path}: there is no directory {path.parent}."
    files = [file.name for file in path.parent.glob("*.py")]
    found = difflib.get_close_matches(path.name, files, 1)
    nearest = f"; did you mean {path.parent / found[0]}?" if found else "."
    return f"There is no config file {path}{nearest}"


def _stop_at_bug(error: Exception, file: str) -> NoReturn:
    """Ends the program with the part of an error's traceback that begins in the config file."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [i for i, frame in enumerate(frames) if frame.filename == file]
    shown = frames[own[0] :] if own else frames
    print("".join(traceback.format_list(shown)), end="", file=sys.stderr)
    line = f", line {frames[own[-1]].lineno}" if own else ""
    sys.exit(f"error: {file}{line}: {type(error).__name__}: {error}")
