"""A thread that brings the next batch to the devices while they are at this one.

It only looks at rows and copies: what processes do together, such as asking each other, is the main
thread's, since two threads would start it in another order on each of them.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator

import jax
from jax.sharding import Mesh

from big_vlp.parallel import meshes
from input_pipeline.checks.errors import BigVlpError

# For a thread that makes rows to come to its end; one that waits for dead storage does not.
_END_SECONDS = 2.0


# On the devices at once, at most: two steps' that run, the next, and in a run of several processes
# one more. Between steps: the last two of these.
MOST_BATCHES, WAITING_BATCHES = 4, 2


class BatchError(BigVlpError, ValueError):
    """The rows of a batch are not what trains the model."""


class Feed:
    """Iterator over batches on the devices. One is kept ready there, another in the host's memory.

    Args:
      loaded: gives this process' rows of each batch, see `meshes.global_batch`; is closed with the
        feed.
      sizes: of the global batches.
      check: looks at this process' rows, and raises ValueError where something is wrong with them.
    """

    def __init__(
        self,
        loaded: Iterator[dict],
        sizes: Iterable[int],
        mesh: Mesh,
        check: Callable[[dict], None] = lambda rows: None,
    ):
        self._loaded, self._check = loaded, check
        self._room, self._ready, self._stopped = threading.Semaphore(1), queue.SimpleQueue(), False
        self._thread = threading.Thread(
            target=self._run, args=(sizes, mesh), name="feed", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> dict:
        """Raises what `loaded` has raised, behind the batches before."""
        batch, error = self._ready.get()
        if error is not None:
            self._ready.put((None, error))  # for whoever asks again
            raise error
        self._room.release()
        return batch

    def close(self) -> None:
        """Ends the thread, and closes `loaded`; waits seconds for that, not for dead storage."""
        self._stopped = True
        self._room.release()
        self._thread.join(_END_SECONDS)
        closing = threading.Thread(target=self._loaded.close, name="feed's end", daemon=True)
        closing.start()
        closing.join(_END_SECONDS)
        self._thread.join(_END_SECONDS)

    def _run(self, sizes: Iterable[int], mesh: Mesh) -> None:
        try:
            for size in sizes:
                if (rows := next(self._loaded, None)) is None:
                    raise RuntimeError("The loader has ended before the plan.")
                try:
                    self._check(rows)
                except ValueError as error:
                    raise BatchError(f"Rows that the views made do not fit: {error}") from error
                self._room.acquire()
                if self._stopped:
                    return
                batch = meshes.global_batch(rows, mesh, size)
                jax.block_until_ready(batch)  # only then are the rows free
                self._ready.put((batch, None))
                del rows, batch
            self._ready.put((None, StopIteration()))
        except BaseException as error:
            self._ready.put((None, error))
