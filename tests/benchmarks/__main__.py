"""Lists the benchmarks, or runs some, each in a process of its own on the CPU. One whose rows come
one by one (a generator) starts its processes itself, and chooses their devices."""

import argparse
import concurrent.futures
import inspect
import json
import math
import multiprocessing
import pkgutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tests.benchmarks
from big_vlp.recipes import parse_options
from tests.benchmarks.common import CannotRunError, environment, load, measure, on_the_cpu

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
        module, defaults = load(name)
        try:
            options = dict(parse_options(option, **defaults))
        except ValueError as error:
            parser.error(f"{name}: {error}")
        results[name] = {"options": options, "rows": []}
        if not inspect.isgeneratorfunction(module.measure):
            results[name]["rows"] = in_new_process(name, options)
            console.print(table(name, results[name]["rows"]))
            save(args.json, results)
            continue
        try:
            for row in module.measure(**options):  # the next may take minutes, or all down
                results[name]["rows"].append(row)
                save(args.json, results)
                print(line(row), flush=True)
        except CannotRunError as error:
            sys.exit(f"error: {name}: {error}")


def names() -> list[str]:
    """The benchmarks there are."""
    modules = pkgutil.iter_modules(tests.benchmarks.__path__)
    return sorted(m.name for m in modules if m.name not in HELPERS)


def in_new_process(name: str, options: dict) -> list[dict]:
    """Rows of a benchmark. Cores, thread pools and allocators are set once in a process' life."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=spawn, initializer=on_the_cpu
    ) as process:
        return process.submit(measure, name, options).result()


def save(file: Path | None, results: dict) -> None:
    """Writes what is known so far; whoever reads the file finds it whole."""
    if file is not None:
        text = json.dumps(plain({"environment": environment(), **results}), indent=1)
        written = file.with_name(f"{file.name}.part")
        written.write_text(text)
        written.replace(file)


def plain(value):
    """As JSON has it: without NaN and infinity, which become strings."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def table(name: str, rows: list[dict]) -> Table:
    """Rows as a table; a column per key, in order of appearance."""
    result = Table(title=name)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        result.add_column(column)
    for row in rows:
        result.add_row(*(shown(row.get(column, "")) for column in columns))
    return result


def line(row: dict) -> str:
    """A row of many kinds, on one line; what it lists, below."""
    values = {k: v for k, v in row.items() if k not in ("row", "case")}
    below = [item for v in values.values() if is_table(v) for item in v]
    beside = [f"{k}={shown(v)}" for k, v in values.items() if v is not None and not is_table(v)]
    number = f"{row['row']}  " if "row" in row else ""
    first = f"{number}{row['case']}: {', '.join(beside)}"
    return "\n".join([first, *(f"     {'  '.join(map(shown, item.values()))}" for item in below)])


def is_table(value) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def shown(value) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k} {shown(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:500]


if __name__ == "__main__":
    sys.exit(main())
