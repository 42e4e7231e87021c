"""Calls functions that may hang, crash or exhaust a device, in a process of their own (`callee`).

A JSON line asks and a JSON line answers. Each call has a time limit; what went wrong is its answer,
and the next call has a new process.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[3]


class Child:
    """Calls functions one after another in a process of their own."""

    def __init__(self, variables: dict[str, str]):
        """Args: environment variables beside this process' own."""
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
        self._running = None

    def call(self, function: str, arguments: dict, limit: float, alone: bool = False) -> dict:
        """What the function returns, or {"error": why there is nothing}.

        Args:
          function: "module:name"; it takes JSON data and returns a dict of them.
          limit: seconds that it may take, with the start of a process where one is needed.
          alone: in a process that calls nothing else, before or after.
        """
        if alone:
            self.close()
        answer, goes_on = self._answer(function, arguments, limit)
        if alone or not goes_on:
            self.close()
        return answer

    def close(self) -> None:
        """Ends the process and those it has started."""
        running, self._running = self._running, None
        if running is not None:
            process = running[0]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _answer(self, function, arguments, limit) -> tuple[dict, bool]:
        if self._running is None:
            self._running = self._start()
        process, answers, said = self._running
        with contextlib.suppress(BrokenPipeError):  # what it died of comes as its answer
            process.stdin.write(json.dumps([function, arguments]) + "\n")
            process.stdin.flush()
        try:
            line = answers.get(timeout=limit)
        except queue.Empty:
            return {"error": f"no answer within {limit:.0f} s; {last_words(said)}"}, False
        if line is None:
            return {"error": f"the process {ended(process.wait())}; {last_words(said)}"}, False
        return json.loads(line)

    def _start(self):
        said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # A group, so that all of it can be killed; no session, so that it dies with the terminal's.
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.accelerator.callee"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=ROOT,
            env=self._environment,
            process_group=0,
        )
        answers = queue.SimpleQueue()
        threading.Thread(target=_forward, args=(process.stdout, answers), daemon=True).start()
        return process, answers, said


def _forward(stream, answers) -> None:
    with stream:
        for line in stream:
            answers.put(line)
    answers.put(None)


def last_words(said) -> str:
    """The last line of what a process has printed."""
    said.seek(0)
    lines = [line.strip() for line in said if line.strip()]
    return f"it last said: {lines[-1][:300]}" if lines else "it said nothing"


def ended(status: int) -> str:
    """A process' exit status in words."""
    return (
        f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
    )
