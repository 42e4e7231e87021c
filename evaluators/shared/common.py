"""What evaluators share: running a model over rows on every host and device, and ranking.

An evaluator is a class `Evaluator(predict_fns, preprocess, mesh, **config)` in a module of its
own; `run(model)` yields `(metric name, value)`. It runs on all hosts at once and every host gets
the same values. It reads encoders from `predict_fns` and nothing about the method behind them:

  encode_image(model, {"image": u8[B, S, S, 3]}) -> f32[B, D], L2-normalised
  encode_text(model, {"tokens": i32[B, T]}) -> f32[B, D], L2-normalised
  classify(model, {"image": u8[B, S, S, 3]}) -> f32[B, C], logits
  segment(model, {"image": u8[B, S, S, 3]}) -> f32[B, H, W, C], logits
  token_losses(model, rows) -> (f32[B], i32[B]), summed loss of each row's answer and its tokens
  generate(model, rows without loss_mask) -> i32[B, M], the tokens that continue each prompt

Rows are those of `input_pipeline.views.cogvlm`: `images`, `tokens`, `token_types`, `loss_mask`.
"""

import math
import os
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
from input_pipeline.checks import arguments, parts
from input_pipeline.images.crops import eval_image
from input_pipeline.records import BrokenRecordError, what_is_wrong
from input_pipeline.sources import make_source
from input_pipeline.text.tokenizers import make_tokenizer

NUM_THREADS = min(16, 2 * (os.cpu_count() or 1))
BATCHES_AHEAD = 2


def make_evaluator(name: str, predict_fns, preprocess, mesh: Mesh, **config):
    """Builds the `Evaluator` of a module in `evaluators`, or of another: see `checks.parts`.

    Raises:
      ValueError: no such evaluator.
      ArgumentError: it does not take one of the arguments, or lacks one.
    """
    evaluator = parts.find("evaluator", "evaluators", name, "Evaluator")
    return arguments.call("", evaluator, config, predict_fns, preprocess, mesh)


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
        batches = self._batches(self._gathered, params, load, count, batch_size)
        return np.concatenate([np.asarray(output) for _, output in batches])[:count]

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

    def _batches(self, fn, params, load, count: int, batch_size: int):
        """Yields (first row, output) of every batch, padded."""
        batch_size = -(-min(batch_size, count) // self._shards) * self._shards
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


def require(predict_fns: Mapping[str, Callable], *names: str) -> None:
    """Raises ValueError where `predict_fns` lacks one of these."""
    missing = sorted(set(names) - set(predict_fns))
    if missing:
        raise ValueError(
            f"This evaluator needs the predict functions {missing}; the method offers "
            f"{sorted(predict_fns)}. Remove the evaluator or train a method that has them."
        )


def num_outputs(fn: Callable, model, preprocess, mesh: Mesh) -> int:
    """Length of the last axis of what a function of {"image"} returns; runs nothing."""
    side, rows = preprocess.image_size, mesh.size
    image = jax.ShapeDtypeStruct((rows, side, side, 3), jnp.uint8)
    return jax.eval_shape(fn, model, {"image": image}).shape[-1]


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


class Towers:
    """The two encoders of `predict_fns`, applied to a source's images and to strings."""

    def __init__(self, predict_fns: Mapping[str, Callable], preprocess, mesh, batch_size: int):
        """Raises ValueError where `predict_fns` lacks one of the encoders, or there is no text."""
        require(predict_fns, "encode_image", "encode_text")
        if preprocess.tokenizer is None:
            raise ValueError("This evaluator needs text, but the model has no tokenizer.")
        self._encode_image = RowMap(predict_fns["encode_image"], mesh)
        self._encode_text = RowMap(predict_fns["encode_text"], mesh)
        self._tokenizer = make_tokenizer(preprocess.tokenizer)
        self._tokenizer(
            [""], preprocess.context_length
        )  # loads it here, not in all threads at once
        self._preprocess = preprocess
        self._batch_size = batch_size

    def images(self, model, source, describe: Callable[[dict], Any]) -> tuple[np.ndarray, list]:
        """Encodes all images of a source to features f32[N, D]; otherwise as `map_images`."""
        return map_images(
            self._encode_image, model, source, self._preprocess, self._batch_size, describe
        )

    def texts(self, model, texts: Sequence[str]) -> np.ndarray:
        """Encodes strings to features f32[len(texts), D]."""
        length = self._preprocess.context_length

        def load(row):
            return {"tokens": self._tokenizer([texts[row]], length)[0]}

        return self._encode_text(model, load, len(texts), self._batch_size)


def open_source(data: Mapping[str, Any]):
    """Builds the source that `data` (name and arguments) describes; it must not be empty."""
    source = arguments.call("data", make_source, data)
    if len(source) == 0:
        raise ValueError(f"The data source {dict(data)} has no records to evaluate.")
    return source


def image_of(record: Mapping[str, Any], preprocess) -> np.ndarray:
    """The record's evaluation image u8[S, S, 3].

    Raises:
      ValueError: it cannot be decoded.
    """
    try:
        return eval_image(record["image"], preprocess)
    except ValueError as error:
        raise ValueError(f"Record {record['id']!r}: {error}") from error


def label_of(record: Mapping[str, Any], num_classes: int | None = None) -> int:
    """The record's label, below `num_classes` if that is known.

    Raises:
      ValueError: it has none, or one that is no class.
    """
    if "label" not in record:
        raise ValueError(f"Record {record['id']!r} has no label; use labelled data.")
    label = int(record["label"])
    if num_classes is not None and not 0 <= label < num_classes:
        raise ValueError(
            f"Record {record['id']!r} has label {label}, which is none of {num_classes} classes; "
            "check the data and its class names."
        )
    return label


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


def rank_of_label(scores: jax.Array, label: jax.Array) -> jax.Array:
    """`ranks` of one right class each: f32[B, C] and i32[B] -> i32[B]."""
    num_classes = scores.shape[1]
    positive = jnp.arange(num_classes) == label[:, None]
    return ranks(scores, positive, jnp.ones(num_classes, jnp.int32))


def accuracies(
    rank: np.ndarray, labels: np.ndarray, num_classes: int
) -> Iterator[tuple[str, float]]:
    """Yields the metrics of single-label classification, and their chance.

    `mean_per_class_recall` is the mean over the classes that have an image of the share of their
    images that are right.

    Args:
      rank: i32[N], of the true class, see `ranks`.
      labels: i32[N].
    """
    top1, top5 = (hits(rank, k, num_classes) for k in (1, 5))
    yield "top1_accuracy", float(top1.mean())
    yield "top5_accuracy", float(top5.mean())
    per_class = [top1[labels == label].mean() for label in np.unique(labels)]
    yield "mean_per_class_recall", float(np.mean(per_class))
    yield "top1_accuracy_chance", 1 / num_classes
    yield "top5_accuracy_chance", min(5, num_classes) / num_classes
    yield "mean_per_class_recall_chance", 1 / num_classes
