"""Lists the benchmarks, or runs some, each in a process of its own."""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import pkgutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tests.benchmarks
from big_vlp.config import parse_options
from tests.benchmarks.common import environment, load, measure

# Processes started from here compare what a CPU does.
os.environ["JAX_PLATFORMS"] = "cpu"

HELPERS = ("__main__", "common")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME[:OPTION=VALUE,...]", help="none: list them"
    )
    parser.add_argument("--json", type=Path, help="file for the rows and what they depend on")
    args = parser.parse_args()
    known = names()
    wanted = [name.partition(":")[::2] for name in args.names]
    for name, _ in wanted:
        if name not in known:
            parser.error(f"unknown benchmark {name!r}; choose from {', '.join(known)}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not wanted:
        for name in known:
            module, options = load(name)
            console.print(f"[bold]{name}[/bold]: {module.__doc__.splitlines()[0]}")
            console.print(f"  {', '.join(f'{k}={v}' for k, v in options.items())}", style="dim")
        return

    results = {}
    for name, option in wanted:
        try:
            options = dict(parse_options(option, **load(name)[1]))
        except ValueError as error:
            parser.error(f"{name}: {error}")
        rows = in_new_process(name, options)
        results[name] = {"options": options, "rows": rows}
        console.print(table(name, rows))
        if args.json:  # after each: the next may take minutes
            args.json.write_text(json.dumps({"environment": environment(), **results}, indent=1))


def names() -> list[str]:
    """The benchmarks there are."""
    modules = pkgutil.iter_modules(tests.benchmarks.__path__)
    return sorted(m.name for m in modules if m.name not in HELPERS)


def in_new_process(name: str, options: dict) -> list[dict]:
    """Rows of a benchmark. Cores, thread pools and allocators are set once in a process' life."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(measure, name, options).result()


def table(name: str, rows: list[dict]) -> Table:
    """Rows as a table; a column per key, in order of appearance."""
    result = Table(title=name)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        result.add_column(column)
    for row in rows:
        result.add_row(*(shown(row.get(column, "")) for column in columns))
    return result


def shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
