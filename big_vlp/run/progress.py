"""The line on the terminal that says where a run is."""

import datetime
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

import jax

# Share of a step's time that devices may wait for their batch before input is what bounds a run.
INPUT_BOUND = 0.1


class LiveLine:
    """Progress on the terminal: one line that refreshes; a new line each time where there is none.

    Only process 0 prints.
    """

    def __init__(self, total_steps: int, stream: TextIO | None = None, clock=time.monotonic):
        self._total = total_steps
        self._stream = sys.stderr if stream is None else stream
        self._silent = jax.process_index() != 0
        self._refresh = self._stream.isatty()
        self._clock = clock
        self._first = None  # (step, time) of the first update: before it lies compilation
        self._open = False

    def update(self, step: int, loss: float, values: Mapping[str, float]) -> None:
        """Shows where the run is.

        Args:
          step: steps done so far.
          values: `examples_per_s` of all hosts together, `input_wait` and `goodput` (shares, 0..1),
            and `mfu`, where it is known; see `telemetry.meter.Meter.read`.
        """
        now = self._clock()
        self._first = self._first or (step, now)
        first_step, first_time = self._first
        left = "?"
        if step > first_step:
            seconds = (now - first_time) / (step - first_step) * (self._total - step)
            left = str(datetime.timedelta(seconds=round(seconds)))
        waited = values["input_wait"]
        parts = (
            f"step {step:{len(str(self._total))}d}/{self._total}",
            f"loss {loss:.4f}",
            f"{values['examples_per_s']:,.0f} examples/s",
            *([f"MFU {values['mfu']:.1%}"] if "mfu" in values else ()),
            f"input wait {waited:.0%}" + (" (input-bound)" if waited > INPUT_BOUND else ""),
            f"goodput {values['goodput']:.0%}",
            f"{left} left",
        )
        self._print(" | ".join(parts), refresh=self._refresh)

    def message(self, text: str) -> None:
        """Prints lines that stay, above the live line."""
        self._print(text, refresh=False)

    def close(self) -> None:
        """Ends the live line, so that what follows starts on a line of its own."""
        if self._open:
            self._print("", refresh=False)

    def _print(self, text: str, refresh: bool) -> None:
        if self._silent:
            return
        start = "\r\x1b[K" if self._open else ""  # back to the line's start, erase it
        if refresh:
            text = text[: shutil.get_terminal_size().columns - 1]
        elif self._open and not text:
            start = ""
        self._stream.write(start + text + ("" if refresh else "\n"))
        self._stream.flush()
        self._open = refresh


class Dispensable:
    """A context for writes that a run can do without: one that fails is said, and the run goes on.

    Of failures in a row the first is said.

    Args:
      what: is written.
      say: prints a line.
      kind: of failures.
    """

    def __init__(self, what: str, say: Callable[[str], None], kind: type[Exception] = OSError):
        self._what, self._say, self._kind = what, say, kind
        self._failing = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> bool:
        before, self._failing = self._failing, isinstance(error, self._kind)
        if self._failing and not before:
            self._say(f"{self._what} cannot be written ({error}); the run goes on without.")
        return self._failing
