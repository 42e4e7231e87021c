"""What several evaluators compute of one model, computed once.

Within `sharing()`, `once` keeps results in host memory and gives them to whoever asks for the same
of the same model; elsewhere it computes every time. All processes must ask in one order.
"""

import contextlib
import contextvars
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

# Features of 4 M images with 1,024 numbers each, in each process. The same in all processes, for
# what one keeps and another drops would be encoded by one alone.
MOST_BYTES = 2**34


class _Kept:
    """Results and their bytes by key, the one asked for last at the end, and the arrays of the
    models they are of, so that no other array takes their identity."""

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self._results: dict[Hashable, tuple[Any, int]] = {}
        self._models: dict[Hashable, list] = {}

    def once(self, model, key: Hashable, compute: Callable[[], Any]) -> Any:
        arrays = jax.tree.leaves(model)
        which = tuple(map(id, arrays))
        self._models[which] = arrays
        if (which, key) in self._results:
            found = self._results.pop((which, key))
        else:
            result = compute()
            found = result, _bytes(result)
        self._results[which, key] = found
        while len(self._results) > 1 and self._total() > self._most_bytes:
            self._drop()
        return found[0]

    def _drop(self) -> None:
        """The one that was not asked for longest goes; but a large one, which takes long to compute
        again, stays while there are others."""
        small = [x for x, (_, size) in self._results.items() if size <= self._most_bytes / 2]
        chosen = (small or list(self._results))[0]
        logging.warning(
            "Results of an evaluation (%.1f GB) are dropped; who asks for them again has them "
            "computed again.",
            self._results.pop(chosen)[1] / 1e9,
        )

    def _total(self) -> int:
        return sum(size for _, size in self._results.values())


def _bytes(result) -> int:
    """Of the arrays in it, which are the same in all processes; what records say is not."""
    return sum(x.nbytes for x in jax.tree.leaves(result) if isinstance(x, np.ndarray))


_kept: contextvars.ContextVar[_Kept | None] = contextvars.ContextVar("kept", default=None)


@contextlib.contextmanager
def sharing(most_bytes: int = MOST_BYTES) -> Iterator[None]:
    """The evaluators of one round run in it: what they share is dropped at its end."""
    token = _kept.set(_Kept(most_bytes))
    try:
        yield
    finally:
        _kept.reset(token)


def once(model, key: Hashable, compute: Callable[[], Any]) -> Any:
    """`compute()`, or what another evaluator got of it in this round.

    Args:
      model: what it is computed of; another is one that has other arrays.
      key: says all else that the result depends on.
    """
    kept = _kept.get()
    return compute() if kept is None else kept.once(model, key, compute)
