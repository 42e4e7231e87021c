"""Errors that a user can mend: all are a `BigVlpError`, and their message says what to do.

With BIG_VLP_TRACEBACK=1 in the environment, programs print them with their traceback.
"""

import os
import sys
import traceback
from typing import NoReturn


class BigVlpError(Exception):
    """What is wrong is the user's to mend; programs end with its message in one line, status 1."""


def stop(error: Exception) -> NoReturn:
    """Ends the program with an error that the user can mend: one line, status 1."""
    if wants_tracebacks():
        traceback.print_exception(error)
    sys.exit(f"error: {error}")


def wants_tracebacks() -> bool:
    return os.environ.get("BIG_VLP_TRACEBACK", "0") not in ("", "0")
