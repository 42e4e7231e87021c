"""What a model has written, kept beside the file it is for until that is whole.

FILE.parts/KEY-000000.jsonl and so on hold lines of `{"number", "text"}`, each file whole or not
there. KEY says what a pass over questions is of (see `Parts`), so that nothing is taken for the
answers of another checkpoint, of other data, or to other questions.
"""

import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
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
from input_pipeline.files.whole import in_directory, remove_directory, write_whole

PART_SECONDS = 30.0  # of work that is lost at most


class PartsError(BigVlpError, ValueError):
    """What a model wrote cannot be kept; the message says where."""


def directory_of(file: str | os.PathLike):
    """Where the parts of a file lie."""
    file = storage_path(file)
    return file.with_name(f"{file.name}.parts")


class Parts:
    """The texts of one pass over questions; all processes call it, the first one reads and writes.

    Args:
      file: that they are for.
      weights: see `weights_digest`.
      about: gives, in the first process, all else that the texts depend on.
    """

    def __init__(
        self,
        file: str | os.PathLike,
        mesh,
        weights: str,
        about: Callable[[], Iterable[str]],
    ):
        self._directory, self._mesh = directory_of(file), mesh
        self._weights, self._about, self._key = weights, about, ""
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
            self._key = fingerprint(self._weights, *self._about())
            lines = []
            for path in in_directory(self._directory):
                if path.name.startswith(f"{self._key}-") and path.name.endswith(".jsonl"):
                    lines += path.read_bytes().splitlines()
                    self._count = int(path.name.removesuffix(".jsonl").rpartition("-")[2]) + 1
            return [[one["number"], one["text"]] for one in map(json.loads, lines)]

        found = dict(cluster.broadcast(self._by_first(read)))
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
            if not is_last and time.monotonic() - self._written < PART_SECONDS:
                return
            lines = [{"number": i, "text": text} for i, text in sorted(self._waiting.items())]
            make_directory(self._directory)
            data = "".join(json.dumps(line) + "\n" for line in lines).encode()
            write_whole(self._directory / f"{self._key}-{self._count:06d}.jsonl", data)
            self._waiting.clear()
            self._count, self._written = self._count + 1, time.monotonic()

        self._by_first(write)

    def _by_first(self, act: Callable[[], Any]) -> Any:
        return by_first(self._mesh, self._directory, act)


def remove_parts(file: str | os.PathLike, mesh) -> None:
    """Of all passes, also of those that nobody goes on with."""
    parts = directory_of(file)
    by_first(mesh, parts, lambda: remove_directory(parts))


def by_first(mesh, where, act: Callable[[], Any]) -> Any:
    """`act()` in process 0, else None.

    Raises:
      PartsError: an OSError or ValueError of it; ProcessError on the others.
    """
    found = error = None
    if jax.process_index() == 0:
        try:
            found = act()
        except (OSError, ValueError, KeyError) as failed:
            reason = getattr(failed, "strerror", None) or failed
            error = PartsError(f"{where} cannot be used: {str(reason).rstrip('.')}.")
    raise_together(mesh, error)
    return found


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
