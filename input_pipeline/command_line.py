"""What commands without a config have in common: a parser, the words for a source, how they end.

Those with a config are started by `big_vlp.command`; their flags have the same names, and their
help looks the same.
"""

import argparse
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from etils import epath
from rich.console import Console

from input_pipeline import beam
from input_pipeline.checks import errors, unicode
from input_pipeline.checks.paths import PathError, is_url
from input_pipeline.checks.ranges import whole
from input_pipeline.files import listing
from input_pipeline.files.buckets import is_in_bucket, storage_path
from input_pipeline.sources import make_source
from input_pipeline.workers import in_processes, say

SOURCE = "DIR|NAME:KEY=VALUE,..."
SOURCE_HELP = (
    "a directory of prepared shards, here or in a bucket (gs://...), or any data source with its "
    "arguments, such as coco:annotations=FILE,images=DIR. NAME is a module of "
    "input_pipeline.sources, or your own (my_lab.mine); a VALUE is JSON "
    '(true, 3, ["a", "b"]) or else text'
)

_KEY = r"[A-Za-z_]\w*="


class Parser(argparse.ArgumentParser):
    """A parser whose help keeps lines as they are written and tells every default.

    What is wrong is one line and status 1. In the names of flags "_" is "-".

    Args:
      description: may hold examples.
    """

    def __init__(self, **options):
        super().__init__(formatter_class=_Help, allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._with_dashes(text) for text in args], namespace)

    def parse_job(self, argv: list[str] | None) -> argparse.Namespace:
        """As `parse_args`, of a command with `add_workers`: with --runner, words that are not the
        command's own are kept for Beam, see `runner`."""
        args, more = self.parse_known_args(argv)
        if more and args.runner is None:
            self.error(f"unrecognized arguments: {' '.join(more)}")
        args.runner_options = more
        return args

    def error(self, message):
        self.exit(1, f"error: {message}; see {self.prog} --help\n")

    def add_renamed(self, old: str, new: str) -> None:
        """Refuses a flag of a former version, and says what it is called now."""

        def refuse(_):
            raise argparse.ArgumentTypeError(f"it is called {new} now")

        self.add_argument(old, type=refuse, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def _with_dashes(self, text: str) -> str:
        name, equals, value = text.partition("=")
        name = name.replace("_", "-")
        return f"{name}{equals}{value}" if name in self._option_string_actions else text


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        text = action.help
        if action.option_strings and action.required:
            return f"{text} (required)"
        has_default = action.nargs != 0 and action.default not in (None, [], argparse.SUPPRESS)
        is_told = "(default" in text or not action.option_strings
        return f"{text} (default: %(default)s)" if has_default and not is_told else text


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=whole(1),
        default=os.cpu_count(),
        metavar="N",
        help="processes; by default one per CPU. The output does not depend on it",
    )
    parser.add_argument(
        "--runner",
        metavar="NAME",
        help="work on Apache Beam instead: Direct, Dataflow, Flink, Spark, ...; options that are "
        "not listed here go to it. The output does not depend on it either",
    )


def runner(
    args: argparse.Namespace,
    folder: Path | epath.Path,
    reads: Iterable[str | os.PathLike] = (),
) -> Callable[..., Any]:
    """What calls a function for many tasks, `run(function, tasks, unit, console)`, as the words of
    `add_workers` say: `workers.run_all` without the number of workers, or Beam's.

    Args:
      args: of `Parser.parse_job`.
      folder: hidden, beside the output; for what a cluster's machines tell each other.
      reads: what the tasks read: paths or patterns; of a source see `places`.

    Raises:
      ValueError: see `beam.Runner`.
    """
    if args.runner is not None:
        return beam.Runner(args.runner, args.runner_options, folder, reads).run_all
    beam.remove(folder)  # a job of an earlier command that goes on begins no further task
    return in_processes(args.workers)


def path_argument(text: str) -> Path | epath.Path:
    """Reads the path of a file or directory, on a disk or in a bucket, as argparse wants it; a
    relative one stays so."""
    try:
        path = storage_path(text)
    except PathError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path if is_in_bucket(path) else Path(os.path.expanduser(text))


def fields(text: str) -> tuple[str, ...]:
    """Reads a list of caption fields, FIELD,..., as argparse wants it."""
    found = tuple(field.strip() for field in text.split(","))
    if not all(found) or len(set(found)) < len(found) or not unicode.is_valid(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no comma list of fields: give at least one field, and each once"
        )
    return found


def run(command: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> int:
    """Calls a command; returns the exit status: its own, 1 after an error, 130 after Ctrl-C."""
    unicode.escape_output()
    try:
        return command(args) or 0
    except KeyboardInterrupt:
        return 130
    except (errors.BigVlpError, OSError, ValueError) as error:
        if errors.wants_tracebacks():
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr)
        return 1


def run_job(command: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> int:
    """As `run`, of a command that goes on where it stopped: after Ctrl-C it says so."""
    status = run(command, args)
    if status == 130:
        say(Console(), "Interrupted. Run the same command to continue.")
    return status


def open_source(text: str) -> tuple[str, dict[str, Any], Any]:
    """(name, arguments, the source itself) of a source as `SOURCE` says.

    Raises:
      ValueError: it is written in another way, or a source cannot be made of it.
      FileNotFoundError: files of the source are missing.
    """
    name, arguments = parse_source(text)
    try:
        return name, arguments, make_source(name, **arguments)
    except TypeError as error:
        raise ValueError(f"source {name}: {error}") from None


def parse_source(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a source as `SOURCE` says.

    Raises:
      PathError: it is a URL that cannot be read.
      ValueError: it is written in another way.
    """
    if os.path.isdir(text):
        return "prepared", {"path": os.path.abspath(text)}
    if is_url(text):
        return "prepared", {"path": os.fspath(storage_path(text))}
    return parse_call(text, "--input", "a directory of prepared shards")


def parse_call(text: str, flag: str, others: str = "a name alone") -> tuple[str, dict[str, Any]]:
    """Name and arguments of NAME or NAME:KEY=VALUE,...

    Args:
      flag, others: for errors: what it was given by, and what else may be given.

    Raises:
      ValueError: it is written in another way.
    """
    name, colon, rest = text.partition(":")
    if not all(part.isidentifier() for part in name.split(".")) or (colon and not rest):
        raise ValueError(f"{flag} {text!r} is neither {others} nor NAME:KEY=VALUE,...")
    return name, _arguments(rest, text, flag)


def parse_arguments(text: str, flag: str) -> dict[str, Any]:
    """Arguments of KEY=VALUE,...; raises ValueError where it is written in another way."""
    return _arguments(text, text, flag)


def _arguments(rest: str, text: str, flag: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    while rest:
        pair, value, rest = _first(rest)
        key = pair.partition("=")[0]
        if not (key.isidentifier() and "=" in pair) or key in arguments:
            raise ValueError(f"{flag} {text!r}: {pair!r} is not KEY=VALUE, or there twice.")
        arguments[key] = value
    return arguments


def places(arguments: Any) -> Iterator[str]:
    """What a source's arguments name on a disk of this machine: files, also by a pattern, and
    folders. Names of caption fields are none."""
    if isinstance(arguments, dict):
        arguments = [value for key, value in arguments.items() if key != "captions"]
    if isinstance(arguments, list):
        for value in arguments:
            yield from places(value)
    elif (
        isinstance(arguments, str)
        and not is_url(arguments)
        and (os.path.isdir(os.path.expanduser(arguments)) or listing.matches(arguments))
    ):
        yield arguments


def _first(text: str) -> tuple[str, Any, str]:
    """The first KEY=VALUE of several, its value, and the others."""
    key, _, written = text.partition("=")
    try:
        value, end = json.JSONDecoder().raw_decode(written)
        if re.match(rf"$|,{_KEY}", written[end:]):
            return f"{key}={written[:end]}", value, written[end + 1 :]
    except ValueError:
        pass
    # Text ends where another KEY= follows: it may have commas.
    pair, *others = re.split(f",(?={_KEY})", text, maxsplit=1)
    return pair, pair.partition("=")[2], "".join(others)


def written_source(name: str, arguments: dict[str, Any]) -> str:
    """What `parse_source` reads back."""
    return f"{name}:{written_arguments(arguments)}" if arguments else name


def written_arguments(arguments: dict[str, Any]) -> str:
    """What `parse_arguments` reads back."""

    def written(value):
        if isinstance(value, str) and _first(f"key={value}")[1:] == (value, ""):
            return value
        return json.dumps(value)

    return ",".join(f"{key}={written(value)}" for key, value in arguments.items())
