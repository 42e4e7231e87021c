"""Classification by the nearest training images, with nothing trained.

The k nearest vote with weight exp(similarity / 0.07), the rule and the k = 20 of DINO (arXiv
2104.14294). DINO's table has the features of the backbone; these are the ones that are compared
with text, where the model has such: numbers of the two are not to be compared.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.parallel import meshes
from evaluators.shared.ranking import accuracies, rank_of_label
from evaluators.shared.records import open_source
from evaluators.shared.rows import RowMap, replicate
from evaluators.shared.towers import FeaturesEvaluator
from input_pipeline.checks.fields import label_of

TEMPERATURE = 0.07
# Similarities held at once on a device: 64 MiB in float32, however many training images.
SIMILARITIES_PER_DEVICE = 2**24


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(FeaturesEvaluator):
    """Yields `k{K}_top1_accuracy`, `k{K}_top5_accuracy`, `k{K}_mean_per_class_recall` and their
    chance for each K.

    Every device holds the features of all training images, 2 kB for each of 512 numbers.

    Attributes:
      data: the images to classify; records have `label`.
      train: name and arguments of the source of the training images, with the same classes.
      neighbours: the numbers K; one larger than the training set counts all of it.

    Raises:
      ValueError: no labels, or no number of neighbours.
    """

    train: Mapping[str, Any]
    neighbours: Sequence[int] = (20,)

    def __post_init__(self):
        super().__post_init__()
        self._train = open_source(self.train)
        if not self.neighbours or min(self.neighbours) < 1:
            raise ValueError(f"neighbours={self.neighbours!r}: give numbers of 1 or more.")
        for source in (self.source, self._train):
            label_of(source[0])  # fail now, not after training
        self._rank = RowMap(self._ranks, self.mesh)

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a label is one that no training image has room for."""
        bank, known = self.encode_source(model, self._train, self.train, label_of)
        images, labels = self.encode_images(model, label_of)
        labels, known = np.array(labels, np.int32), np.array(known, np.int32)
        num_classes = int(max(labels.max(), known.max())) + 1

        def load(row):
            return {"feature": images[row], "label": labels[row]}

        params = replicate((bank, known, np.zeros(num_classes, np.float32)), self.mesh)
        rows = max(1, SIMILARITIES_PER_DEVICE // len(bank)) * meshes.batch_parts(self.mesh)
        ranks = self._rank(params, load, len(images), min(rows, self.batch_size))
        for k, rank in zip(self.neighbours, ranks.T):
            for name, value in accuracies(rank, labels, num_classes):
                yield f"k{k}_{name}", value

    def _ranks(self, params, batch):
        """i32[B, K's], the rank of the label by the votes of each number of neighbours."""
        bank, known, no_votes = params
        similarity = jnp.matmul(batch["feature"], bank.T, precision="highest")  # [B, M]
        most = min(max(self.neighbours), len(bank))
        # NaN is sorted to the front, and makes all votes NaN.
        nearest, rows = jax.lax.top_k(similarity, most)
        votes = jnp.exp((nearest - 1) / TEMPERATURE)

        def count(votes, classes):
            return no_votes.at[classes].add(votes)

        return jnp.stack(
            [
                rank_of_label(jax.vmap(count)(votes[:, :k], known[rows[:, :k]]), batch["label"])
                for k in self.neighbours
            ],
            axis=1,
        )
