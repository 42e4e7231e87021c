"""Memory of the loader and time to its first batch: arrays as COSMOS' views make them, by workers.

An example is filled with a constant after 2 ms of sleep, in place of decoding: it is the loader
that is looked at, and cores do not matter. The reader takes some batches, and each time waits until
the workers hold as much as they ever will. Memory is what belongs to the processes alone, and
shared memory once; `batches_held` is what more of it a larger batch takes. Linux alone tells it.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

import numpy as np

from input_pipeline.loader import Loader
from input_pipeline.plans.constant import Plan
from input_pipeline.sources.shared import base
from input_pipeline.views import make_views

SHARED = "/dev/shm"
STEPS, EXAMPLE_SECONDS = 3, 0.002
_SETTLED_SECONDS = 2.0
_LOOK_SECONDS = 0.05


class Source(base.Source):
    """Records that are only an id."""

    def __len__(self):
        return 1 << 20

    def record(self, index):
        return {"id": str(index)}


class Views:
    """Examples of COSMOS' shapes."""

    def __init__(self):
        views = make_views("cosmos", image_size=224, tokenizer="clip", context_length=77)
        self._spec = views.spec()

    def __call__(self, record, rng):
        time.sleep(EXAMPLE_SECONDS)
        return {name: np.ones(shape, dtype) for name, (shape, dtype) in self._spec.items()}


def measure(batch: int = 1024, workers: int = 4) -> list[dict]:
    """Args: rows of a batch; worker processes."""
    few, found = (watched(rows, workers) for rows in (8 * workers, batch))
    held, size = (found[name] - few[name] for name in ("memory_mib", "batch_mib"))
    row = {"case": f"cosmos, {workers} workers, batch {batch}", **found}
    return [row | {"batches_held": held / size}]


def watched(rows: int, workers: int) -> dict:
    total = 1000
    plan = Plan(image_size=224, global_batch=rows, total_steps=total, seed=0)
    loader = Loader(Source(), {224: Views()}, plan, total, seed=0, num_workers=workers)
    with contextlib.closing(loader.iterate(0)) as batches, Watch() as watch:
        start = time.perf_counter()
        size = sum(value.nbytes for value in next(batches).values())
        first = time.perf_counter() - start  # with the start of the workers
        for _ in range(STEPS - 1):
            watch.settle()
            batch = next(batches)  # as the thread does that feeds the devices: one in its hands
            watch.settle()
            del batch
    return {
        "batch_mib": size / 2**20,
        "first_batch_s": first,
        "memory_mib": watch.most / 2**20,
        "shared_mib": watch.most_shared / 2**20,
        "worker_mib": watch.of_worker / 2**20,
    }


class Watch:
    """The most memory of this process and its children since it was entered, in bytes."""

    def __enter__(self) -> "Watch":
        self.most = self.most_shared = self.of_worker = 0
        self._before, self._left, self._changed = shared(), False, time.monotonic()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._left = True
        self._thread.join()

    def settle(self) -> None:
        """Waits until nothing grows any more."""
        self._changed = time.monotonic()
        while time.monotonic() - self._changed < _SETTLED_SECONDS:
            time.sleep(_LOOK_SECONDS)

    def _look(self) -> None:
        last = 0
        while not self._left:
            now, own = shared() - self._before, anonymous(os.getpid())
            children = [anonymous(process) for process in children_of(os.getpid())]
            memory = now + own + sum(children)
            if abs(memory - last) > 2**20:
                last, self._changed = memory, time.monotonic()
            self.most, self.most_shared = max(self.most, memory), max(self.most_shared, now)
            self.of_worker = max(self.of_worker, *children, 0)
            time.sleep(_LOOK_SECONDS)


def shared() -> int:
    status = os.statvfs(SHARED)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def anonymous(process: int) -> int:
    """Bytes that belong to a process alone."""
    with contextlib.suppress(OSError):  # it ended meanwhile
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return 0


def children_of(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found
