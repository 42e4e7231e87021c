"""Traces of some steps for xprof and Perfetto, and the operations that cost most."""

import os
import shutil
import signal
import tempfile
import threading
from collections import Counter
from pathlib import Path

import jax

from big_vlp.run.progress import Dispensable
from input_pipeline.files.buckets import make_directory
from input_pipeline.files.whole import write_whole

DIRECTORY = "profile"
_ROWS = 12
_WHERE = 80  # characters


class Profile:
    """Traces `steps` steps from `at_step` on, on process 0, and from the next one on in a process
    that gets SIGUSR1. The first step of a start is never traced, as it compiles.

    Args:
      at_step: of the run, 1 or more; None: only when told.
      steps: of a trace.
    """

    def __init__(self, at_step: int | None = None, steps: int = 3):
        self._at_step, self._steps = at_step, steps
        self._told, self._last = False, 0
        self._made = self._before = None  # the folder of the trace that is being taken

    def open(self, workdir, meter, say) -> "Profile":
        """Listens from here on.

        Args:
          workdir: of the run; traces lie in `profile` there.
          meter: a `Meter`, to which traces are no training.
          say: prints a line.
        """
        number = jax.process_index()
        directory = workdir / DIRECTORY
        self._directory = directory / f"process_{number}" if number else directory
        self._meter, self._say = meter, say
        self._dispensable = Dispensable(os.fspath(self._directory), say, Exception)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._note)
        return self

    def close(self) -> None:
        """Listens no more, if the main thread asks. A trace that is not complete is dropped, which
        it says."""
        if self._made is not None:
            with self._dispensable:
                jax.profiler.stop_trace()
            shutil.rmtree(self._made, ignore_errors=True)
            self._made = None
            self._say(f"The profile is dropped: the run ended before step {self._last}.")
        if threading.current_thread() is threading.main_thread() and self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
            self._before = None

    def dispatched(self, step: int) -> None:
        """After the dispatch of a step: begins a trace with the next one, or ends it here."""
        if self._made is not None:
            if step >= self._last:
                with self._meter.pausing("profile"), self._dispensable:
                    self._end()
        elif self._told or (self._at_step == step + 1 and jax.process_index() == 0):
            self._told, self._last = False, step + self._steps
            with self._meter.pausing("profile"), self._dispensable:
                self._begin()

    def _note(self, number, frame) -> None:
        del number, frame
        self._told = True

    def _begin(self) -> None:
        made = tempfile.mkdtemp(prefix="big_vlp_profile_")
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # of the loop's own frames there are more than of all else
        try:
            jax.profiler.start_trace(made, create_perfetto_trace=True, profiler_options=options)
        except Exception:
            shutil.rmtree(made, ignore_errors=True)
            raise
        self._made = made

    def _end(self) -> None:
        made, self._made = Path(self._made), None
        try:
            jax.profiler.stop_trace()
            table = costliest(made, self._steps)
            for path in made.rglob("*.*"):
                if path.is_file():
                    target = self._directory / path.relative_to(made)
                    make_directory(target.parent)
                    write_whole(target, path.read_bytes())
        finally:
            shutil.rmtree(made, ignore_errors=True)
        self._say(
            f"Profile of steps {self._last - self._steps + 1} to {self._last}, the costliest "
            f"operations:\n{table}\nIt lies in {self._directory}: `xprof --logdir` shows it there, "
            "and ui.perfetto.dev its perfetto_trace.json.gz."
        )


def costliest(directory: Path, steps: int) -> str:
    """A table of the operations of a trace in which the devices spent most: milliseconds of a step
    (of all devices that one process has), share, times, name. What an operation calls is not its
    own."""
    spent, times = operations(directory)
    total = sum(spent.values())
    if not total:
        return "  none: the profiler recorded no operation of a device"
    lines = [f"{'ms a step':>11} {'share':>6} {'times':>6}  operation"]
    for name, seconds in spent.most_common(_ROWS):
        lines.append(
            f"{1e3 * seconds / steps:11.3f} {seconds / total:6.1%} {times[name] / steps:6.0f}  "
            f"{name}"
        )
    rest = total - sum(seconds for _, seconds in spent.most_common(_ROWS))
    lines.append(f"{1e3 * rest / steps:11.3f} {rest / total:6.1%} {'':6}  all others")
    return "\n".join(lines)


def operations(directory: Path) -> tuple[Counter, Counter]:
    """({operation: seconds of its own}, {operation: how often}) of the traces in a directory."""
    spent, times = Counter(), Counter()
    for file in sorted(directory.rglob("*.xplane.pb")):
        data = jax.profiler.ProfileData.from_file(os.fspath(file))  # what is in it refers to it
        for line in _lines(list(data.planes)):
            _add_own([(e.start_ns, e.duration_ns, _name(e)) for e in line], spent, times)
    return spent, times


def _lines(planes) -> list[list]:
    """Events of what devices did, those of a list one after the other or within each other. On a
    CPU the threads of the host are the device, and have the host's own work between."""
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    if not devices:
        lines = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
        return [[e for e in line.events if "hlo_op" in dict(e.stats)] for line in lines]
    found = []
    for plane in devices:
        lines = list(plane.lines)
        of_xla = [line for line in lines if line.name == "XLA Ops"]
        chosen = of_xla or [line for line in lines if line.name.startswith("Stream")]
        found += [list(line.events) for line in chosen]
    return found


def _name(event) -> str:
    """Of an operation, and where in the model it comes from, where that is known."""
    stats = dict(event.stats)
    name = str(stats.get("hlo_op", event.name)).partition(" = ")[0].lstrip("%")
    where = str(stats.get("tf_op", "")).rstrip(":")
    return f"{name}  {where[-_WHERE:]}".rstrip()


def _add_own(events, spent: Counter, times: Counter) -> None:
    """Adds (begin, duration, name) in ns of one thread; what lies within another is not its own."""
    within = []
    for begin, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while within and within[-1][0] <= begin:
            within.pop()
        if within:
            spent[within[-1][1]] -= duration / 1e9
        within.append((begin + duration, name))
        spent[name] += duration / 1e9
        times[name] += 1
