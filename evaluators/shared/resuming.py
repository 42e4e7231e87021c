"""What a model has written, kept beside the file it is for until that is whole.

FILE.parts/KEY-000000.jsonl and so on hold lines of `{"number", "text"}`, each file whole or not
there. KEY says what a pass over questions is of (see `Parts`), so that nothing is taken for the
answers of another checkpoint, of other data, or to other questions.
"""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from big_vlp.parallel import cluster, meshes
from big_vlp.parallel.processes import raise_together
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.files.buckets import make_directory, storage_path
from input_pipeline.files.listing import fingerprint
from input_pipeline.files.whole import in_directory, parts_of, remove_directory, write_whole

PART_SECONDS = 30.0  # after which what was written is put on the disk


class PartsError(BigVlpError, ValueError):
    """What a model wrote cannot be kept; the message says where."""


class Parts:
    """The texts of one pass over questions; all processes call it, the first one reads and writes.

    Args:
      file: that they are for.
      about: gives, in the first process, all that the texts depend on.
    """

    def __init__(self, file: str | os.PathLike, mesh, about: Callable[[], Iterable[str]]):
        self._directory, self._mesh = parts_of(storage_path(file)), mesh
        self._about, self._key = about, ""
        self._waiting: dict[int, str] = {}
        self._count, self._written = 0, time.monotonic()

    def found(self, count: int) -> dict[int, str]:
        """Number of a question -> text, of those that an earlier run wrote; on all processes.

        Args:
          count: of the questions.

        Raises:
          PartsError: they cannot be read.
        """

        def read():
            self._key = fingerprint(*self._about())
            lines = []
            with using(self._directory):
                for path in in_directory(self._directory):
                    if path.name.startswith(f"{self._key}-") and path.name.endswith(".jsonl"):
                        number, some = _read(path)
                        lines += some
                        self._count = number + 1
            return lines

        found = dict(cluster.broadcast(by_first(self._mesh, read)))
        if found and jax.process_index() == 0:
            logging.warning(
                "%d of %d answers are there already, in %s.", len(found), count, self._directory
            )
        self._written = time.monotonic()
        return found

    def add(self, texts: Mapping[int, str], is_last: bool) -> None:
        """Keeps some more; they are on the disk at once with the last ones, else before long.

        Raises:
          PartsError: they cannot be written.
        """

        def write():
            self._waiting.update(texts)
            if is_last or time.monotonic() - self._written >= PART_SECONDS:
                self._write()

        by_first(self._mesh, write)

    def close(self) -> None:
        """Puts what waits on the disk, where the evaluation ends early and it can be."""
        with contextlib.suppress(PartsError):
            self._write()

    def _write(self) -> None:
        if not self._waiting:  # as ever but in the first process
            return
        lines = [{"number": i, "text": text} for i, text in sorted(self._waiting.items())]
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with using(self._directory):
            make_directory(self._directory)
            write_whole(self._directory / f"{self._key}-{self._count:06d}.jsonl", data)
        self._waiting.clear()
        self._count, self._written = self._count + 1, time.monotonic()


def _read(path) -> tuple[int, list[tuple[int, str]]]:
    """Number of a file of parts, and (number of a question, text) of each line.

    Raises:
      PartsError: it holds something else.
      OSError: it cannot be read.
    """
    try:
        number = int(path.name.removesuffix(".jsonl").rpartition("-")[2])
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        return number, [(line["number"], line["text"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise PartsError(
            f"{path} is damaged: delete it, and what was in it is asked again."
        ) from error


def remove_parts(file: str | os.PathLike) -> None:
    """Of all passes, also of those that nobody goes on with, by the first process. What cannot be
    removed is told: no later evaluation takes it for another's."""
    if jax.process_index() != 0:
        return
    parts = parts_of(storage_path(file))
    try:
        for path in in_directory(parts):
            with contextlib.suppress(OSError):
                path.unlink()
        remove_directory(parts)
    except OSError as error:
        logging.warning("%s can be deleted, which failed: %s.", parts, _reason(error))


def by_first(mesh, act: Callable[[], Any]) -> Any:
    """`act()` in process 0, else None.

    Raises:
      Exception: what it raises; ProcessError on the others.
    """
    found = error = None
    if jax.process_index() == 0:
        try:
            found = act()
        except Exception as failed:  # of whatever kind: the others wait
            error = failed
    raise_together(mesh, error)
    return found


@contextlib.contextmanager
def using(where) -> Iterator[None]:
    """Within it an OSError is a PartsError that says where."""
    try:
        yield
    except OSError as error:
        raise PartsError(f"{where} cannot be used: {_reason(error)}.") from error


def _reason(error: OSError) -> str:
    return str(error.strerror or error).rstrip(".")


def weights_digest(model, mesh) -> str:
    """16 hex digits of all values of a model, wherever they lie.

    Each array gives two sums, modulo 2^32, of its values' bits mixed with their places: these do
    not depend on how it is split over devices.
    """
    leaves = jax.tree_util.tree_leaves_with_path(model)
    sums = [_sums(mesh)(value) for _, value in leaves]
    return fingerprint(
        *(
            f"{jax.tree_util.keystr(path)} {value.shape} {value.dtype} {np.asarray(found)}"
            for (path, value), found in zip(leaves, sums)
        )
    )


@functools.cache
def _sums(mesh) -> Callable:
    return jax.jit(_mixed_sums, out_shardings=meshes.replicated(mesh))


def _mixed_sums(x) -> jax.Array:
    """u32[2]"""
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    mixed = _mix(bits ^ _mix(place + np.uint32(1)))
    return jnp.stack([mixed.sum(dtype=jnp.uint32), _mix(mixed).sum(dtype=jnp.uint32)])


def _mix(x):
    """u32 -> u32, the finalizer of MurmurHash3."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
