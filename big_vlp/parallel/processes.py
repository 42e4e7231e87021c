"""What the processes of a run tell each other, so that all of them end, and say why.

Devices that wait for a process which has failed wait for long, and say nothing of its reason. So
what can fail in one process alone, such as reading records, is asked of all at the same point
(`raise_together`). Beside the devices, through jax's coordination service, they tell each other
what they found before an answer is known (`exchange`, `from_first`), and what fails anywhere else
(`telling`).
"""

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from big_vlp.parallel import cluster, signals, watchdog
from input_pipeline.checks import errors
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.files.outages import Unreachable

_FAILED, _LEFT, _ANSWERS = "big_vlp/failed/", "big_vlp/left/", "big_vlp/answers/"
_LOOK_SECONDS = 1.0
_GRACE_SECONDS = 5.0  # for a process to end by itself, once another has failed
_CLOSE_SECONDS = 60.0
_ANSWER_HOURS = 24  # a process that is gone is noticed sooner, by the service
# EX_SOFTWARE: of an error that is no user's, from which a new start may lead further.
CRASH = 70
_asked = itertools.count()


class ProcessError(BigVlpError):
    """Another process of the run has failed; the message says which."""


def exchange(value) -> list:
    """What each process gives, in their order, on all of them, which wait for each other.

    Args:
      value: JSON data, of some kilobytes at most.
    """
    if jax.process_count() == 1:
        return [value]
    client, number = ocp.multihost.get_jax_distributed_client(), next(_asked)
    own, milliseconds = f"/{jax.process_index()}", _ANSWER_HOURS * 3_600_000
    client.key_value_set(f"{_ANSWERS}{number}{own}", json.dumps(value))
    keys = [f"{_ANSWERS}{number}/{i}" for i in range(jax.process_count())]
    found = [json.loads(client.blocking_key_value_get(key, milliseconds)) for key in keys]
    if number:  # who has answered this has read the answers before
        client.key_value_delete(f"{_ANSWERS}{number - 1}{own}")
    return found


def differing(values: Mapping[str, Any]) -> list[str]:
    """The names under which the processes hold different values, sorted, on all of them.

    Args:
      values: JSON data by name; only digests of it are exchanged.
    """
    own = {name: _digest(value) for name, value in values.items()}
    if len(set(exchange(_digest(own)))) == 1:
        return []
    found = exchange(own)
    names = sorted({name for each in found for name in each})
    return [name for name in names if len({each.get(name) for each in found}) > 1]


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def from_first(answer: Callable[[], Any], refusal: type[BigVlpError]) -> Any:
    """What `answer()` gives in process 0, as JSON data, on all processes: each might see a
    directory at another moment.

    Raises:
      refusal: `answer` raises it in process 0; all processes do, at this same point.
    """
    found = refused = None
    if jax.process_index() == 0:
        try:
            found = answer()
        except refusal as error:
            refused = error
    said = None if refused is None else [str(refused), status_of(refused)]
    found, said = exchange([found, said])[0]
    if said is not None:
        reason, status = said
        error = refused or refusal(reason)
        error.agreed, error.status = True, status
        raise error
    return found


def raise_together(mesh, error: Exception | None = None) -> None:
    """Ends what all processes are doing, at this same point, where one has to.

    Args:
      error: why this process cannot go on, or None.

    Raises:
      Exception: `error`, or ProcessError where it is another process' own.
      Stop: one has got a signal that `signals.heard` hears.
    """
    watchdog.progress("waiting for the other processes")
    state = np.asarray(cluster.largest_of_processes(my_state(error), mesh))
    raise_if_told(state, error)


def my_state(error: Exception | None) -> list[int]:
    """Three numbers: who failed, what signal came, with which status who failed ends.
    `raise_if_told` reads the largest of all."""
    failed, status = (0, 0) if error is None else (jax.process_index() + 1, status_of(error))
    return [failed, signals.received(), status]


def raise_if_told(state, error: Exception | None) -> None:
    """The second half of `raise_together`, for who does other things while it is answered."""
    failed, signal, status = (int(x) for x in state)
    if jax.process_count() == 1:
        signal = signals.received()  # there may be news
    if error is None and failed:
        error = ProcessError(f"process {failed - 1} stopped; its own output says why.")
        error.status = status
    if error is not None:
        error.agreed = True
        raise error
    if signal:
        raise signals.Stop(signal, agreed=True)


def is_agreed(error: BaseException) -> bool:
    """Whether all processes end here, so that they can still do something together."""
    return getattr(error, "agreed", False)


class telling:
    """Says why this process ends, before anything else is done about it, and tells the others.

    A process that hears of another's failure has `_GRACE_SECONDS` to end by itself; its devices may
    hold it up for long, so then it calls `close` and ends.

    Args:
      say: prints a line in process 0.
      close: what a process does before it ends for another's sake.
    """

    def __init__(self, say: Callable[[str], None], close: Callable[[], None]):
        self._say, self._close = say, close
        self._left = threading.Event()

    def __enter__(self) -> "telling":
        if jax.process_count() > 1:
            threading.Thread(target=self._look, name="processes", daemon=True).start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._left.set()
        if error is None:
            return
        if not is_agreed(error) and (other := _failure()):
            reason, status = other
            _end_within(_CLOSE_SECONDS, status)
            self._print(reason)
            consequence = ProcessError(reason)
            consequence.said, consequence.status = True, status
            raise consequence from None
        self.why(error)
        _tell(error)
        if jax.process_count() > 1 and not is_agreed(error):
            # What is closed now may wait for the others in vain.
            _end_within(_CLOSE_SECONDS, status_of(error))

    def why(self, error: BaseException) -> None:
        """Says it, once; a signal is no error."""
        if not was_said(error) and not isinstance(error, signals.Stop):
            error.said = True
            self._print(_reason(error))

    def _print(self, reason: str) -> None:
        if jax.process_index() == 0:
            self._say(f"error: {reason}")
        else:
            print(f"error: {reason}", file=sys.stderr, flush=True)

    def _look(self) -> None:
        while not self._left.wait(_LOOK_SECONDS):
            if (other := _failure()) and not self._left.wait(_GRACE_SECONDS):
                reason, status = other
                self._print(reason)
                _end_within(_CLOSE_SECONDS, status)
                with contextlib.suppress(Exception):
                    self._close()
                _leave(status)


def end(error: BaseException) -> int:
    """Says why the program ends: one line where a user can mend it, else a traceback.

    Returns:
      Its exit status, see `status_of`.
    """
    if not isinstance(error, signals.Stop):
        if not was_said(error):
            print(f"error: {_reason(error)}", file=sys.stderr)
        if not isinstance(error, BigVlpError) or errors.wants_tracebacks():
            traceback.print_exception(error)
    status = status_of(error)
    if jax.process_count() > 1 and not is_agreed(error):
        _tell(error)
        _leave(status)
    return status


@contextlib.contextmanager
def ending_at_once():
    """For a program: a signal's SystemExit within it ends this process when what is registered for
    its end was called. Python's own end comes after, which would wait for a compilation that was
    interrupted, and then crash."""
    try:
        yield
    except SystemExit as error:
        if error.code not in {128 + number for number in signals.SIGNALS}:
            raise
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code)


def status_of(error: BaseException) -> int:
    """The exit status of a process that ends by an error: 130 or 143 after a signal, 1 where a user
    has to mend something, another process' own where it ends for that one's sake, 75 where storage
    does not answer, else CRASH."""
    if isinstance(error, signals.Stop):
        return error.code
    cause = error
    while cause is not None:
        if isinstance(cause, Unreachable):
            return watchdog.STATUS  # storage may be back when the program is started again
        cause = cause.__cause__
    return getattr(error, "status", 1 if isinstance(error, BigVlpError) else CRASH)


def was_said(error: BaseException) -> bool:
    return getattr(error, "said", False)


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, signals.Stop):
        text = f"{error.name} before training"
    elif not isinstance(error, BigVlpError):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    known = jax.process_count() == 1 or isinstance(error, ProcessError)
    return text if known else f"process {jax.process_index()} stopped: {text}"


def _tell(error: BaseException) -> None:
    if jax.process_count() > 1 and not is_agreed(error):
        _publish(_reason(error), status_of(error))


def tell_of_standstill(reason: str) -> None:
    """What a watchdog does before it ends this process: the others end, too, and know why."""
    if jax.process_count() > 1:
        _publish(f"process {jax.process_index()} stopped: {reason}", watchdog.STATUS)


def _publish(reason: str, status: int) -> None:
    client, key = ocp.multihost.get_jax_distributed_client(), f"{_FAILED}{jax.process_index()}"
    client.key_value_set(key, json.dumps([reason, status]), allow_overwrite=True)


def _failure() -> tuple[str, int] | None:
    """Why another process has failed, and its exit status; or None."""
    if jax.process_count() == 1:
        return None
    try:
        found = ocp.multihost.get_jax_distributed_client().key_value_dir_get(_FAILED)
    except Exception:
        return None  # the service is gone, which jax itself reports
    own = str(jax.process_index())
    others = [json.loads(text) for key, text in sorted(found) if key.rpartition("/")[2] != own]
    return tuple(others[0]) if others else None


def _end_within(seconds: float, status: int) -> None:
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()


def _leave(status: int) -> None:
    """Ends this process without waiting for the others, as jax does at a program's end.

    Process 0, which runs the service, leaves last.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(Exception):
        client = ocp.multihost.get_jax_distributed_client()
        client.key_value_set(f"{_LEFT}{jax.process_index()}", "")
        deadline = time.monotonic() + 2 * _GRACE_SECONDS
        while jax.process_index() == 0 and time.monotonic() < deadline:
            if len(client.key_value_dir_get(_LEFT)) == jax.process_count():
                break
            time.sleep(_LOOK_SECONDS / 5)
    os._exit(status)
