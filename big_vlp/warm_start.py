"""Starts a run from the image tower, and maybe the classifier, of a model trained before."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import trees
from big_vlp.checkpoint import CheckpointError
from big_vlp.model_dir import open_model
from input_pipeline.label_match import match_classes

CLASSIFIERS = ("random", "transfer", "copy")
_KERNEL, _CLASS_TOKEN = "classifier/kernel", "tower/class_token"


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Where the weights come from.

    Attributes:
      model: a model directory; two-tower models give their image tower. A class token that the
        new model does not have is left out; learned augmentation is taken over where both have it.
      weights: "model" or "averaged"; None takes the average where there is one.
      step: which checkpoint; None takes the latest.
      classifier: what the new classifier starts from. "random": as initialised. "copy": the old
        one, for the same classes. "transfer": Transfer Init (arXiv 2404.15653, section 4): the mean
        of the old classifier's columns for the synsets nearest to each class. Biases are not
        transferred: they tell how often a word is said in captions.
      min_similarity: for "transfer": WordNet path similarity below which a synset does not count.

    Raises:
      ValueError: an unknown kind of classifier, or a similarity out of range.
    """

    model: str
    weights: str | None = None
    step: int | None = None
    classifier: str = "random"
    min_similarity: float = 0.0

    def __post_init__(self):
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"classifier={self.classifier!r}; choose one of {CLASSIFIERS}.")
        if not 0 <= self.min_similarity <= 1:
            raise ValueError(f"min_similarity={self.min_similarity} must be in [0, 1].")

    def apply(self, state: dict, mesh, class_names: Sequence[str] | None) -> tuple[dict, str]:
        """Puts the weights into a fresh training state.

        Args:
          class_names: of the new task, for "transfer".

        Returns:
          The state, whose arrays live where they did, and one line about what was done.

        Raises:
          CheckpointError: there is no such model, or it does not fit; every difference is named.
        """
        stored = open_model(self.model, self.weights, self.step)
        old = {
            path.replace("image_tower/", "tower/", 1): value
            for path, value in trees.flatten(stored.load(mesh)).items()
        }
        fresh = trees.flatten(trees.merge(state["model"], state["frozen"]))
        new = {path: old[path] for path in self._wanted(fresh, old)}
        note = f"Started from step {stored.step} of {stored.directory} ({stored.weights} weights)"
        if self.classifier == "transfer":
            kernel, counts = self._transferred(stored, old, fresh[_KERNEL], class_names)
            new[_KERNEL] = kernel
            note += f"; Transfer Init: {counts}"
        new = {path: _like(value, fresh[path]) for path, value in new.items()}

        def put(tree):
            # Copies: the training step gives its state's memory away.
            flat = {k: jnp.copy(new[k]) if k in new else v for k, v in trees.flatten(tree).items()}
            return trees.unflatten(flat)

        return {
            **state,
            **{name: put(state[name]) for name in ("model", "averaged", "frozen")},
        }, f"{note}."

    def _wanted(self, fresh: dict, old: dict) -> list[str]:
        """Paths to take over; each must be there in its shape."""
        parts = ["tower/", "batch_stats/tower/"]
        if self.classifier == "copy":
            parts.append("classifier/")
        if any(path.startswith("augment/") for path in old):
            parts.append("augment/")  # learned ranges
        expected = {path: x for path, x in fresh.items() if path.startswith(tuple(parts))}
        if not any(path.startswith("tower/") for path in expected):
            raise CheckpointError(
                "config.init is for methods with one image tower (catlip, transfer, segmentation); "
                "this config's model has none."
            )
        found = {path: x for path, x in old.items() if path.startswith(tuple(parts))}
        if not any(path.startswith("augment/") for path in expected):
            found = {path: x for path, x in found.items() if not path.startswith("augment/")}
        if _CLASS_TOKEN not in expected:  # dense tasks do without
            found.pop(_CLASS_TOKEN, None)
        lines = trees.differences(expected, found)
        if lines:
            raise CheckpointError(
                f"{self.model} does not fit the config's model ({len(lines)} differences):\n  "
                + "\n  ".join(lines)
            )
        return list(expected)

    def _transferred(self, stored, old, kernel, class_names):
        keys = stored.labels and stored.labels.keys
        if keys is None or _KERNEL not in old:
            raise CheckpointError(
                f"{self.model} has no classifier of synsets, which Transfer Init starts from; use "
                "init.classifier='random'."
            )
        if not class_names or len(class_names) != kernel.shape[1]:
            raise CheckpointError(
                f"Transfer Init needs the names of the {kernel.shape[1]} classes, and the data "
                f"source has {len(class_names or ())}."
            )
        matches = match_classes(class_names, keys, self.min_similarity)
        shares = np.zeros((len(keys), len(matches)), np.float32)
        for column, match in enumerate(matches):
            for row, _ in match:
                shares[row, column] = 1 / len(match)
        matched = shares.any(axis=0)
        exact = sum(bool(match) and max(s for _, s in match) == 1 for match in matches)
        columns = jnp.matmul(old[_KERNEL], shares, precision="float32")
        counts = (
            f"{exact} classes by their own synset, {int(matched.sum()) - exact} by the nearest, "
            f"{int((~matched).sum())} random"
        )
        return jnp.where(matched, columns, kernel), counts


def _like(value, target):
    """The array in the dtype of another and where that one lives."""
    return jax.jit(lambda x: x.astype(target.dtype), out_shardings=target.sharding)(value)
