"""What storage over a network may do to a program: not answer, for a while."""

import functools
import time
from collections.abc import Callable
from typing import Any

import absl.logging

# The object that a checkpoint in a bucket gets last, so the first that is deleted: without it the
# others do not count. The name is Orbax'.
COMMITTED = "commit_success.txt"

_WAITS = (10, 60)  # seconds; each request was tried for a minute or so before


class Unreachable(OSError):
    """A bucket did not answer, or would not now: a fault that may pass by itself."""


def tell(reason: str) -> None:
    """Says that a request is made again; the last failure is an error anyway."""
    absl.logging.warning("Storage: %s; trying again.", reason.splitlines()[0])


def text_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def outlasting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called again where a bucket was `Unreachable`, some minutes long: for a task of
    a job that goes on for hours, in which this will happen. It must bear being called twice."""

    @functools.wraps(function)
    def called(*arguments):
        for seconds in _WAITS:
            try:
                return function(*arguments)
            except Unreachable as error:
                tell(text_of(error))
                time.sleep(seconds)
        return function(*arguments)

    return called
