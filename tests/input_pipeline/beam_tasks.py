"""Functions that tests hand to a runner: such as any process can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from input_pipeline.files import outages


@dataclass(frozen=True)
class Label:
    name: str
    size: float = 1.0


def square(number, folder):
    """Notes in the folder that it was called."""
    calls = Path(folder, f"{number}.calls")
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    return number**2


def refuse(number):
    if number == 2:
        raise ValueError(f"number {number} is not to be had")
    return number


@outages.outlasting
def reach(number, folder):
    """Fails at the first attempt."""
    first = Path(folder, f"{number}.reached")
    if not first.exists():
        first.touch()
        raise outages.Unreachable("503: come again")
    return number


def take_over(number, exchanges):
    """What another command does with the folder, before it begins."""
    time.sleep(0.2)
    for path in Path(exchanges).rglob("*"):
        if path.is_file():
            path.unlink(missing_ok=True)
    return number


def end_worker(number, folder):
    """Ends its process the first time, as a machine does that is taken away."""
    first = Path(folder, f"{number}.ended")
    if number == 1 and not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number
