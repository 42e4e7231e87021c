"""Source: another source whose records get the labels that their captions name.

What `prepare --labels` stores, made on the fly: for evaluating CatLIP on captions as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.checks import arguments
from input_pipeline.records import attempt
from input_pipeline.sources import make_source
from input_pipeline.sources.shared import base
from input_pipeline.words.labelling import LabelRule
from input_pipeline.words.vocabulary import Vocabulary


class Source(base.Wrapper):
    """The records of a source, in its order, each with `labels`, see `labelling.LabelRule`.

    Args:
      data: `name` and arguments of the source.
      vocabulary: file of classes, see `words.vocabulary`.
      vocabulary_size: keep only so many of the most frequent classes; by default all.
      caption_fields: fields whose captions give labels; by default those of the vocabulary.
      label_mode: one of `words.mining.MODES`; by default that of the vocabulary.

    Raises:
      ValueError: the vocabulary was counted from other fields or in another mode.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        vocabulary: str,
        vocabulary_size: int | None = None,
        caption_fields: Sequence[str] | None = None,
        label_mode: str | None = None,
    ):
        super().__init__(arguments.call("data", make_source, data))
        words = Vocabulary.load(vocabulary, vocabulary_size)
        self._rule = LabelRule(words, caption_fields, label_mode)
        self.label_rule = self._rule.description()
        self.class_names = list(words.names)

    def record(self, index: int) -> dict[str, Any]:
        return self._labelled(self._source[index])

    def records(self, indices: Sequence[int]) -> list[dict[str, Any] | Exception]:
        return [attempt(self._labelled, one) for one in self._source.records(indices)]

    def _labelled(self, record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "labels": self._rule.labels(record)}

    def identity(self) -> Iterable[str]:
        yield f"{self._source.fingerprint()} {self.label_rule}"
