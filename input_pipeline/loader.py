"""The training loader: global batch number `step` is a pure function of (config, step).

There is no iterator state: a run that starts at step s asks for batches s, s+1, ... and gets what
an uninterrupted run would have got, with any number of workers, threads and processes.
"""

import dataclasses
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from input_pipeline.order import MixedOrder, shuffled


@dataclasses.dataclass(frozen=True)
class Loader:
    """Host-local rows of the global batches of a run.

    Example number p of the run (its global position) is record `order[p]` of the source: a
    permutation by (seed, epoch), repeated; for a source that mixes by weight, see `MixedOrder`. Its
    augmentation is drawn from (seed, p) alone.

    Attributes:
      source: see `input_pipeline.sources`.
      views: {image size: `views(record, rng) -> dict of arrays`}, see `input_pipeline.views`.
      plan: image size and global batch of each step, see `input_pipeline.plan`.
      total_steps: length of the run.
      seed: of order and augmentation.
      rows: {global batch: which of its rows this process makes}; None makes all.
      num_workers: worker processes; 0 loads in threads of this one.
      num_threads: batches made at a time in each process.
      prefetch_batches: finished batches kept ready in each process.
    """

    source: Any
    views: Mapping[int, Any]
    plan: Callable[[int], tuple[int, int, int]]
    total_steps: int
    seed: int
    rows: Mapping[int, Sequence[int]] | None = None
    num_workers: int = 0
    num_threads: int = 1
    prefetch_batches: int = 2

    def __post_init__(self):
        if not len(self.source):
            raise ValueError("The data source is empty: there is nothing to train on.")

    def positions(self, step: int) -> list[int]:
        """Global positions of this process' rows of a step."""
        _, size, first = self.plan(step)
        rows = range(size) if self.rows is None else self.rows[size]
        return [first + row for row in rows]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This process' rows of global batch `step`, stacked."""
        return self._stacked(step, self.positions(step))

    def first_rows(self, step: int, count: int) -> dict[str, np.ndarray]:
        """The first rows of `batch`; the others are not read."""
        return self._stacked(step, self.positions(step)[:count])

    def _stacked(self, step: int, positions: Sequence[int]) -> dict[str, np.ndarray]:
        order, views = self._order(), self.views[self.plan(step)[0]]
        examples = [self._example(order[p], p, views) for p in positions]
        return {name: np.stack([e[name] for e in examples]) for name in examples[0]}

    def ids(self, step: int) -> list[str]:
        """Record ids of a step's whole global batch, for reports about bad batches."""
        order, (_, size, first) = self._order(), self.plan(step)
        return [self.source[order[p]]["id"] for p in range(first, first + size)]

    def iterate(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches start_step, start_step + 1, ..., total_steps - 1.

        Raises:
          RuntimeError: a worker process died.
        """
        steps = grain.MapDataset.range(start_step, self.total_steps).map(self.batch)
        # Grain's defaults (16 threads, 500 elements) are for tiny records; ours are batches.
        options = grain.ReadOptions(self.num_threads, self.prefetch_batches)
        batches = steps.to_iter_dataset(options)
        if self.num_workers:
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(self.num_workers, self.prefetch_batches),
                _end_with_parent,
            )
        return iter(batches)

    def _order(self):
        if getattr(self.source, "weights", None) is not None:
            return MixedOrder(self.source.lengths, self.source.weights, self.seed)
        return shuffled(len(self.source), self.seed)

    def _example(self, index: int, position: int, views):
        # A string seed is hashed whole, so neighbouring positions are unrelated.
        rng = random.Random(f"{self.seed}/{position}")
        return views(self.source[int(index)], rng)


def _end_with_parent(worker_index: int, worker_count: int) -> None:
    """Ends this worker process when its parent is killed; it would wait for it forever.

    Signals to the whole group, such as Ctrl-C, are the parent's to act on.
    """
    del worker_index, worker_count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
