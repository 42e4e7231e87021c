"""What the processes of a run decide together about checkpoints, and the errors they decide by."""

from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from big_vlp.parallel import processes
from input_pipeline.checks.errors import BigVlpError


class CheckpointError(BigVlpError):
    """A checkpoint that cannot be read or written; the message says what to do."""


class UnreadableError(CheckpointError):
    """A checkpoint that is not there, is damaged, or may not be read.

    Attributes:
      what: the message without what to do.
    """

    def __init__(self, what: str, remedy: str):
        super().__init__(f"{what}{remedy}")
        self.what = what


def together(
    read: Callable[[], Any], refuse: Callable[[str], CheckpointError] = CheckpointError
) -> Any:
    """What `read` gives on each process, or on all an error where it raises CheckpointError on one.

    So none waits in a collective for one that gave up, and all take the same way from here.
    `read` holds no collective.

    Args:
      refuse: makes the error of the processes that could read, of a text.
    """
    mine, result = None, None
    try:
        result = read()
    except CheckpointError as error:
        mine = error
        if jax.process_count() > 1:
            logging.warning("process %s: %s", jax.process_index(), error)
    # What is wrong with a model counts for more than what is wrong with a checkpoint.
    severity = 0 if mine is None else 1 if isinstance(mine, UnreadableError) else 2
    found = processes.exchange([severity, 0 if mine is None else processes.status_of(mine)])
    process = max(range(len(found)), key=lambda i: found[i][0])
    worst, status = found[process]
    if worst == 0:
        return result
    if severity == worst:
        raise mine
    if worst == 2:
        error = CheckpointError(f"process {process} cannot go on; its own message says why")
    else:
        error = refuse(f"process {process} cannot read it; its own message says why")
    error.status = status
    raise error
