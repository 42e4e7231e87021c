"""A run of two processes in a bucket that is killed again and again, beside one that is left alone.

`launch/local.sh` runs the tiny CLIP on gs:// (a server on this machine), with a checkpoint every 50
steps. At random moments, the same ones each time, it is hurt: SIGKILL to one process or to both,
SIGTERM to one or to the launcher, SIGSTOP to one, which the other's watchdog has to find and the
launcher to kill. Whoever was told to end is started again by the same command, the rest is the
launcher's affair. In the end both runs must have the same log to the bit, the same checkpoints, no
lease, nothing half-written; and memory that does not grow, which the plot shows.

Ends by itself after `minutes`, with an error if the run is not done by then.
"""

import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from big_vlp.telemetry.meter import CLOCKED
from tests.benchmarks.common import CannotRunError
from tests.bucket_server import GoogleServer, is_missing

ROOT = Path(__file__).parents[2]
BUCKET = "soak"
CHECKPOINT_STEPS, LOG_STEPS = 50, 10
WATCHDOG_MINUTES, GRACE_SECONDS = 0.75, 15
KINDS = (
    "SIGKILL to one", "SIGSTOP to one", "SIGTERM to one", "SIGKILL to both",
    "SIGTERM to the launcher",
)  # fmt: skip
LATE_SECONDS = 0.5  # a kill comes up to so long after its step
START_SHARE, START_SECONDS = 0.3, 15.0  # of the kills, and when in a start they come
MOST_GROWTH = 1.1  # of memory, see `Run.growth`
TOLD = 143


def measure(
    minutes: float = 40.0, steps: int = 2000, kills: int = 20, seed: int = 0, plot: str = "soak.png"
):
    """Args: when to give up; steps of the run; kills; of their moments; a picture of the memory."""
    if missing := [package for package in GoogleServer.packages if is_missing(package)]:
        raise CannotRunError(f"install {', '.join(missing)}")
    deadline = time.monotonic() + 60 * minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TOLD))  # what was started is ended, too
    with contextlib.ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="big_vlp_soak_")))
        server = GoogleServer(folder)
        opened.callback(server.stop)
        server.make_bucket(BUCKET)
        environment = environment_of(server, folder)
        alone, hurt = (
            Run(name, steps, environment, folder, deadline) for name in ("alone", "hurt")
        )
        for run in (alone, hurt):
            opened.callback(run.end)
        begun = time.monotonic()
        for number, (kind, moment) in enumerate(moments(steps, kills, seed)):
            at = hurt.wait_for(moment)
            pids = hurt.hurt(kind, random.Random(f"{seed} {number}"))
            yield {"row": f"{number + 1}", "case": kind, "moment": at, "processes": len(pids)}
        hurt.finish()
        seconds = time.monotonic() - begun
        alone.finish()
        growth = alone.growth()
        memory = {"peak_mib": alone.peak_mib(), "memory_growth": growth}
        yield {"row": "a", "case": "left alone", "seconds": alone.samples[-1][0], **memory}
        draw(plot, alone, hurt)
        found = {
            "seconds": seconds,
            "starts": hurt.starts,
            "difference": difference(read_log(server, "alone"), read_log(server, "hurt")),
            "left": left_behind(server, folder),
            "peak_mib": hurt.peak_mib(),
        }
        yield {"row": "b", "case": f"hurt {kills} times", **found, "plot": plot}
    if found["difference"] or found["left"] or not growth <= MOST_GROWTH:
        raise CannotRunError("the runs differ, or something is left, or memory grew; see above")


def environment_of(server: GoogleServer, folder: Path) -> dict[str, str]:
    """Of the launcher: the bucket, and programs that start fast."""
    (folder / "tmp").mkdir()
    return {
        **os.environ,
        **server.environment(),
        "PYTHON": sys.executable,
        "TMPDIR": str(folder / "tmp"),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def moments(steps: int, kills: int, seed: int) -> list[tuple[str, float | int]]:
    """(kind, moment) of each kill: after a step (int), or so many seconds after a start (float)."""
    draws, kinds = random.Random(seed), []
    while len(kinds) < kills:
        kinds += draws.sample(KINDS, len(KINDS))
    after = sorted(draws.randrange(LOG_STEPS, int(0.93 * steps)) for _ in range(kills))
    found = []
    for kind, step in zip(kinds, after):
        # What stands still in a start only the time limits of that find, which are long.
        in_start = draws.random() < START_SHARE and "SIGSTOP" not in kind
        found.append((kind, draws.uniform(1, START_SECONDS) if in_start else step))
    return found


class Run:
    """`launch/local.sh` with two processes, started again by whoever told it to end."""

    def __init__(self, name: str, steps: int, environment: dict, folder: Path, deadline: float):
        train = ["train", "--config", "tests/tiny_config.py:method=clip"]
        settings = {
            "total_steps": steps,
            "log_every_steps": LOG_STEPS,
            "checkpoint.every_steps": CHECKPOINT_STEPS,
            "watchdog_minutes": WATCHDOG_MINUTES,
            "evals.retrieval.every_steps": steps,
        }
        options = [f"--config.{key}={value}" for key, value in settings.items()]
        launcher = ["bash", "launch/local.sh", "--processes", "2", "--restarts", "10"]
        self._command = [*launcher, "--grace", str(GRACE_SECONDS), "--", *train, *options]
        self._command += ["--workdir", f"gs://{BUCKET}/{name}"]
        self._environment, self._deadline, self._steps = environment, deadline, steps
        self._log = open(folder / f"{name}.log", "wb")  # noqa: SIM115
        self._log_path = folder / f"{name}.log"
        self.samples = []  # (seconds, pid, MiB, step)
        self.hurts = []  # (seconds, kind)
        self._begun, self._ended = time.monotonic(), threading.Event()
        self._known, self._seen = set(), 0  # processes that were hurt, and bytes of the log then
        self._launcher = self._launch()
        threading.Thread(target=self._sample, daemon=True).start()

    @property
    def starts(self) -> int:
        return self._text().count("Training state:")

    def wait_for(self, moment: float | int) -> str:
        """Until a step was logged since the last hurt, and a little, or for so many seconds after
        both processes have come anew."""
        self._until(self._is_new)
        if isinstance(moment, float):
            time.sleep(moment)
            return f"{moment:.1f} s after a start"
        self._until(lambda: self._step() >= moment)
        late = random.Random(moment).uniform(0, LATE_SECONDS)
        time.sleep(late)
        return f"{late:.1f} s after step {moment}"

    def hurt(self, kind: str, draws: random.Random) -> list[int]:
        """Does it, to processes that were not hurt before."""
        self._until(self._is_new)
        pids = self.processes()
        self._known = set(pids)
        self.hurts.append((time.monotonic() - self._begun, kind))
        self._seen = self._log_path.stat().st_size
        number = getattr(signal, kind.partition(" ")[0])
        if "launcher" in kind:
            pids = [self._launcher.pid]
        elif "one" in kind:
            pids = [draws.choice(pids)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    def finish(self) -> None:
        """Until the run is done."""
        self._until(lambda: self._launcher.poll() == 0)
        self._ended.set()

    def end(self) -> None:
        """Leaves nothing behind, however the run stands."""
        self._ended.set()
        pids = self.processes()
        if self._launcher.poll() is None:
            self._launcher.send_signal(signal.SIGTERM)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._launcher.wait()
        self._log.close()

    def processes(self) -> list[int]:
        """Of the run, process 0 first; those that have ended do not count."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, StopIteration, ValueError):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if fields[1] != str(self._launcher.pid) or fields[0] in "ZX":
                    continue
                if b"big_vlp.train" in (path / "cmdline").read_bytes():
                    variables = (path / "environ").read_bytes().split(b"\0")
                    key = b"JAX_PROCESS_ID="
                    index = next(v for v in variables if v.startswith(key)).removeprefix(key)
                    found[int(index)] = int(path.name)
        return [found[index] for index in sorted(found)]

    def peak_mib(self) -> float:
        """The most memory that a process had."""
        return max((mib for _, _, mib, _ in self.samples), default=float("nan"))

    def growth(self) -> float:
        """Of the memory of the process that grew most, from the second fifth of the steps to the
        last one; of a run that was not hurt."""
        found = []
        for pid in {pid for _, pid, _, _ in self.samples}:
            mine = [(step / self._steps, mib) for _, p, mib, step in self.samples if p == pid]
            early = [mib for share, mib in mine if 0.2 <= share < 0.4]
            late = [mib for share, mib in mine if share >= 0.8]
            if early and late:
                found.append(statistics.median(late) / statistics.median(early))
        return max(found, default=float("nan"))

    def lives(self) -> dict[int, list[tuple[float, float]]]:
        """{pid: [(seconds, MiB)]}."""
        found = {}
        for second, pid, mib, _ in self.samples:
            found.setdefault(pid, []).append((second, mib))
        return found

    def _is_new(self) -> bool:
        pids = set(self.processes())
        return len(pids) == 2 and not pids & self._known

    def _launch(self) -> subprocess.Popen:
        return subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _until(self, is_so) -> None:
        while not is_so():
            ended = self._launcher.poll()
            told = (TOLD, 1) if self.hurts and "launcher" in self.hurts[-1][1] else (TOLD,)
            if ended in told:
                self._launcher = self._launch()
            elif ended is not None and not is_so():
                raise CannotRunError(f"the launcher ended with {ended}:\n{self._text()[-6000:]}")
            if time.monotonic() > self._deadline:
                raise CannotRunError(f"time is up at step {self._step()}:\n{self._text()[-3000:]}")
            time.sleep(0.1)

    def _text(self, start: int = 0) -> str:
        return self._log_path.read_bytes()[start:].decode(errors="replace")

    def _step(self) -> int:
        """The last one that was shown since the run was hurt."""
        text = self._text(self._seen)
        found = re.findall(rf"^step +(\d+)/{self._steps} ", text, re.MULTILINE)
        return int(found[-1]) if found else 0

    def _sample(self) -> None:
        while not self._ended.wait(0.5):
            step = self._step()
            for pid in self.processes():
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    if held := re.search(r"VmRSS:\s*(\d+)", status):  # none once it has ended
                        now = time.monotonic() - self._begun
                        self.samples.append((now, pid, int(held[1]) / 1024, step))


def objects(server: GoogleServer) -> list[str]:
    """The names of all that is in the bucket."""
    url, names, page = f"{server.url}/storage/v1/b/{BUCKET}/o", [], ""
    while True:
        with urllib.request.urlopen(f"{url}?pageToken={page}" if page else url) as answer:
            found = json.load(answer)
        names += [item["name"] for item in found.get("items", ())]
        page = quote(found.get("nextPageToken", ""))
        if not page:
            return names


def read_log(server: GoogleServer, name: str) -> dict:
    """{(step, split, metric): value} of a run's log, without what a clock says."""
    lines = []
    for part in sorted(n for n in objects(server) if n.startswith(f"{name}/metrics")):
        url = f"{server.url}/storage/v1/b/{BUCKET}/o/{quote(part, safe='')}?alt=media"
        with urllib.request.urlopen(url) as answer:
            lines += map(json.loads, answer.read().decode().splitlines())
    return {
        (line["step"], line["split"], metric): float(value)
        for line in lines
        for metric, value in line["values"].items()
        if metric not in CLOCKED
    }


def difference(expected: dict, found: dict) -> float:
    """The largest between two logs, in parts of the value; infinite where one lacks a number."""
    if expected.keys() != found.keys() or not expected:
        return float("inf")
    return max(abs(found[k] - v) / max(abs(v), 1e-12) for k, v in expected.items())


def left_behind(server: GoogleServer, folder: Path) -> list[str]:
    """What should not be there once both runs have ended."""
    names = objects(server)
    kept = {
        run: {name.split("/")[2] for name in names if name.startswith(f"{run}/checkpoints/")}
        for run in ("alone", "hurt")
    }
    wrong = [name for name in names if "/lease/" in name or "tmp" in name.lower()]
    wrong += sorted(kept["alone"] ^ kept["hurt"])
    for run, steps in kept.items():
        complete = {
            name.split("/")[2] for name in names if name.endswith("/commit_success.txt")
            and name.startswith(f"{run}/checkpoints/") and name.count("/") == 3
        }  # fmt: skip
        wrong += [f"{run}/checkpoints/{step}, incomplete" for step in sorted(steps - complete)]
    return wrong + [str(path) for path in (folder / "tmp").iterdir()]


def draw(plot: str, *runs: Run) -> None:
    """The memory of each process over time, and when it was hurt."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, run in enumerate(runs):
        axes = figure.add_subplot(len(runs), 1, row + 1)
        for life in run.lives().values():
            axes.plot(*zip(*life), linewidth=1)
        for second, kind in run.hurts:
            axes.axvline(second, color="grey", linestyle=":", linewidth=0.8)
            axes.annotate(kind, (second, 0), rotation=90, fontsize=6, color="grey")
        axes.set_ylim(0)
        axes.set_ylabel("MiB")
        axes.grid(alpha=0.3)
    axes.set_xlabel("seconds")
    figure.savefig(plot, dpi=120)
