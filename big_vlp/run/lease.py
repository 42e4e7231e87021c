"""The right to write into a work directory, which one run holds at a time.

A lease is one small file, WORKDIR/lease/N: who holds it, and a counter that a thread of the holder
raises every `RENEW_SECONDS`. Whoever finds a lease watches the counter on its own clock, so the
clocks of two machines need not agree: a holder whose counter stood still for `LAPSE_SECONDS` is
gone, and so is one whose process ended on this machine. Taking over is to create the file N + 1,
which the file system grants to one process only; a holder whose file is gone has lost the lease.
"""

import contextlib
import datetime
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from big_vlp.parallel.processes import from_first
from big_vlp.run.progress import Dispensable
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.files.buckets import create, is_in_bucket, make_directory, storage_path
from input_pipeline.files.whole import write_whole

DIRECTORY = "lease"
RENEW_SECONDS = 5.0
LAPSE_SECONDS = 60.0
_POLL_SECONDS = 0.2
_COUNTER = "012d"  # renewing writes over the old bytes: it works on a full disk too


class LeaseError(BigVlpError):
    """Another run writes into the work directory."""


class Lease:
    """Held from `acquire` to `release`; `check` says whether it still is."""

    def __init__(self, file: Path, holder: dict, say):
        self._file, self._holder = file, holder
        self._dispensable, self._failure = Dispensable(f"The lease {file}", say), None
        self._beats, self._renewed = 0, _clock()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, workdir: str | os.PathLike, say=lambda text: None) -> "Lease":
        """Takes the lease of a directory, which is made if missing.

        Waits up to `LAPSE_SECONDS` for a sign of life of a holder that may be gone.

        Args:
          say: is told when it waits, and for whom; later, when the lease cannot be renewed.

        Raises:
          LeaseError: another run holds it.
          OSError: the directory cannot be written.
        """
        directory = storage_path(workdir) / DIRECTORY
        holder = {**_this_process(), "id": uuid.uuid4().hex}
        while True:
            make_directory(directory)
            gone = {number: _read(_file(directory, number)) for number in _numbers(directory)}
            if gone:
                newest = max(gone)
                gone[newest] = _wait_until_lapsed(_file(directory, newest), workdir, say)
            file = _file(directory, max(gone, default=0) + 1)
            if not _create(file, _content(holder, 0)):
                continue
            # What is there beside it must be what has lapsed, or two have got one at once.
            others = {n: _read(_file(directory, n)) for n in _numbers(directory)}
            del others[int(file.name)]
            if any(content not in (None, gone.get(number)) for number, content in others.items()):
                file.unlink(missing_ok=True)
                continue
            for number in others:
                _file(directory, number).unlink(missing_ok=True)
            return cls(file, holder, say)

    def check(self) -> None:
        """Raises LeaseError where another run has taken over, as from a run that was suspended.

        Asks the file system only if the thread that renews is late. A run whose lease cannot be
        renewed goes on, and is told of whoever takes it over.
        """
        late = _clock() - self._renewed > 2 * RENEW_SECONDS
        if late:
            self._renew()
        if self._ended.is_set():
            raise LeaseError(
                f"Another run has taken over {self._file.parent.parent}: this one gave no sign of "
                f"life for {LAPSE_SECONDS:.0f} s (suspended?). It ends here and writes no more."
            )
        with self._dispensable:
            if late and self._failure is not None:
                raise self._failure

    def release(self) -> None:
        """Lets the next run begin at once."""
        with self._lock:
            lost = self._ended.is_set()
            self._ended.set()
        self._thread.join()
        if not lost:
            with contextlib.suppress(OSError):  # it lapses by itself
                self._file.unlink(missing_ok=True)
            if not is_in_bucket(self._file):
                with contextlib.suppress(OSError):  # the next holder may be there already
                    self._file.parent.rmdir()

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            self._renew()

    def _renew(self) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            try:
                _overwrite(self._file, _content(self._holder, self._beats + 1))
            except FileNotFoundError:
                self._ended.set()
            except OSError as error:
                self._failure = error  # perhaps away for a moment; `_renewed` stays old
            else:
                self._beats, self._renewed, self._failure = self._beats + 1, _clock(), None


@contextlib.contextmanager
def held_lease(workdir: str | os.PathLike, say=lambda text: None):
    """Within it this run has the lease, which process 0 holds; gives `Lease.check` (or nothing).

    Raises:
      LeaseError: another run holds it, or the directory cannot be written; in all processes.
    """
    lease = None

    def acquire() -> None:
        nonlocal lease
        try:
            lease = Lease.acquire(workdir, say)
        except OSError as error:
            raise LeaseError(
                f"{workdir} is no directory that can be written ({error}); correct --workdir."
            ) from error

    from_first(acquire, LeaseError)
    try:
        yield (lambda: None) if lease is None else lease.check
    finally:
        if lease is not None:
            lease.release()


def _create(file: Path, content: bytes) -> bool:
    """Whether the file is new, and this process' own."""
    try:
        create(file, content)
    except FileExistsError:
        # Another was faster; or the answer was lost, and a second request met what the first wrote.
        return is_in_bucket(file) and _read(file) == content
    except FileNotFoundError:
        if is_in_bucket(file):
            raise  # of the bucket
        return False  # the last holder removes the directory
    return True


def _overwrite(file: Path, content: bytes) -> None:
    """Puts other bytes of the same length into a lease. Does not make it anew: who takes over
    removes it.

    Raises:
      FileNotFoundError: it is gone, or another has taken over.
    """
    if is_in_bucket(file):
        # It may be taken over between these two: then it is the lesser number, and counts no more.
        if max(_numbers(file.parent), default=None) != int(file.name):
            raise FileNotFoundError(file)
        write_whole(file, content)
        return
    opened = os.open(file, os.O_WRONLY)
    try:
        os.pwrite(opened, content, 0)
    finally:
        os.close(opened)


def _wait_until_lapsed(file: Path, workdir, say) -> bytes | None:
    """What the lease says, or None, when its holder is gone.

    Raises:
      LeaseError: the holder shows that it lives.
    """
    content, since, said = _read(file), _clock(), False
    while content is not None and (alive := _is_alive(_holder(content))) is not False:
        now = _read(file)
        if alive or now not in (None, content):
            raise LeaseError(
                f"{workdir} is in use by {_name(now or content)}. One run, one directory: end "
                "that process, or give another --workdir."
            )
        waited = _clock() - since
        if now is None or waited > LAPSE_SECONDS:
            return now
        if not said and waited > 2 * _POLL_SECONDS:
            said = True
            say(
                f"{workdir} was in use by {_name(content)}; waiting {LAPSE_SECONDS:.0f} s for a "
                "sign of life."
            )
        time.sleep(_POLL_SECONDS)
    return content


def _name(content: bytes) -> str:
    holder = _holder(content)
    known = {key: holder.get(key, "(unknown)") for key in ("pid", "host", "since")}
    return "process {pid} on {host} since {since}".format(**known)


def _is_alive(holder: dict) -> bool | None:
    """Whether the holder's process runs; None where that cannot be known from here."""
    here = _this_process()
    if any(here[key] is None or holder.get(key) != here[key] for key in ("host", "boot", "pids")):
        return None
    found = _process(holder.get("pid"))
    if found is None or found[1] != holder.get("started") or found[0] in "ZX":
        return False
    return None if found[0] in "Tt" else True  # a suspended one may never go on


def _this_process() -> dict:
    pid = os.getpid()
    found = _process(pid)
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        # Hosts and containers may share a name, and numbers of processes are used again.
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "pids": _link("/proc/self/ns/pid"),
        "started": found and found[1],
    }


def _process(pid) -> tuple[str, str] | None:
    """State and start (in ticks since boot) of a process of this machine, from /proc."""
    text = _text(f"/proc/{pid}/stat")
    if text is None:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], fields[19]


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _content(holder: dict, beats: int) -> bytes:
    return (json.dumps(holder) + "\n" + format(beats, _COUNTER) + "\n").encode("ascii")


def _holder(content: bytes) -> dict:
    """What a lease says; {} where it was cut short."""
    try:
        found = json.loads(content.split(b"\n")[0])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _file(directory: Path, number: int) -> Path:
    return directory / str(number)


def _numbers(directory: Path) -> list[int]:
    try:
        names = [path.name for path in directory.iterdir()]
    except FileNotFoundError:  # the last holder has just removed it
        return []
    return [int(name) for name in names if name.isdecimal()]


def _clock() -> float:
    """Seconds that also count while the machine sleeps, where there is such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
