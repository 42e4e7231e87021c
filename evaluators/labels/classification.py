"""Single-label classification by a trained head (ImageNet, Places365)."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evaluators.shared import common


class Evaluator:
    """Yields `top1_accuracy`, `top5_accuracy`, `mean_per_class_recall` and their chance.

    Calls `classify`, see `shared.common`. Only the rank of the true class leaves the devices.
    """

    def __init__(
        self,
        predict_fns,
        preprocess,
        mesh: jax.sharding.Mesh,
        *,
        data: Mapping[str, Any],
        batch_size: int = 256,
    ):
        """Args as every evaluator's, and:

        data: name and arguments of a data source whose records have `label`.
        batch_size: on all devices together; has no influence on the values.

        Raises:
          ValueError: the data has no labels, or the method cannot classify.
        """
        common.require(predict_fns, "classify")
        self._source = common.open_source(data)
        self._classify = predict_fns["classify"]
        self._rank = common.RowMap(self._rank_of_label, mesh)
        self._preprocess = preprocess
        self._mesh = mesh
        self._batch_size = batch_size
        common.label_of(self._source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where the head has other classes than the data."""
        num_classes = common.num_outputs(self._classify, model, self._preprocess, self._mesh)
        names = getattr(self._source, "class_names", None)
        if names is not None and len(names) != num_classes:
            raise ValueError(
                f"The model tells {num_classes} classes apart, but the data names {len(names)}."
            )

        def load(row):
            record = self._source[row]
            label = common.label_of(record, num_classes)
            return {
                "image": common.image_of(record, self._preprocess),
                "label": np.int32(label),
            }

        rows = self._rank(model, load, len(self._source), self._batch_size)
        yield from common.accuracies(rows[:, 0], rows[:, 1], num_classes)

    def _rank_of_label(self, model, batch):
        """i32[B, 2]: rank of the label, and the label, which so reaches all hosts."""
        label = batch["label"]
        logits = self._classify(model, {"image": batch["image"]})
        return jnp.stack([common.rank_of_label(logits, label), label], axis=1)
