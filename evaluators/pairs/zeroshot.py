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

from evaluators.datasets import tables
from evaluators.shared.metrics import macro_f1, worst_group
from evaluators.shared.ranking import accuracies, hits, rank_of_label
from evaluators.shared.rows import RowMap, replicate
from evaluators.shared.sharing import once
from evaluators.shared.towers import TowersEvaluator
from input_pipeline.checks.fields import label_of

DEFAULT_TEMPLATES = ("a photo of a {}.",)
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
    """Yields `top1_accuracy`, `top5_accuracy`, `mean_per_class_recall`, their chance, `macro_f1`,
    and with `group` `worst_GROUP_top1_accuracy` and `worst_GROUP_top5_accuracy`.

    Equal prompts stand for the first of their classes, as in the published evaluations: two of
    ImageNet's pairs of classes have one name. Other ties count against the model.

    The classifier is made once for all evaluators that share a model and have equal prompts.

    Attributes:
      data: its records have `label`.
      class_names: the name of label 0, 1, ... as people say it, or the name of a published list,
        see `datasets.tables`; by default those of the source.
      templates: prompts with `{}` in the place of the class name, or the name of published ones; a
        class is the mean of all. By default those of the source, or "a photo of a {}.".
      group: a name in the records' `groups`: the worst of its groups is reported, too.

    Raises:
      ValueError: no labels, no class names, names that look like ids, no such list or group, or a
        template without `{}`.
    """

    class_names: Sequence[str] | str | None = None
    templates: Sequence[str] | str | None = None
    group: str | None = None

    def __post_init__(self):
        super().__post_init__()
        names = published(tables.class_names, self.class_names)
        if names is None:
            names = self.source.class_names
        if not names:
            raise ValueError(
                f"The source {self.data['name']!r} names no classes; set class_names, or put what "
                "lists them beside the data."
            )
        # What a protocol says is not questioned: the digits of MNIST, the empty name in CLEVR.
        protocol = isinstance(self.class_names, str) or isinstance(self.templates, str)
        if not (protocol or self.source.templates):
            check_names(names, given=self.class_names is not None)
        templates = published(tables.templates, self.templates)
        if templates is None:
            templates = self.source.templates or DEFAULT_TEMPLATES
        check_templates(templates)
        self._num_classes = len(names)
        self._prompts = tuple(t.replace("{}", name) for name in names for t in templates)
        self._is_copy = is_copy(names)
        self._rank = RowMap(_rank_and_choice, self.mesh)
        self._target_of(self.source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        weights = once(model, ("zeroshot", self._num_classes, self._prompts), self._weights(model))
        images, targets = self.encode_images(model, self._target_of)
        labels, groups = np.array(targets, np.int32).T

        def load(row):
            return {"feature": images[row], "label": labels[row]}

        params = replicate((weights, self._is_copy), self.mesh)
        rank, predicted = self._rank(params, load, len(images), self.batch_size).T
        yield from accuracies(rank, labels, self._num_classes)
        yield "macro_f1", macro_f1(predicted, labels)
        if self.group is not None:
            for k in (1, 5):
                right = hits(rank, k, self._num_classes)
                yield f"worst_{self.group}_top{k}_accuracy", worst_group(right, groups)

    def _weights(self, model):
        return lambda: zeroshot_weights(self.encode_texts(model, self._prompts), self._num_classes)

    def _target_of(self, record) -> tuple[int, int]:
        """Label and group of a record; the group is 0 where none is asked for."""
        label = label_of(record, self._num_classes)
        if self.group is None:
            return label, 0
        groups = record.get("groups", {})
        if self.group not in groups:
            raise ValueError(
                f"Record {record['id']!r} has no group {self.group!r}; it has {sorted(groups)}."
            )
        return label, groups[self.group]


def published(table, given: Sequence[str] | str | None) -> Sequence[str] | None:
    """What is given; the published list of this name where it is a string."""
    return table(given) if isinstance(given, str) else given


def check_templates(templates: Sequence[str]) -> None:
    """Raises ValueError for one without exactly one `{}`, or where there is none."""
    wrong = [t for t in templates if t.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(f"templates needs strings with one {{}} each; got {wrong}.")


def is_copy(names: Sequence[str]) -> np.ndarray:
    """bool[C], the classes that are called as one before them."""
    seen: set[str] = set()
    return np.array([name in seen or seen.add(name) is not None for name in names])


def check_names(names: Sequence[str], given: bool) -> None:
    """Raises ValueError for a name that makes no prompt; `given` ones may be numbers below 100."""
    if not all(isinstance(name, str) for name in names):
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


def _rank_and_choice(params, batch):
    """i32[B, 2]: rank of the label, and the class that is chosen: none that only ties with it."""
    weights, is_copy = params
    scores = jnp.matmul(batch["feature"], weights, precision="highest")  # [B, C]
    scores = jnp.where(is_copy, jnp.nextafter(scores, -jnp.inf), scores)
    rank = rank_of_label(scores, batch["label"])
    others = jnp.arange(len(is_copy)) != batch["label"][:, None]
    best_other = jnp.argmax(jnp.where(others, scores, -jnp.inf), axis=1)
    return jnp.stack([rank, jnp.where(rank == 0, batch["label"], best_other)], axis=1)
