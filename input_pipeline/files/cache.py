"""Copies of a bucket's files on a local disk, which is nearer: shards and tars as a whole.

A file is read where it lies until its copy is there. Copies are fetched in the background, one at a
time on a machine, in the order in which their files are first needed. When the bound is reached the
other files stay where they are: while all records are drawn alike, what is there is as good as what
could come instead. `NAME.json` beside a copy has its checksum and, as its own time, when the copy
was last checked: every run checks what it finds.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import absl.logging

from input_pipeline.checks.paths import local_path
from input_pipeline.files import ranges
from input_pipeline.files.ranges import File
from input_pipeline.files.whole import TEMPORARY_SUFFIX, write_json

_PART_BYTES, _PARTS_AT_ONCE = 8 * 2**20, 4
_COPY = re.compile(r"[0-9a-f]{16}-.*(?<!\.json)")
_LOCK, _SAID = "lock", "full"
# After a file could not be fetched.
_REST_SECONDS = 30.0


class Cache:
    """The copies in one directory, shared by all processes of a machine and by later runs.

    Pickling ships the settings; every process looks at the directory itself.

    Args:
      folder: where they lie; made if missing.
      gigabytes: the most that they take together.

    Raises:
      PathError: `folder` is in a bucket.
      ValueError: the bound is not above 0.
      OSError: the directory cannot be made.
    """

    def __init__(self, folder: str | os.PathLike, gigabytes: float):
        self._folder = local_path(folder)
        if isinstance(gigabytes, bool) or not gigabytes > 0:
            raise ValueError(f"cache_gb={gigabytes!r}: give the most that copies take, above 0.")
        self._bound, self._started = int(gigabytes * 1e9), time.time()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._begin()

    def _begin(self) -> None:
        self._here: dict[str, Path] = {}
        self._asked: set[str] = set()
        self._wanted: queue.SimpleQueue[File] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_full = False

    def __getstate__(self):
        return {name: self.__dict__[name] for name in ("_folder", "_bound", "_started")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._begin()

    def find(self, file: File) -> Path | None:
        """The copy of a file, checked since the run began. None where there is none or not yet:
        then it is fetched in the background, if there is room."""
        name = _name(file)
        if found := self._here.get(name):
            return found
        if self._is_newer(f"{name}.json"):
            self._here[name] = self._folder / name
            return self._here[name]
        with self._lock:
            if name not in self._asked:
                self._asked.add(name)
                self._wanted.put(file)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
        return None

    def _is_newer(self, name: str) -> bool:
        """Whether a file was written since the run began."""
        try:
            return os.stat(self._folder / name).st_mtime >= self._started
        except OSError:
            return False

    def _work(self) -> None:
        while True:
            file = self._wanted.get()
            text = f"Data cache {self._folder}: no copy of {file.path}"
            try:
                with self._alone():
                    if self._provide(file):
                        self._here[_name(file)] = self._folder / _name(file)
            except ValueError as error:
                absl.logging.warning("%s: %s", text, error)
            except OSError as error:
                if error.errno is not None:  # of the disk: it is full, or may not be written to
                    self._stop_fetching(str(error))
                    continue
                absl.logging.warning("%s yet (%s).", text, error)
                time.sleep(_REST_SECONDS)
                self._asked.discard(_name(file))  # it is asked for when it is needed again

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Among all processes of the machine; a killed one stands in nobody's way."""
        with open(self._folder / _LOCK, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _provide(self, file: File) -> bool:
        """Checks the copy of a file, or fetches one where there is none, or a damaged one. Returns
        whether it is there."""
        name = _name(file)
        copy, note = self._folder / name, self._folder / f"{name}.json"
        if self._is_newer(note.name):
            return True  # another process was here
        if copy.exists():
            if checksum := _check(copy, note, file):
                write_json(note, checksum)
                return True
            absl.logging.warning("Data cache: %s is damaged; it is fetched anew.", copy)
            copy.unlink()
        note.unlink(missing_ok=True)
        if self._is_full:
            return False
        taken = sum(e.stat().st_size for e in os.scandir(self._folder) if _COPY.fullmatch(e.name))
        if taken + file.size > self._bound:
            self._stop_fetching(f"it holds {taken / 1e9:.3g} of its {self._bound / 1e9:.3g} GB")
            return False
        write_json(note, self._fetch(file, copy))
        return True

    def _fetch(self, file: File, copy: Path) -> str:
        """Its checksum."""
        for left in self._folder.glob(f".*{TEMPORARY_SUFFIX}"):
            left.unlink()  # of a process that was killed
        temporary = copy.with_name(f".{copy.name}{TEMPORARY_SUFFIX}")
        digests = {kind: hashlib.new(kind) for kind in ("sha256", _kind(file.checksum))}
        try:
            with open(temporary, "wb") as target:
                for data in _contents(file):
                    target.write(data)
                    for digest in digests.values():
                        digest.update(data)
                target.flush()
                os.fsync(target.fileno())
            sums = {f"{kind}:{digest.hexdigest()}" for kind, digest in digests.items()}
            if _is_known(file.checksum) and file.checksum not in sums:
                raise ValueError(f"what is there has not the checksum {file.checksum}.")
            os.replace(temporary, copy)
        finally:
            temporary.unlink(missing_ok=True)
        return f"sha256:{digests['sha256'].hexdigest()}"

    def _stop_fetching(self, why: str) -> None:
        """Said by one of the processes."""
        self._is_full = True
        if not self._is_newer(_SAID):
            with contextlib.suppress(OSError):
                (self._folder / _SAID).write_bytes(b"")
            absl.logging.warning(
                "Data cache %s: %s. What is not in it is read from the bucket; copies of other "
                "data than this run's stay until you delete them.",
                self._folder,
                why,
            )


def _name(file: File) -> str:
    key = hashlib.sha256(f"{file.path} {file.size} {file.checksum}".encode()).hexdigest()[:16]
    return f"{key}-{file.path.name}"


def _contents(file: File) -> Iterator[bytes]:
    starts = range(0, file.size, _PART_BYTES)
    parts = [(file, start, min(_PART_BYTES, file.size - start)) for start in starts]
    for first in range(0, len(parts), _PARTS_AT_ONCE):
        for data in ranges.read(parts[first : first + _PARTS_AT_ONCE]):
            if isinstance(data, Exception):
                raise data
            yield data


def _check(copy: Path, note: Path, file: File) -> str:
    """The checksum of a copy that is what it should be, else ""."""
    expected = file.checksum
    if not _is_known(expected):
        try:
            expected = str(json.loads(note.read_bytes()))
        except (FileNotFoundError, ValueError):
            expected = ""
    if copy.stat().st_size != file.size or not _is_known(expected):
        return ""
    with open(copy, "rb") as data:
        found = hashlib.file_digest(data, _kind(expected)).hexdigest()
    return expected if f"{_kind(expected)}:{found}" == expected else ""


def _is_known(checksum: str) -> bool:
    return checksum.startswith(("sha256:", "md5:"))


def _kind(checksum: str) -> str:
    return "md5" if checksum.startswith("md5:") else "sha256"
