"""Runs a function over rows on every host and device; every host gets the same values."""

import functools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from big_vlp.parallel import cluster, meshes
from big_vlp.parallel.processes import raise_together
from evaluators.shared.records import image_of
from input_pipeline.records import BrokenRecordError, given, what_is_wrong

NUM_THREADS = min(16, 2 * (os.cpu_count() or 1))
BATCHES_AHEAD = 2
READ_AT_ONCE = 64


class RowMap:
    """Maps `fn(params, batch) -> array[B, ...]` over rows, sharded over ("data", "fsdp").

    Each process loads the rows that its own devices hold. The last batch is padded by repeating
    the last row, and the padding is cut off again, so neither the number of devices nor the batch
    size shows in the result.
    """

    def __init__(self, fn: Callable, mesh: Mesh):
        self._gathered = jax.jit(fn, out_shardings=meshes.replicated(mesh))
        self._split = jax.jit(fn, out_shardings=meshes.over_batch(mesh))
        self._mesh = mesh
        self._shards = math.prod(mesh.shape[axis] for axis in meshes.BATCH_AXES)

    def __call__(
        self,
        params,
        load: Callable[[int], Mapping[str, np.ndarray]],
        count: int,
        batch_size: int,
    ) -> np.ndarray:
        """Runs rows 0..count-1 in order.

        Args:
          params: first argument of `fn`.
          load: gives row i as a dict of arrays without a batch axis; called from threads.
          count: number of rows, at least 1.
          batch_size: rows on all devices together; rounded up to a multiple of the devices, and no
            larger than `count` needs.

        Returns:
          `fn`'s outputs for the `count` real rows, the same numpy array on every host.

        Raises:
          BrokenRecordError: what `load` raised, but for want of memory; it names the row.
        """
        return np.concatenate(list(self.stream(params, load, count, batch_size)))

    def stream(self, params, load, count: int, batch_size: int) -> Iterator[np.ndarray]:
        """As calling it, but yields the outputs of one batch after the other."""
        for start, output in self._batches(self._gathered, params, load, count, batch_size):
            yield np.asarray(output)[: count - start]

    def local(self, params, load, count: int, batch_size: int) -> Iterator[tuple[int, jax.Array]]:
        """As calling it, for outputs that are too large to be gathered.

        Yields:
          (row, output on one device) of the real rows that this process' devices hold, each once.
          All processes together yield every row; those that share rows yield them several times.
        """
        for start, output in self._batches(self._split, params, load, count, batch_size):
            # Devices along "tensor" hold copies of the same rows.
            parts = {
                part.index[0].indices(len(output))[0]: part.data
                for part in output.addressable_shards
            }
            for first, rows in sorted(parts.items()):
                real = min(len(rows), count - start - first)
                for offset in range(real):
                    with own_device(rows):
                        row = rows[offset]
                    yield start + first + offset, row

    def rows_of_batch(self, count: int, batch_size: int) -> int:
        """How many rows a batch has, of so many that are asked for at most."""
        return -(-min(batch_size, count) // self._shards) * self._shards

    def _batches(self, fn, params, load, count: int, batch_size: int):
        """Yields (first row, output) of every batch, padded."""
        batch_size = self.rows_of_batch(count, batch_size)
        offsets = meshes.local_rows(self._mesh, batch_size)
        running, waiting = None, deque()
        with ThreadPoolExecutor(NUM_THREADS) as pool:

            def submit(start):
                rows = [min(start + offset, count - 1) for offset in offsets]
                futures = {row: pool.submit(load_row, load, row) for row in dict.fromkeys(rows)}
                waiting.append((start, [futures[row] for row in rows]))

            starts = iter(range(0, count, batch_size))
            for _, start in zip(range(BATCHES_AHEAD), starts):
                submit(start)
            while waiting:
                start, futures = waiting.popleft()
                rows = self._loaded(futures, pool)
                local = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
                for next_start in starts:
                    submit(next_start)
                    break
                batch = meshes.global_batch(local, self._mesh, batch_size)
                previous, running = running, (start, fn(params, batch))
                if previous is not None:  # read one batch late: one process' device is never idle
                    yield previous
        yield running

    def _loaded(self, futures, pool) -> list[dict]:
        """The rows; ends the evaluation on all hosts where one fails, or is told to end."""
        rows, error = [], None
        try:
            rows = [future.result() for future in futures]
        except Exception as failed:
            error = failed
        try:
            raise_together(self._mesh, error)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return rows


def load_row(load: Callable[[int], Any], row: int) -> Any:
    """`load(row)`; its errors name the row, as BrokenRecordError."""
    try:
        return load(row)
    except MemoryError:
        raise
    except Exception as error:  # Malformed records raise many types.
        raise BrokenRecordError(what_is_wrong(f"Record number {row}", error)) from error


def each_once(make: Callable[[int], Any], most: int) -> Callable[[int], Any]:
    """`make` for threads that ask for the same again and again: of the last `most` rows what was
    made is kept, and who asks while it is made waits."""
    lock, kept = threading.Lock(), functools.lru_cache(most)(lambda row: (threading.Lock(), []))

    def get(row):
        with lock:
            own, made = kept(row)
        with own:
            if not made:
                made.append(make(row))
        return made[0]

    return get


def own_device(x: jax.Array):
    """A context for computing with an array on one device, whatever mesh is ambient."""
    return jax.set_mesh(Mesh(np.array(list(x.devices())), ("device",)))


def replicate(tree, mesh: Mesh):
    """Puts numpy arrays, equal on all hosts, onto every device of the mesh."""
    whole = meshes.replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: x[index]), tree
    )


def gather_rows(local: Mapping[int, Any], count: int) -> list:
    """Merges what the processes know about their rows; values must be JSON data.

    Args:
      local: row index -> value, the rows that this process has read. All processes together
        cover 0..count-1.

    Returns:
      The `count` values in row order, on every host.
    """
    merged = {}
    for part in cluster.gather(list(local.items())):
        merged.update(part)
    return [merged[row] for row in range(count)]


def read_fields(source, describe: Callable[[dict], Any], rows: Sequence[int]) -> list:
    """`describe(record)` of some rows of a source; the records have no `image`, see
    `Source.fields`.

    Raises:
      BrokenRecordError: what `describe` raised, but for want of memory; it names the record.
    """

    def read(first: int) -> list:
        some = rows[first : first + READ_AT_ONCE]
        found = dict(zip(some, source.fields(some)))
        return [load_row(lambda row: describe(given(found[row])), row) for row in some]

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            parts = list(pool.map(read, range(0, len(rows), READ_AT_ONCE)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [value for part in parts for value in part]


def map_fields(mesh: Mesh, source, describe: Callable[[dict], Any], rows: Sequence[int]) -> list:
    """As `read_fields`, on every host; each record is read by one. Values must be JSON data.

    Raises:
      BrokenRecordError: as `read_fields`; ProcessError where it is another process' own.
    """
    own, found, error = range(jax.process_index(), len(rows), jax.process_count()), [], None
    try:
        found = read_fields(source, describe, [rows[place] for place in own])
    except Exception as failed:
        error = failed
    raise_together(mesh, error)
    return gather_rows(dict(zip(own, found)), len(rows))


def map_images(
    row_map: RowMap,
    model,
    source,
    preprocess,
    batch_size: int,
    describe: Callable[[dict], Any],
) -> tuple[np.ndarray, list]:
    """Applies a function of {"image"} to all images of a source.

    Each record is read once and by one host.

    Args:
      describe: what to keep of a record besides its image, as JSON data.

    Returns:
      Outputs [N, ...] and the N descriptions, in the source's order, on every host.
    """
    described = {}

    def load(row):
        record = source[row]
        described[row] = describe(record)
        return {"image": image_of(record, preprocess)}

    outputs = row_map(model, load, len(source), batch_size)
    return outputs, gather_rows(described, len(source))


def num_outputs(fn: Callable, model, preprocess, mesh: Mesh) -> int:
    """Length of the last axis of what a function of {"image"} returns; runs nothing."""
    side, rows = preprocess.image_size, mesh.size
    image = jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8)
    return jax.eval_shape(fn, model, {"image": image}).shape[-1]
