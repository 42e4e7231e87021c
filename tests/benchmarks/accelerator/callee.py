"""The process in which `child.Child` calls functions."""

import importlib
import json
import os
import sys
import threading
import time
import traceback

# How the statuses begin with which XLA says what it cannot do, or has no memory for.
REFUSALS = ("RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INVALID_ARGUMENT", "FAILED_PRECONDITION")


def first_line(error: BaseException) -> str:
    """An error's type and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:400] if lines else ''}"


def answer_to(function: str, arguments: dict) -> tuple[dict, bool]:
    """(what a function returns or why not, whether this process is fit for more)."""
    module, name = function.split(":")
    try:
        return getattr(importlib.import_module(module), name)(**arguments), True
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return {"error": first_line(error)}, not is_fatal(error)


def is_fatal(error: BaseException) -> bool:
    """Whether all that follows may fail too: a device's error that is not a refusal."""
    return type(error).__name__ == "JaxRuntimeError" and not str(error).startswith(REFUSALS)


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        answer, goes_on = answer_to(*json.loads(line))
        answers.write(json.dumps([answer, goes_on]) + "\n")
        if not goes_on:
            break


if __name__ == "__main__":
    main()
