"""Zero-shot classification: an image goes to the class whose prompts are nearest.

The class weights are CLIP's (arXiv 2103.00020, section 3.1.4): the mean of the normalised
features of all prompts of a class, normalised again.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from evaluators.shared.ranking import accuracies, rank_of_label
from evaluators.shared.rows import RowMap, replicate
from evaluators.shared.towers import TowersEvaluator
from input_pipeline.checks.fields import label_of

# What data sets call classes where they do not name them.
_ID = re.compile(
    r"""
    [nvars]\d{8}([\W_].*)?                # WordNet's, as ImageNet's folders; also before a name
    | [nvars]\d{5,7} | .+\.[nvars]\.\d+   # offsets and names of synsets
    | [+-]?\d+([.,]\d+)*                 # numbers
    | (class|label|category|cls|id)[\s_:#-]*\d+
    | /[a-z]/\w+ | q\d{2,}               # of Freebase (Open Images) and Wikidata
    | (?=.*\d)(?=.*[a-f])[0-9a-f]{8,}    # hashes
    | [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(TowersEvaluator):
    """Yields `top1_accuracy`, `top5_accuracy`, `mean_per_class_recall` and their chance.

    Attributes:
      data: its records have `label`.
      class_names: the name of label 0, 1, ... as people say it; by default those of the source.
      templates: prompts with `{}` in the place of the class name; a class is the mean of all.

    Raises:
      ValueError: no labels, no class names, names that look like ids, or a template without `{}`.
    """

    class_names: Sequence[str] | None = None
    templates: Sequence[str] = ("a photo of a {}.",)

    def __post_init__(self):
        super().__post_init__()
        names = self.class_names
        if names is None:
            names = self.source.class_names
        if not names:
            raise ValueError(f"The source {self.data['name']!r} names no classes; set class_names.")
        _check_names(names, given=self.class_names is not None)
        wrong = [t for t in self.templates if t.count("{}") != 1]
        if wrong or not self.templates or isinstance(self.templates, str):
            raise ValueError(f"templates needs strings with one {{}} each; got {wrong}.")
        self._num_classes = len(names)
        self._prompts = [t.replace("{}", name) for name in names for t in self.templates]
        self._rank = RowMap(_rank_of_label, self.mesh)
        self._label_of(self.source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        weights = zeroshot_weights(self.encode_texts(model, self._prompts), self._num_classes)
        images, labels = self.encode_images(model, self._label_of)
        labels = np.array(labels, np.int32)

        def load(row):
            return {"feature": images[row], "label": labels[row]}

        params = replicate(weights, self.mesh)
        rank = self._rank(params, load, len(images), self.batch_size)
        yield from accuracies(rank, labels, self._num_classes)

    def _label_of(self, record) -> int:
        return label_of(record, self._num_classes)


def _check_names(names: Sequence[str], given: bool) -> None:
    """Raises ValueError for a name that makes no prompt; `given` ones may be numbers below 100."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names needs a list of strings, one for each label; got {names!r}.")
    # Images of digits, and counts of objects.
    digits = given and all(len(name) == 1 or re.fullmatch(r"\d\d", name) for name in names)
    wrong = [
        name for name in names if not name.strip() or (not digits and _ID.fullmatch(name.strip()))
    ]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(names)} class names are no names but ids, such as {wrong[0]!r}, "
            f"of which a prompt would be made. Set class_names to what people call the classes, in "
            "the order of the labels (of the source 'folders': names=FILE)."
        )


def zeroshot_weights(text_features: jax.Array, num_classes: int) -> np.ndarray:
    """The classifier made of prompts.

    Args:
      text_features: f32[num_classes * M, D], all M prompts of class 0 first, then of class 1, ...
      num_classes: C.

    Returns:
      f32[D, C], unit columns: norm(mean over prompts of norm(text feature)).
    """
    unit = _normalise(np.asarray(text_features, np.float32))
    return _normalise(unit.reshape(num_classes, -1, unit.shape[-1]).mean(axis=1)).T


def _normalise(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _rank_of_label(weights, batch):
    scores = jnp.matmul(batch["feature"], weights, precision="highest")  # [B, C]
    return rank_of_label(scores, batch["label"])
