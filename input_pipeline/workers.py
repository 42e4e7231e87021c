"""Worker processes: of the commands that look at a whole data set, and what these say; all end with
their parent."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

# Calls a function for many tasks: run(function, tasks, unit, console), as `command_line.runner`
# gives it; what the arguments are, and what it yields, is told by `run_all`.
Run = Callable[..., Iterator[tuple[Any, Any]]]


def run_all(
    function: Callable[..., Any],
    tasks: list[tuple[Any, tuple]],
    workers: int,
    unit: str,
    console: Console,
) -> Iterator[tuple[Any, Any]]:
    """Calls a function in worker processes.

    Args:
      tasks: (label, arguments) of every call; `label.size` is its share of the work in `unit`, for
        the progress bar.

    Yields:
      (label, `function(*arguments)`), as the calls return.

    Raises:
      ValueError: a worker was killed.
      KeyboardInterrupt: after the workers were ended.
    """
    if not tasks:
        return
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=end_with_parent,
    )
    total = sum(label.size for label, _ in tasks)
    with pool, progress_bar(console, unit, total) as advance:
        futures = {pool.submit(function, *arguments): label for label, arguments in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
                advance(futures[future].size)
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()  # Nothing is lost but half-written shards.
            raise
        except BrokenProcessPool:
            raise ValueError(
                "A worker process was killed (out of memory?). Run the same command, with fewer "
                "--workers, to continue."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def in_processes(workers: int) -> Callable[..., Iterator[tuple[Any, Any]]]:
    """`run_all` with so many processes: run(function, tasks, unit, console)."""

    def run(function, tasks, unit, console):
        return run_all(function, tasks, workers, unit, console)

    return run


@contextlib.contextmanager
def progress_bar(console: Console, unit: str, total: float) -> Iterator[Callable[[float], None]]:
    """Shows a bar where a person looks on; gives the function that moves it on by so much."""
    progress = Progress(
        TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        bar = progress.add_task("", total=total)
        yield functools.partial(progress.advance, bar)


def say(console: Console, text: str) -> None:
    """Prints plain text: brackets are no markup, and lines in a log are not wrapped."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def leave_out_main() -> None:
    """Has worker processes leave out this program's main module, of which they need nothing.

    Each would import it first, with all that it imports. For a program that sends them only what
    other modules define.
    """
    main = sys.modules["__main__"]
    main.__spec__ = main.__file__ = None  # by which multiprocessing finds it


def end_with_parent() -> None:
    """Ends this worker process when its parent is killed: it would wait for it, or write on.

    Ctrl-C, which goes to the whole group, is the parent's to act on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
