"""Zero-shot multi-label classification: is an image nearer to the prompts of what it shows?

The scores of a class are the images' cosines with its classifier, see `pairs.zeroshot`; average
precision ranks the images by them, as clip_benchmark does for VOC 2007. So models that take text
stand beside those with a head (`labels.average_precision`), on the same data.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from evaluators.datasets import tables
from evaluators.labels.average_precision import metrics
from evaluators.pairs.zeroshot import check_templates, published, zeroshot_weights
from evaluators.shared.towers import TowersEvaluator
from input_pipeline.checks.fields import labels_of

_SYNSET = re.compile(r"(.+)\.[nvars]\.\d+")


@dataclasses.dataclass(kw_only=True, eq=False)
class Evaluator(TowersEvaluator):
    """Yields what `labels.average_precision` does.

    Attributes:
      data: its records have `labels`, and it names the classes; "hot_dog.n.01", as sources that
        mine labels call them, is asked for as "hot dog".
      templates: prompts with `{}` in the place of the class name, or the name of a published list;
        a class is the mean of all.

    Raises:
      ValueError: no labels, no class names, or a template without `{}`.
    """

    templates: Sequence[str] | str = ("{}",)

    def __post_init__(self):
        super().__post_init__()
        if not self.source.class_names:
            raise ValueError(f"The source {self.data['name']!r} names no classes.")
        self._templates = published(tables.templates, self.templates)
        check_templates(self._templates)
        self._names = [_word(name) for name in self.source.class_names]
        labels_of(self.source[0])  # fail now, not after training

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Raises ValueError where a label is no class, or no image has any."""
        images, labels = self.encode_images(
            model, lambda record: sorted(set(labels_of(record, len(self._names))))
        )
        if not any(labels):
            raise ValueError("No image of this data has a label: there is nothing to find.")
        prompts = [t.replace("{}", name) for name in self._names for t in self._templates]
        weights = zeroshot_weights(self.encode_texts(model, prompts), len(self._names))
        yield from metrics(images @ weights, labels)


def _word(name: str) -> str:
    found = _SYNSET.fullmatch(name)
    return found[1].replace("_", " ") if found else name
