"""What evaluators share: running a model over rows on every host and device, and ranking.

An evaluator is a class `Evaluator(predict_fns, preprocess, mesh, **config)` in a module of its
own; `run(model)` yields `(metric name, value)`. It runs on all hosts at once and every host gets
the same values. It reads encoders from `predict_fns` and nothing about the method behind them:

  encode_image(model, {"image": u8[B, S, S, 3], "mask": bool[B]}) -> f32[B, D], L2-normalised
  encode_text(model, {"tokens": i32[B, T], "mask": bool[B]}) -> f32[B, D], L2-normalised

`mask` is False for rows that only pad the last batch to the devices.
"""

import importlib
import importlib.util
import json
import math
import os
import pkgutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

import evaluators
from big_vlp import sharding
from input_pipeline.images import eval_image
from input_pipeline.sources import make_source
from input_pipeline.tokenizers import make_tokenizer

NUM_THREADS = min(16, 2 * (os.cpu_count() or 1))
BATCHES_AHEAD = 2


def make_evaluator(name: str, predict_fns, preprocess, mesh: Mesh, **config):
    """Builds `evaluators.<name>.Evaluator`.

    Raises:
      ValueError: no such evaluator.
    """
    if importlib.util.find_spec(f"evaluators.{name}") is None or name == "common":
        known = sorted({m.name for m in pkgutil.iter_modules(evaluators.__path__)} - {"common"})
        raise ValueError(f"Unknown evaluator {name!r}; choose one of {known}.")
    module = importlib.import_module(f"evaluators.{name}")
    return module.Evaluator(predict_fns, preprocess, mesh, **config)


class RowMap:
    """Maps `fn(params, batch) -> array[B, ...]` over rows, sharded over ("data", "fsdp").

    Each process loads the rows that its own devices hold. The last batch is padded by repeating
    the last row, and the padding is cut off again, so neither the number of devices nor the batch
    size shows in the result.
    """

    def __init__(self, fn: Callable, mesh: Mesh):
        self._fn = jax.jit(fn, out_shardings=sharding.replicated(mesh))
        self._mesh = mesh
        self._shards = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)

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
        """
        batch_size = -(-min(batch_size, count) // self._shards) * self._shards
        offsets = sharding.local_rows(self._mesh, batch_size)
        outputs, running, waiting = [], None, deque()
        with ThreadPoolExecutor(NUM_THREADS) as pool:

            def submit(start):
                rows = [min(start + offset, count - 1) for offset in offsets]
                futures = {row: pool.submit(load, row) for row in dict.fromkeys(rows)}
                waiting.append((start, [futures[row] for row in rows]))

            starts = iter(range(0, count, batch_size))
            for _, start in zip(range(BATCHES_AHEAD), starts):
                submit(start)
            while waiting:
                start, futures = waiting.popleft()
                rows = [future.result() for future in futures]
                local = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
                local["mask"] = np.array([start + offset < count for offset in offsets])
                for next_start in starts:
                    submit(next_start)
                    break
                batch = sharding.global_batch(local, self._mesh, batch_size)
                previous, running = running, self._fn(params, batch)
                if previous is not None:  # read one batch late: the device is never idle
                    outputs.append(np.asarray(previous))
        outputs.append(np.asarray(running))
        return np.concatenate(outputs)[:count]


def replicate(tree, mesh: Mesh):
    """Puts numpy arrays, equal on all hosts, onto every device of the mesh."""
    whole = sharding.replicated(mesh)
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
    merged = dict(local)
    if jax.process_count() > 1:
        payload = np.frombuffer(json.dumps(list(local.items())).encode(), np.uint8)
        sizes = multihost_utils.process_allgather(np.int32(payload.size))
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: payload.size] = payload
        parts = multihost_utils.process_allgather(padded)
        for part, size in zip(parts, sizes):
            merged.update(json.loads(part[:size].tobytes()))
    return [merged[row] for row in range(count)]


class Towers:
    """The two encoders of `predict_fns`, applied to a source's images and to strings."""

    def __init__(self, predict_fns: Mapping[str, Callable], preprocess, mesh, batch_size: int):
        """Raises ValueError where `predict_fns` lacks one of the encoders."""
        missing = {"encode_image", "encode_text"} - set(predict_fns)
        if missing:
            raise ValueError(
                f"This evaluator needs the predict functions {sorted(missing)}; the method offers "
                f"{sorted(predict_fns)}. Remove the evaluator or train a method that has them."
            )
        self._encode_image = RowMap(predict_fns["encode_image"], mesh)
        self._encode_text = RowMap(predict_fns["encode_text"], mesh)
        self._tokenizer = make_tokenizer(preprocess.tokenizer)
        self._tokenizer(
            [""], preprocess.context_length
        )  # loads it here, not in all threads at once
        self._preprocess = preprocess
        self._batch_size = batch_size

    def images(self, model, source, describe: Callable[[dict], Any]) -> tuple[np.ndarray, list]:
        """Encodes all images of a source, each record read once and by one host.

        Args:
          describe: what to keep of a record besides its image, as JSON data.

        Returns:
          Features f32[N, D] and the N descriptions, in the source's order, on every host.
        """
        described = {}

        def load(row):
            record = source[row]
            described[row] = describe(record)
            return {"image": eval_image(record["image"], self._preprocess)}

        features = self._encode_image(model, load, len(source), self._batch_size)
        return features, gather_rows(described, len(source))

    def texts(self, model, texts: Sequence[str]) -> np.ndarray:
        """Encodes strings to features f32[len(texts), D]."""
        length = self._preprocess.context_length

        def load(row):
            return {"tokens": self._tokenizer([texts[row]], length)[0]}

        return self._encode_text(model, load, len(texts), self._batch_size)


def open_source(data: Mapping[str, Any]):
    """Builds the source that `data` (name and arguments) describes; it must not be empty."""
    source = make_source(**data)
    if len(source) == 0:
        raise ValueError(f"The data source {dict(data)} has no records to evaluate.")
    return source


def captions_of(record: Mapping[str, Any], field: str) -> list[str]:
    """The record's captions in one field.

    Raises:
      ValueError: the record has no such field, or it is not a non-empty list of strings.
    """
    captions = record["captions"]
    if field not in captions:
        raise ValueError(
            f"Record {record['id']!r} has no caption field {field!r}; set caption_field to one of "
            f"{list(captions)}."
        )
    texts = captions[field]
    if isinstance(texts, str) or not texts:
        raise ValueError(
            f"Caption field {field!r} of record {record['id']!r} must be a non-empty list of "
            f"strings, not {texts!r}; prepare the data again."
        )
    return list(texts)


def ranks(scores: jax.Array, positive: jax.Array, weight: jax.Array) -> jax.Array:
    """How many candidates are ahead of the best right one; ties and NaN count as ahead.

    So a constant encoder ranks last, where sorting would rank it by the order of the data.

    Args:
      scores: f32[R, N], a row per query.
      positive: bool[R, N], the right candidates of each query.
      weight: i32[N], how many candidates a column stands for.

    Returns:
      i32[R], 0 for a right candidate in front. A query whose right candidates are all NaN gets the
      number of candidates, which is beyond the last place.
    """
    valid = positive & ~jnp.isnan(scores)
    best = jnp.max(jnp.where(valid, scores, -jnp.inf), axis=1, keepdims=True)
    ahead = jnp.sum(jnp.where(~positive & ~(scores < best), weight, 0), axis=1)
    return jnp.where(valid.any(axis=1), ahead, jnp.sum(weight))


def hits(rank: np.ndarray, k: int, candidates: int) -> np.ndarray:
    """bool, shape of `rank`: which ranks (from 0) are among the first k of so many candidates."""
    return rank < min(k, candidates)
