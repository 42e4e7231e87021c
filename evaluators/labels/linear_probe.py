"""A linear classifier on frozen features: few-shot and of all training images.

The protocol is this project's own, for comparing models that it evaluates: features as they are
compared with text, penalties and the images to choose them on as `shared.linear` says. CLIP's
tables (arXiv 2103.00020) have the features before the projection and a search for the penalty on
validation splits: numbers of the two are not to be compared.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from evaluators.shared import linear
from evaluators.shared.ranking import accuracies, hits, rank_of_label
from evaluators.shared.records import open_source
from evaluators.shared.rows import RowMap, replicate
from evaluators.shared.towers import FeaturesEvaluator
from input_pipeline.checks.fields import label_of


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(FeaturesEvaluator):
    """Yields `ridge_{top1_accuracy,top5_accuracy,mean_per_class_recall}`, with `logistic` the same
    of `logistic_`, `{N}shot_top1_accuracy` of ridge regression on N images of each class, the mean
    over `draws` choices of them, and the chance of each.

    Penalties are chosen on training images alone, see `shared.linear`. Every host solves the ridge
    regressions; logistic regression runs on all devices, whose number may change its scores in the
    last place.

    Attributes:
      data: the images to classify; records have `label`.
      train: name and arguments of the source of the training images, with the same classes.
      shots: numbers N; a class with fewer images gives all.
      draws: of which images; the same ones in every run.
      logistic: fit logistic regression by L-BFGS, too.

    Raises:
      ValueError: no labels, or a number below 1.
    """

    train: Mapping[str, Any]
    shots: Sequence[int] = (1, 2, 4, 8, 16)
    draws: int = 3
    logistic: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._train = open_source(self.train)
        if min((self.draws, *self.shots)) < 1:
            raise ValueError(f"shots={self.shots!r}, draws={self.draws}: give 1 or more.")
        for source in (self.source, self._train):
            label_of(source[0])  # fail now, not after training
        self._rank = RowMap(_rank_of_label, self.mesh)

    def run(self, model) -> Iterator[tuple[str, float]]:
        x, y = self.encode_source(model, self._train, self.train, label_of)
        images, labels = self.encode_images(model, label_of)
        y, labels = np.array(y, np.int32), np.array(labels, np.int32)
        num_classes = int(max(labels.max(), y.max())) + 1

        def load(row):
            return {"feature": images[row], "label": labels[row]}

        def ranks(weights):
            params = replicate(weights, self.mesh)
            return self._rank(params, load, len(images), self.batch_size)

        fits = {"ridge": linear.ridge(x, y, num_classes)}
        if self.logistic:
            fits["logistic"] = linear.logistic(x, y, num_classes, self.mesh)
        for name, weights in fits.items():
            for metric, value in accuracies(ranks(weights), labels, num_classes):
                yield f"{name}_{metric}", value
        for count in self.shots:
            found = []
            for draw in range(self.draws):
                few = few_of_each(y, count, draw)
                rank = ranks(linear.ridge(x[few], y[few], num_classes))
                found.append(hits(rank, 1, num_classes).mean())
            yield f"{count}shot_top1_accuracy", float(np.mean(found))
            yield f"{count}shot_top1_accuracy_chance", 1 / num_classes


def few_of_each(labels: np.ndarray, count: int, draw: int) -> np.ndarray:
    """Rows of `count` images of each class, ascending; more of them hold those of fewer."""
    order = np.random.default_rng(draw).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    first = np.flatnonzero(np.diff(labels[by_class], prepend=-1))
    place = np.arange(len(labels)) - np.repeat(first, np.diff(np.append(first, len(labels))))
    return np.sort(by_class[place < count])


def _rank_of_label(weights, batch):
    logits = jnp.matmul(batch["feature"], weights[:-1], precision="highest") + weights[-1]
    return rank_of_label(logits, batch["label"])
