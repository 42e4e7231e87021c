"""Ranks of right candidates, and the metrics of single-label classification."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from evaluators.shared.metrics import mean_per_class_recall


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
    yield "mean_per_class_recall", mean_per_class_recall(top1, labels)
    yield "top1_accuracy_chance", 1 / num_classes
    yield "top5_accuracy_chance", min(5, num_classes) / num_classes
    yield "mean_per_class_recall_chance", 1 / num_classes
