"""Ends a process that no longer gets on, so that whoever started it can start it again.

A device, a file system or another process that stands still holds a process up for ever, and says
nothing. So whoever does the work says so (`progress`, `longer`), and a thread watches: after
`minutes` without a word it writes where each thread of this process stands, and ends it.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

# Times as long may pass in what may compile, and in what reads or writes a whole checkpoint.
LONGER = 4
# EX_TEMPFAIL: no fault of the config; the same command goes on from the last checkpoint.
STATUS = 75
_LOOKS = 20  # within the time allowed


class Watchdog:
    """Watches from `start` to `stop`.

    Args:
      minutes: without progress that end the process; None watches nothing.
      tell: is told why, before the end, on a thread of its own: it may hang, too.
    """

    def __init__(self, minutes: float | None, tell: Callable[[str], None]):
        self._seconds, self._tell = minutes and 60 * minutes, tell
        self._times, self._doing, self._since = LONGER, "starting", time.monotonic()
        self._stopped = threading.Event()

    def start(self) -> None:
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def note(self, doing: str, times: float | None = None) -> None:
        self._doing, self._since = doing, time.monotonic()
        self._times = self._times if times is None else times

    @contextlib.contextmanager
    def longer(self, doing: str):
        before = self._doing, self._times
        self.note(doing, LONGER)
        try:
            yield
        finally:
            self.note(*before)

    def _watch(self) -> None:
        between, since, waited = self._seconds / _LOOKS, None, 0.0
        last = time.monotonic()
        while not self._stopped.wait(between):
            # A process that was suspended comes back after a long time in which it could not work.
            passed, last = time.monotonic() - last, time.monotonic()
            waited = waited + min(passed, 2 * between) if since == self._since else 0.0
            since = self._since
            if waited > self._seconds * self._times:
                self._end(f"no progress for {waited:.0f} s, in: {self._doing}")

    def _end(self, reason: str) -> None:
        # Telling may hang, too, or fail: the end does not wait for it.
        timer = threading.Timer(30, os._exit, (STATUS,))
        timer.daemon = True
        timer.start()
        teller = threading.Thread(target=self._tell, args=(reason,), daemon=True)
        try:
            teller.start()
            sys.stderr.write(
                f"error: {reason} (config.watchdog_minutes={self._seconds / 60:g}). Where each "
                f"thread stands follows. This process ends with status {STATUS}: the same command "
                "goes on from the last checkpoint.\n"
            )
            sys.stderr.flush()
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            teller.join(10)
        finally:
            os._exit(STATUS)


_watchdog = Watchdog(None, lambda reason: None)


@contextlib.contextmanager
def watching(minutes: float | None, tell: Callable[[str], None]):
    """Within it `progress` and `longer` are heard."""
    global _watchdog
    before, _watchdog = _watchdog, Watchdog(minutes, tell)
    _watchdog.start()
    try:
        yield
    finally:
        _watchdog.stop()
        _watchdog = before


def progress(doing: str) -> None:
    """Says that this process gets on, and what it does next."""
    _watchdog.note(doing)


def started(doing: str) -> None:
    """As `progress`, when the program is compiled: from here on LONGER is for `longer` alone."""
    _watchdog.note(doing, 1)


def longer(doing: str):
    """A context in which LONGER times as long may pass without progress."""
    return _watchdog.longer(doing)
