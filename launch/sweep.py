"""A grid over a config's keys, as one job of any launcher for each point.

python launch/sweep.py --set optim.learning_rate 1e-3 3e-4 --set seed 0 1 -- \\
  launch/local.sh -- train --config configs/demo.py --workdir runs/sweep/{name}

What comes after the first -- is the launcher's command. In it {index} becomes the number of the
point, which names of slices need, and {name} its values, such as learning_rate=1e-3,seed=0. The
point's `--config.KEY=VALUE` are added at the end. Jobs run one by one, or --jobs at a time.
"""

import argparse
import concurrent.futures
import itertools
import shlex
import subprocess
import sys


def points(grid: list[list[str]]) -> list[dict[str, str]]:
    """The config changes of each point: {key: value}, the last key fastest."""
    keys = [key for key, *_ in grid]
    return [dict(zip(keys, chosen)) for chosen in itertools.product(*(row[1:] for row in grid))]


def name_of(point: dict[str, str]) -> str:
    """Short keys with values; whole ones where the short are the same."""
    short = [key.rpartition(".")[2] for key in point]
    keys = short if len(set(short)) == len(short) else list(point)
    return ",".join(f"{key}={value}" for key, value in zip(keys, point.values())).replace("/", "_")


def command_of(launcher: list[str], index: int, point: dict[str, str]) -> list[str]:
    """The launcher's command for one point."""
    filled = [
        word.replace("{index}", str(index)).replace("{name}", name_of(point)) for word in launcher
    ]
    return [*filled, *(f"--config.{key}={value}" for key, value in point.items())]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="+", action="append", metavar=("KEY", "VALUE"))
    parser.add_argument("--jobs", type=int, default=1, help="at a time; default 1")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    own, launcher = split(argv)
    options = parser.parse_args(own)
    if not options.set or any(len(row) < 2 for row in options.set):
        parser.error("give --set KEY VALUE ..., once for each key")
    if len({key for key, *_ in options.set}) < len(options.set):
        parser.error("a key is set twice")
    if options.jobs < 1:
        parser.error("--jobs needs 1 or more")
    if "--" not in launcher:
        parser.error("after -- give a launcher, with its own -- and train or evaluate")
    found = points(options.set)
    if not any("{index}" in word or "{name}" in word for word in launcher[launcher.index("--") :]):
        parser.error("give each job a directory of its own: --workdir .../{name}, or {index}")
    commands = [command_of(launcher, index, point) for index, point in enumerate(found)]
    if options.dry_run:
        print("\n".join(map(shlex.join, commands)))
        return 0

    def run(command):
        print(f"sweep: {shlex.join(command)}", file=sys.stderr, flush=True)
        return subprocess.run(command, stdin=subprocess.DEVNULL).returncode

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        try:
            statuses = list(pool.map(run, commands))
        except KeyboardInterrupt:  # the jobs get it from the terminal, and end by themselves
            pool.shutdown(cancel_futures=True)
            return 130
    for status, point in zip(statuses, found):
        if status:
            print(f"sweep: {name_of(point)} ended with {status}", file=sys.stderr)
    return int(any(statuses))


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first --, and what after it."""
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
