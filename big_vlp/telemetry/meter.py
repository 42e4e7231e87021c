"""What the time of a run goes into, step by step, as the training lines of its log say it."""

import contextlib
import dataclasses
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping

import jax
import numpy as np

# The values of training lines that the clock or the machine decides: in all others two runs of one
# config are equal.
CLOCKED = frozenset(
    {
        "examples_per_s",
        "input_wait",
        "step_seconds_p50",
        "step_seconds_p90",
        "step_seconds_max",
        "model_tflops",
        "mfu",
        "memory_peak_gib",
        "compile_seconds",
        "evaluation_seconds",
        "checkpoint_seconds",
        "profile_seconds",
        "save_seconds",
        "run_seconds",
        "goodput",
    }
)


@dataclasses.dataclass
class _Step:
    """Times of a step, in seconds of the meter's clock.

    Attributes:
      asked: when the loop asked for its batch.
      given: when the batch was there.
      resumed: when the loop had last done something else than training.
      compiled: seconds of compilation between `given` and the dispatch.
      ended: when the devices were done.
    """

    asked: float
    given: float
    resumed: float
    compiled: float
    examples: int
    flops: float | None
    ended: float = 0.0

    def parts(self, before: float) -> tuple[float, float]:
        """Seconds that the step took, and of these what the devices waited for its batch.

        Compilation is in neither. What the loop waits while the devices still work is no waiting.

        Args:
          before: when the devices were done with the step before.
        """
        free = max(before, self.resumed)
        waited = max(0.0, self.given - max(free, self.asked))
        compiled = min(self.compiled, max(0.0, self.given + self.compiled - free))
        return max(0.0, self.ended - free - compiled), waited


class Meter:
    """Times the steps of a loop; a context, to be entered by the thread of the loop.

    The loop tells it what it does, and never waits for a device because of it: a thread notes when
    steps end.

    Args:
      devices: of the run.
      model_flops: `flops.ModelFlops`; None: those values are left out.
      clock: seconds from any origin.
      now: seconds since 1970.
    """

    def __init__(
        self,
        devices: int = 1,
        model_flops=None,
        clock=time.monotonic,
        now=time.time,
    ):
        self._devices, self._model_flops = devices, model_flops
        self._clock, self._now = clock, now
        self._compiling = _Compiling(clock)
        self._steps: list[_Step] = []
        self._spent: Counter[str] = Counter()
        self._asked = self._given = self._resumed = self._last_end = 0.0
        self._compiled_before = self._compiled_reported = 0.0
        self._productive, self._refused, self._first_start = 0.0, 0, now()
        self._dispatched: queue.Queue = queue.Queue()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)

    def __enter__(self) -> "Meter":
        self._compiling.start()
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._compiling.stop()
        self._dispatched.put(None)
        self._thread.join(1)  # it has nothing to wait for, unless a device stands still

    def goes_on(self, lines: Iterable[Mapping], first_step: int, refused: int) -> None:
        """Takes the lines of the log that a run goes on from, those of steps to be made again too:
        goodput is of the time since the first start. Steps after the last line that stays count as
        much as those before it.

        Args:
          refused: updates that the state has counted.
        """
        self._refused = refused
        lines = [line for line in lines if "run_seconds" in line["values"]]
        if not lines:
            return
        self._first_start = lines[0]["time"] - lines[0]["values"]["run_seconds"]
        kept = [line for line in lines if line["step"] < first_step]
        if kept:
            last, values = kept[-1]["step"], kept[-1]["values"]
            each = values["step_seconds_p50"] * (1 - values["input_wait"])
            self._productive = values["goodput"] * values["run_seconds"]
            self._productive += (first_step - 1 - last) * each

    @contextlib.contextmanager
    def waiting(self):
        """Around the wait for a batch. For the first one it is part of the start."""
        self._asked = self._clock()
        yield
        self._given = self._clock()
        self._resumed = self._resumed or self._given
        self._compiled_before = self._compiling.seconds()

    @contextlib.contextmanager
    def pausing(self, what: str):
        """Around what is no training: "evaluation", "checkpoint", "profile". Waits for the steps
        that were dispatched."""
        self._dispatched.join()
        begin, compiled = self._clock(), self._compiling.seconds()
        try:
            yield
        finally:
            self._resumed = self._clock()
            compiled = self._compiling.seconds() - compiled
            self._spent[what] += self._resumed - begin - compiled

    def dispatched(self, output: jax.Array, examples: int, image_size: int) -> None:
        """After the dispatch of a step; does not wait for it.

        Args:
          output: any of the step's.
          examples: of its global batch.
        """
        compiled = self._compiling.seconds() - self._compiled_before
        flops = self._model_flops and self._model_flops.of(image_size)
        step = _Step(self._asked, self._given, self._resumed, compiled, examples, flops)
        self._steps.append(step)
        self._dispatched.put((step, output))

    def read(self, refused: int) -> dict[str, float]:
        """The values of a training line, `CLOCKED`, over the steps since the last reading; waits
        for the last step. What is not known, or took no time, is left out.

        Args:
          refused: updates that the state has counted.
        """
        self._dispatched.join()
        steps, self._steps = self._steps, []
        seconds, waited = [], 0.0
        for step in steps:
            took, wait = step.parts(self._last_end)
            self._last_end = step.ended
            seconds.append(took)
            waited += wait
        total = sum(seconds) or 1e-9
        self._productive += (total - waited) * (1 - (refused - self._refused) / len(steps))
        self._refused = refused
        median, most = np.percentile(seconds, [50, 90])
        run_seconds = max(self._now() - self._first_start, 1e-9)
        compiled, before = self._compiling.seconds(), self._compiled_reported
        self._compiled_reported = compiled
        spent = {"compile": compiled - before, **self._spent}
        self._spent.clear()
        return {
            "examples_per_s": sum(step.examples for step in steps) / total,
            "input_wait": waited / total,
            "step_seconds_p50": float(median),
            "step_seconds_p90": float(most),
            "step_seconds_max": max(seconds),
            **self._speed(steps, total),
            **_memory_peak(),
            **{f"{name}_seconds": value for name, value in spent.items() if value > 0},
            "run_seconds": run_seconds,
            "goodput": min(1.0, self._productive / run_seconds),
        }

    def _speed(self, steps: list[_Step], seconds: float) -> dict[str, float]:
        if any(step.flops is None for step in steps):
            return {}
        flops = sum(step.flops * step.examples for step in steps) / seconds / self._devices
        return {"model_tflops": flops / 1e12, "mfu": flops / self._model_flops.peak}

    def _watch(self) -> None:
        while (item := self._dispatched.get()) is not None:
            step, output = item
            with contextlib.suppress(Exception):  # the loop meets it, too
                output.block_until_ready()
            step.ended = self._clock()
            self._dispatched.task_done()


class _Compiling:
    """Seconds that a thread has spent on tracing, lowering and compiling; what it takes from the
    compile cache included."""

    def __init__(self, clock):
        self._clock, self._thread = clock, None
        self._spans: list[tuple[float, float]] = []  # (begin, seconds), none within another

    def start(self) -> None:
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def stop(self) -> None:
        with contextlib.suppress(AssertionError, ValueError):  # others have cleared them
            jax.monitoring.unregister_event_duration_listener(self._note)

    def seconds(self) -> float:
        return sum(seconds for _, seconds in self._spans)

    def _note(self, event: str, seconds: float, **_) -> None:
        if not event.startswith("/jax/core/compile/") or threading.get_ident() != self._thread:
            return
        begin = self._clock() - seconds
        while self._spans and self._spans[-1][0] >= begin:  # traced within this one
            self._spans.pop()
        self._spans.append((begin, seconds))


def _memory_peak() -> dict[str, float]:
    """Of the fullest of this process' devices, where they tell."""
    stats = (device.memory_stats() or {} for device in jax.local_devices())
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return {"memory_peak_gib": max(peaks) / 2**30} if peaks else {}
