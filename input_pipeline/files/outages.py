"""What storage over a network may do to a program: not answer, for a while."""

import absl.logging

# The object that a checkpoint in a bucket gets last, so the first that is deleted: without it the
# others do not count. The name is Orbax'.
COMMITTED = "commit_success.txt"


class Unreachable(OSError):
    """A bucket did not answer, or would not now: a fault that may pass by itself."""


def tell(reason: str) -> None:
    """Says that a request is made again; the last failure is an error anyway."""
    absl.logging.warning("Storage: %s; trying again.", reason.splitlines()[0])


def text_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")
