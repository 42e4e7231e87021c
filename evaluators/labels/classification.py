"""Single-label classification by a trained head (ImageNet, Places365)."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from evaluators.shared import base
from evaluators.shared.ranking import accuracies, rank_of_label
from evaluators.shared.records import image_of
from evaluators.shared.rows import RowMap, num_outputs
from input_pipeline.checks.fields import label_of


class Evaluator(base.Evaluator):
    """Yields `top1_accuracy`, `top5_accuracy`, `mean_per_class_recall` and their chance.

    Calls `classify`, see `shared.base`. Only the rank of the true class leaves the devices.

    Attributes:
      data: its records have `label`.

    Raises:
      ValueError: the data has no labels, or the method cannot classify.
    """

    needs = ("classify",)

    def __post_init__(self):
        super().__post_init__()
        self._rank = RowMap(self._rank_of_label, self.mesh)
        label_of(self.source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where the head has other classes than the data."""
        num_classes = num_outputs(self.predict_fns["classify"], model, self.preprocess, self.mesh)
        names = self.source.class_names
        if names is not None and len(names) != num_classes:
            raise ValueError(
                f"The model tells {num_classes} classes apart, but the data names {len(names)}."
            )

        def load(row):
            record = self.source[row]
            label = np.int32(label_of(record, num_classes))
            return {"image": image_of(record, self.preprocess), "label": label}

        rows = self._rank(model, load, len(self.source), self.batch_size)
        yield from accuracies(rows[:, 0], rows[:, 1], num_classes)

    def _rank_of_label(self, model, batch):
        """i32[B, 2]: rank of the label, and the label, which so reaches all hosts."""
        label = batch["label"]
        logits = self.predict_fns["classify"](model, {"image": batch["image"]})
        return jnp.stack([rank_of_label(logits, label), label], axis=1)
