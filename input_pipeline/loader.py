"""The training loader: global batch number `step` is a pure function of (config, step).

There is no iterator state: a run that starts at step s asks for batches s, s+1, ... and gets what
an uninterrupted run would have got, with any number of workers, threads and processes.

What is made at a time is a part of a batch, so that all workers make the first one together, and
hold no more than `prefetch_batches` of them. Each part goes to its place in the batch as it comes.
"""

import collections
import dataclasses
import functools
import gc
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from input_pipeline import workers
from input_pipeline.files.outages import Unreachable
from input_pipeline.order import MixedOrder, shuffled
from input_pipeline.records import BrokenRecordError, given, what_is_wrong
from input_pipeline.sources import Source

# Positions that are tried in place of a broken record.
MAX_STAND_INS = 10
# Records that are read at once, and held in memory; a bucket is slow to answer each.
_READ_AT_ONCE = 64
# Of a part that a worker makes. Smaller ones would be many, each an open file of this process.
_MAX_ROWS = 256
# Grain frees memory in a thread, and gives no way to wait for it.
_FREEING_SECONDS = 0.3


@dataclasses.dataclass(frozen=True)
class Replaced:
    """An example in whose place another stands.

    Attributes:
      step: whose batch it belongs to.
      position: its global position.
      reason: what is wrong with the record of that position; names it.
    """

    step: int
    position: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Loader:
    """Host-local rows of the global batches of a run.

    Example number p of the run (its global position) is record `order[p]` of the source: a
    permutation by (seed, epoch), repeated; for a source that mixes by weight, see `MixedOrder`. Its
    augmentation is drawn from (seed, p) alone. So is what stands in for a broken record: the record
    of another position.

    Attributes:
      source: see `input_pipeline.sources`.
      views: {image size: `views(record, rng) -> dict of arrays`}, see `input_pipeline.views`.
      plan: image size and global batch of each step, see `input_pipeline.plans`.
      total_steps: length of the run.
      seed: of order and augmentation.
      rows: {global batch: which of its rows this process makes}; None makes all.
      num_workers: worker processes; 0 loads in threads of this one.
      num_threads: parts of a batch that are made at a time in each process.
      prefetch_batches: finished batches kept ready, in all workers together.
      on_broken: "stop" ends the run at a broken record, "replace" takes another one.
      max_broken_share: of the examples, above which a run with "replace" ends.
    """

    source: Source
    views: Mapping[int, Any]
    plan: Callable[[int], tuple[int, int, int]]
    total_steps: int
    seed: int
    rows: Mapping[int, Sequence[int]] | None = None
    num_workers: int = 0
    num_threads: int = 1
    prefetch_batches: int = 1
    on_broken: str = "stop"
    max_broken_share: float = 0.1

    def __post_init__(self):
        if self.on_broken not in ("stop", "replace"):
            raise ValueError(f"on_broken={self.on_broken!r}; choose stop or replace.")
        if not len(self.source):
            raise ValueError("The data source is empty: there is nothing to train on.")

    def positions(self, step: int, part: slice = slice(None)) -> list[int]:
        """Global positions of this process' rows of a step, or of a part of them."""
        _, size, first = self.plan(step)
        return [first + row for row in self._rows(size)[part]]

    def _rows(self, size: int) -> Sequence[int]:
        """This process' rows of a global batch."""
        return range(size) if self.rows is None else self.rows[size]

    def batch(self, step: int, part: slice = slice(None)) -> dict[str, np.ndarray]:
        """This process' rows of global batch `step`, stacked, or a part of them.

        Raises:
          BrokenRecordError: a record cannot be used, and none may or can stand in for it.
        """
        return self._batch(step, part)[0]

    def first_rows(self, step: int, count: int) -> dict[str, np.ndarray]:
        """The first rows of `batch`; the others are not read."""
        return self._batch(step, slice(count))[0]

    def ids(self, step: int) -> list[str]:
        """Ids of the records in a step's whole global batch, for reports about bad batches."""
        size, count, first = self.plan(step)
        positions, order = range(first, first + count), self._order()
        found = self._read(order, positions)
        if self.on_broken == "stop":
            return [given(record)["id"] for record in found]
        views = self.views[size]
        return [self._example(order, p, views, first)[1] for p, first in zip(positions, found)]

    def iterate(self, start_step: int) -> "Batches":
        """Batches start_step, start_step + 1, ..., total_steps - 1.

        Raises:
          RuntimeError: a worker process died.
          BrokenRecordError: as `batch`.
        """
        counts = [len(self._rows(size)) for _, size in self.plan.shapes]
        parts, ahead = _parts(counts, self.num_workers, self.num_threads, self.prefetch_batches)
        elements = grain.MapDataset.range(start_step * parts, self.total_steps * parts)
        elements = elements.map(functools.partial(self._part, parts))
        if not self.num_workers:
            made = elements.to_iter_dataset(grain.ReadOptions(self.num_threads, ahead))
        else:
            made = elements.to_iter_dataset(grain.ReadOptions(self.num_threads, self.num_threads))
            options = grain.MultiprocessingOptions(self.num_workers, ahead)
            made = made.mp_prefetch(options, _end_with_parent)
        steps = range(start_step, self.total_steps)
        return Batches(iter(made), parts, (len(self._rows(self.plan(i)[1])) for i in steps))

    def _batch(self, step: int, part: slice) -> tuple[dict[str, np.ndarray], list[Replaced]]:
        order, views = self._order(), self.views[self.plan(step)[0]]
        positions, batch, replaced = self.positions(step, part), {}, []
        for row, (position, first) in enumerate(zip(positions, self._read(order, positions))):
            example, _, reason = self._example(order, position, views, first)
            _put(batch, row, len(positions), {k: np.asarray(v)[None] for k, v in example.items()})
            if reason:
                replaced.append(Replaced(step, position, reason))
        return batch, replaced

    def _part(self, parts: int, number: int):
        step, part = divmod(number, parts)
        rows = len(self._rows(self.plan(step)[1]))
        part = slice(rows * part // parts, rows * (part + 1) // parts)
        # An error that is raised in a worker comes with the tracebacks of two processes.
        try:
            if self.on_broken == "stop":
                return self.batch(step, part), []
            return self._batch(step, part)
        except BrokenRecordError as error:
            return {}, [str(error), isinstance(error.__cause__, Unreachable)]

    def _order(self):
        if self.source.weights is not None:
            return MixedOrder(self.source.lengths, self.source.weights, self.seed)
        return shuffled(len(self.source), self.seed)

    def _read(self, order, positions: Sequence[int]) -> Iterator[dict[str, Any] | Exception]:
        """The records of positions, as `Source.records` gives them."""
        for start in range(0, len(positions), _READ_AT_ONCE):
            part = positions[start : start + _READ_AT_ONCE]
            yield from self.source.records([int(order[p]) for p in part])

    def _example(
        self, order, position: int, views, first: dict[str, Any] | Exception
    ) -> tuple[dict[str, np.ndarray], str, str]:
        """The example of a position, whose record is `first`, the id of its record, and "" or,
        where another record stands in for a broken one, what is wrong with that."""
        reasons = []
        for stand_in in _stand_ins(self.seed, position, len(self.source)):
            # A string seed is hashed whole, so neighbouring positions are unrelated.
            rng = random.Random(f"{self.seed}/{position}")
            index = int(order[stand_in])
            name = f"Record number {index}"
            try:
                record = given(first) if stand_in == position else self.source[index]
                name = f"Record {record['id']!r}"
                return views(record, rng), record["id"], "".join(reasons[:1])
            except MemoryError:
                raise
            except Exception as error:  # Malformed records raise many types.
                reasons.append(what_is_wrong(name, error))
                # What a disk or network refuses now, it may give the next time.
                lasting = FileNotFoundError, IsADirectoryError, NotADirectoryError
                if isinstance(error, OSError) and not isinstance(error, lasting):
                    raise BrokenRecordError(
                        f"{reasons[-1].rstrip('.')}. No other record stands in for what cannot be "
                        "read now but may be later: give the same command again."
                    ) from error
                if self.on_broken == "stop":
                    raise BrokenRecordError(
                        f"{reasons[-1].rstrip('.')}. To see what else is broken, ask the doctor, "
                        "`python -m input_pipeline.doctor`; config.loader.on_broken='replace' lets "
                        "other records stand in."
                    ) from error
        raise BrokenRecordError(
            f"{reasons[0].rstrip('.')}. {MAX_STAND_INS} records that should stand in for it are "
            "broken as well: ask the doctor, `python -m input_pipeline.doctor`, about the data."
        )


class Batches:
    """Iterator over batches.

    Attributes:
      replaced: examples of the batches so far in whose place others stand; for the reader to empty,
        also while another thread asks for batches.
    """

    def __init__(self, made: Iterator, parts: int, counts: Iterator[int]):
        self._made, self._parts, self._counts = made, parts, counts
        self.replaced: collections.deque[Replaced] = collections.deque()

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        count, batch, start = next(self._counts), {}, 0
        for _ in range(self._parts):
            rows, notes = next(self._made)
            if not rows:
                text, is_outage = notes
                raise BrokenRecordError(text) from (Unreachable(text) if is_outage else None)
            self.replaced.extend(notes)
            if self._parts == 1:
                return rows
            start = _put(batch, start, count, rows)
        return batch

    def close(self) -> None:
        """Ends worker processes."""
        self._made.close()


def _parts(
    counts: Sequence[int], num_workers: int, num_threads: int, prefetch_batches: int
) -> tuple[int, int]:
    """How many parts each batch is made in, whatever its size, and how many are kept ready for each
    worker.

    Args:
      counts: rows of the batches that occur.
    """
    if not num_workers:
        parts = min(max(1, num_threads), *counts)
        return parts, prefetch_batches * parts
    # Grain has those that are ready twice, in a worker's queue and in a thread that reads it. Each
    # of the two waits with one more, and a worker is making one with each of its threads.
    waiting = num_threads + 2
    of_worker = max(waiting + 2, -(-max(counts) // (num_workers * _MAX_ROWS)))
    ahead = max(1, (prefetch_batches * of_worker - waiting) // 2)
    return min(num_workers * of_worker, *counts), ahead


def _put(batch: dict[str, np.ndarray], start: int, count: int, rows: dict[str, np.ndarray]) -> int:
    """Puts rows into a batch of `count`, from row `start` on; returns the row after them.

    Raises:
      ValueError: they are not of the kind of the rows before.
    """
    if not start:
        batch |= {name: np.empty((count, *x.shape[1:]), x.dtype) for name, x in rows.items()}
    found, known = ({name: (x.dtype, x.shape[1:]) for name, x in y.items()} for y in (rows, batch))
    if found != known:
        raise ValueError(f"The views give unlike examples: {known}, and from row {start} {found}.")
    for name, value in rows.items():
        batch[name][start : start + len(value)] = value
    return start + len(value)


def free_shared_memory() -> None:
    """Frees what batches share with workers, before a program ends that holds none any more.

    Else Python reports it as leaked when it ends.
    """
    gc.collect()  # the frames of a loop, and errors, hold batches in cycles
    time.sleep(_FREEING_SECONDS)


def _stand_ins(seed: int, position: int, length: int) -> Iterator[int]:
    """The position itself, then others that may stand in for it."""
    yield position
    rng = random.Random(f"{seed}/{position}/stand-in")
    for _ in range(MAX_STAND_INS):
        yield position + rng.randrange(1, max(2, length))


def _end_with_parent(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    for number in (signal.SIGTERM, signal.SIGUSR1):  # to the whole group: the parent's to act on
        signal.signal(number, signal.SIG_IGN)
    workers.end_with_parent()
