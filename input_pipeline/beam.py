"""Worker processes of a cluster: runs a command's tasks on Apache Beam (the extra `[beam]`).

It does what `workers.run_all` does on this machine, with any of Beam's runners. Tasks go to the
workers, and results come back, through files of a folder beside the command's output, which all
machines see: a bucket, or a disk that they share. So a job's description stays small however many
tasks there are, results arrive while it runs, and a bundle that a runner tries again finds what is
done already. The folder belongs to the last command that used it: a job whose command was killed
ends at its next task once the command is given again.
"""

import contextlib
import functools
import importlib.metadata
import io
import itertools
import os
import pickle
import platform
import re
import shutil
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from etils import epath
from rich.console import Console

from input_pipeline.files.buckets import is_in_bucket, make_directory
from input_pipeline.files.outages import Unreachable, tell, text_of
from input_pipeline.files.ranges import source_path
from input_pipeline.files.whole import in_directory, write_whole
from input_pipeline.workers import progress_bar

_FUNCTION = "function"
_TASKS, _RESULT = ".tasks", ".result"
_TASKS_PER_FILE = 500
# Looking for results takes this share of the time at most: a bucket is asked less often the longer
# its list becomes.
_LOOKING = 0.1
_LOOK_SECONDS = 0.2
# Network disks may show a file of another machine only so much later.
_LATE_SECONDS = 90
_END_SECONDS = 300  # that a job has to put its workers away
_OUTAGE_SECONDS = 600  # that a bucket may not answer the command, while the job goes on
# Runners whose servers have options of their own, which only they can check.
_SERVED = ("portable", "flink", "spark")
# What Beam calls its Direct runner chooses one of several. Where it can, it downloads a program and
# starts that (Prism), which knows none of the --direct_... options. This is the one that does.
_DIRECT = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
# What decides the bytes of the output: a worker of another version would write others.
_PACKAGES = (
    *("big_vlp", "array-record", "pyarrow", "numpy", "scipy"),
    *("opencv-python-headless", "pillow", "simplejpeg"),
    *("ftfy", "nltk", "textblob", "spacy"),
)


class Runner:
    """One of Beam's runners, with its options.

    Args:
      name: as Beam knows it, with or without "Runner", e.g. "Dataflow"; or the name of a class.
      options: further words of a command line, for Beam.
      folder: for tasks and results, beside the output; made here, and removed at the end.
      reads: paths, or patterns of them, that the tasks read.

    Raises:
      ValueError: Beam is not installed, there is no such runner or option, or the runner cannot
        reach the folder, or what is read.
    """

    def __init__(
        self,
        name: str,
        options: list[str],
        folder: Path | epath.Path,
        reads: Iterable[str | os.PathLike] = (),
    ):
        for path in (folder.parent, *reads) if "dataflow" in name.lower() else ():
            if not is_in_bucket(path):
                raise ValueError(
                    f"--runner {name}: its workers see no disk of this machine, where "
                    f"{os.fspath(path)} is: give one in a bucket (gs://...)."
                )
        try:
            # Imported here: an extra, and it takes seconds.
            import apache_beam as beam
        except ImportError as error:
            raise ValueError(
                f"--runner needs Apache Beam ({error}): pip install 'big_vlp[beam]'."
            ) from None
        make_options = beam.options.pipeline_options.PipelineOptions
        if "." not in name and not name.lower().endswith("runner"):
            name = f"{name[:1].upper()}{name[1:]}Runner"
        if name.lower() == "directrunner":
            name = _DIRECT
        try:
            beam.runners.runner.create_runner(name)
        except (ValueError, ImportError, AttributeError) as error:
            raise ValueError(f"--runner {name}: {error}") from None
        self._options = make_options(["--runner", name, *options])
        known = make_options([]).get_all_options().keys()
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                given = self._options.get_all_options(retain_unknown_options=True).keys()
        except SystemExit:  # after a page of help
            raise ValueError(said.getvalue().strip().rpartition("error: ")[2]) from None
        if name.lower().startswith(_SERVED):
            known = given
        if unknown := _unknown(options, given - known):
            raise ValueError(
                f"neither this command nor Beam has {' '.join(unknown)} (patterns need quotes)."
            )
        self._folder = folder if is_in_bucket(folder) else Path(os.path.abspath(folder))

    def run_all(
        self,
        function: Callable[..., Any],
        tasks: list[tuple[Any, tuple]],
        unit: str,
        console: Console,
    ) -> Iterator[tuple[Any, Any]]:
        """As `workers.run_all`, on the runner's machines; `function` is called again for a task
        whose worker was lost, also while that one is still at it.

        Raises:
          ValueError: the job failed, or tasks gave no result.
          Exception: what a call raised.
          KeyboardInterrupt: after the job was told to stop.
        """
        remove(self._folder)
        if not tasks:
            return
        exchange = self._folder / uuid.uuid4().hex
        try:
            files = _write_tasks(function, [arguments for _, arguments in tasks], exchange)
            job = _Job(self._options, files, exchange)
            with progress_bar(console, unit, sum(label.size for label, _ in tasks)) as advance:
                try:
                    for number, result in self._results(job, exchange, len(tasks)):
                        label = tasks[number][0]
                        yield label, result
                        advance(label.size)
                    job.is_over(_END_SECONDS)
                finally:
                    job.close()
        finally:
            with contextlib.suppress(Unreachable):  # the next command removes it
                remove(exchange)
            if not is_in_bucket(self._folder):
                with contextlib.suppress(OSError):  # another command's is there
                    self._folder.rmdir()

    def _results(
        self, job: "_Job", exchange: Path | epath.Path, count: int
    ) -> Iterator[tuple[int, Any]]:
        """(number, result) of each task, as they come."""
        found: set[int] = set()
        ended = silent = None
        while len(found) < count:
            is_over = job.is_over(_LOOK_SECONDS)
            started = time.monotonic()
            try:
                results, silent = _look(exchange, found), None
            except Unreachable as error:
                silent = silent or started
                if time.monotonic() - silent > _OUTAGE_SECONDS:
                    raise
                tell(text_of(error))
                results = {}
            for number, (is_value, result) in results.items():
                found.add(number)
                if not is_value:
                    raise result
                yield number, result
            if len(found) == count:
                return
            now = time.monotonic()
            if is_over and not silent:
                ended = ended or now
                if job.failure or now - ended > _LATE_SECONDS:
                    raise ValueError(self._told(job.failure, count - len(found), count))
            else:
                job.is_over((now - started) / _LOOKING)

    def _told(self, failure: str, missing: int, count: int) -> str:
        if failure:
            return (
                f"The Beam job failed with {missing} of {count} tasks to do: {failure}. Run the "
                "same command to continue."
            )
        return (
            f"The Beam job has ended, but {missing} of {count} tasks left no result: do all its "
            f"workers see {self._folder.parent} at this very path?"
        )


def _look(exchange: Path | epath.Path, found: Collection[int]) -> dict[int, tuple[bool, Any]]:
    """Number -> (whether it is a value, the value or error), of the tasks beside `found`.

    Raises:
      ValueError: another command has the folder now.
    """
    paths = in_directory(exchange)
    new = [path for path in paths if path.suffix == _RESULT and int(path.stem) not in found]
    try:
        if any(path.name == _FUNCTION for path in paths):
            return {int(path.stem): pickle.loads(path.read_bytes()) for path in new}
    except FileNotFoundError:
        pass  # it has begun just now
    raise ValueError("Another command with this --output has begun, and goes on instead of this.")


class _Job:
    """A pipeline that runs in a thread: some runners return at its end only."""

    def __init__(self, options: Any, files: int, exchange: Path | epath.Path):
        self.failure = ""
        self._result = None
        self._over = threading.Event()
        self._lost = False
        self._hook = threading.excepthook
        threading.excepthook = self._note_lost_worker
        work = threading.Thread(target=self._run, args=(options, files, exchange), daemon=True)
        work.start()

    def _run(self, options: Any, files: int, exchange: Path | epath.Path) -> None:
        import apache_beam as beam

        folder = os.fspath(exchange)
        try:
            pipeline = beam.Pipeline(options=options)
            (
                pipeline
                | "files" >> beam.Create(range(files))
                | "tasks" >> beam.FlatMap(_tasks, folder).with_output_types(tuple[int, bytes])
                | "spread" >> beam.Reshuffle()
                | "work" >> beam.Map(_work, folder)
            )
            self._result = pipeline.run()
            state = self._result.wait_until_finish() or self._result.state
            if state != "DONE":
                self.failure = f"it ended as {state}"
        except BaseException as error:  # whatever a runner raises, in another thread
            self.failure = _reason(error)
        finally:
            self._over.set()

    def _note_lost_worker(self, raised: Any) -> None:
        """The Direct runner would wait for a process of its own that was killed, for ever."""
        if "Worker subprocess exited" not in str(raised.exc_value):
            self._hook(raised)
        elif not self._over.is_set():
            self.failure = "a worker process was killed (out of memory?)"
            self._lost = True

    def is_over(self, seconds: float) -> bool:
        """Waits so long for the end."""
        return self._lost or self._over.wait(seconds)

    def close(self) -> None:
        """Tells a job that is not over to stop."""
        threading.excepthook = self._hook
        if self._over.is_set():
            return
        if self._result is not None:
            with contextlib.suppress(Exception):  # the runner cannot; its tasks will not be found
                self._result.cancel()
        _end_workers(os.getpid())


def _reason(error: BaseException) -> str:
    """One line of what a runner raised: of several, with tracebacks of other machines, the last
    that names an error."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return named[-1] if named else f"{type(error).__name__}: {lines[-1]}"


def _unknown(words: list[str], names: Collection[str]) -> list[str]:
    """The words that are options of these names, or values of none."""
    found = []
    for before, word in itertools.pairwise(["", *words]):
        name, equals, _ = before.partition("=")
        if word.startswith("-"):
            if word.partition("=")[0].strip("-").replace("-", "_") in names:
                found.append(word)
        elif equals or not name.startswith("-"):
            found.append(word)
    return found


def _end_workers(process: int) -> None:
    """Ends the processes that the Direct runner has started, for whose end this one would wait."""
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # gone
            for child in map(int, file.read_text().split()):
                _end_workers(child)
                if b"apache_beam.runners.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, signal.SIGKILL)


def _write_tasks(function: Callable, tasks: list[tuple], exchange: Path | epath.Path) -> int:
    """Writes what the workers read; returns the number of files of tasks."""
    make_directory(exchange)
    pickled = pickle.dumps(function)
    write_whole(exchange / _FUNCTION, pickle.dumps((_versions(), os.getcwd(), pickled)))
    starts = range(0, len(tasks), _TASKS_PER_FILE)
    for number, start in enumerate(starts):
        part = tasks[start : start + _TASKS_PER_FILE]
        data = [(start + i, pickle.dumps(arguments)) for i, arguments in enumerate(part)]
        write_whole(exchange / f"{number}{_TASKS}", pickle.dumps(data))
    return len(starts)


def _tasks(file: int, folder: str) -> list[tuple[int, bytes]]:
    """The (number, pickled arguments) of a file, on a worker."""
    return pickle.loads((source_path(folder) / f"{file}{_TASKS}").read_bytes())


def _work(task: tuple[int, bytes], folder: str) -> None:
    """Calls the function for a task, on a worker, and writes the result, or what was raised."""
    number, arguments = task
    exchange = source_path(folder)
    result = exchange / f"{number}{_RESULT}"
    if result.exists():  # of an earlier attempt at this bundle
        return
    _check_command(exchange)
    function = _function(folder)
    try:
        answer = pickle.dumps((True, function(*pickle.loads(arguments))))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        answer = _pickled_error(error)
    _check_command(exchange)
    write_whole(result, answer)


def _check_command(exchange: Path | epath.Path) -> None:
    """A task of a command that has ended must not be begun: it would write what a later command
    with this output may have written in another way."""
    if not (exchange / _FUNCTION).exists():
        raise FileNotFoundError(f"{exchange} is gone: the command of this job has ended")


@functools.lru_cache(maxsize=4)
def _function(folder: str) -> Callable[..., Any]:
    versions, directory, pickled = pickle.loads((source_path(folder) / _FUNCTION).read_bytes())
    for package, version in _versions().items():
        if version != versions[package]:
            error = (
                f"a worker has {package} {version}, and the command {versions[package]}: give all "
                "machines the same processors and packages (--sdk_container_image)"
            )
            return functools.partial(_refuse, error)
    if os.path.isdir(directory):  # relative paths mean what they mean to the command
        os.chdir(directory)
    return pickle.loads(pickled)


def _refuse(text: str, *_: Any) -> None:
    raise ValueError(text)


def _versions() -> dict[str, str]:
    """Of what decides the output: the kind of processor, and packages; a checkout that is not
    installed has no version."""
    found = {"processor": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def _pickled_error(error: Exception) -> bytes:
    """What raises the error elsewhere; one that does not survive it is a RuntimeError there."""
    try:
        data = pickle.dumps((False, error))
        pickle.loads(data)
        return data
    except Exception:
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))


def remove(folder: Path | epath.Path) -> None:
    """Removes a folder and all in it, where it is there; others may do so or write there, too."""
    if is_in_bucket(folder):
        with contextlib.suppress(FileNotFoundError):
            folder.rmtree()
    else:
        shutil.rmtree(folder, ignore_errors=True)
