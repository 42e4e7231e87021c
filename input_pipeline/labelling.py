"""Stores with each record the classes that its captions name, while it is prepared."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from input_pipeline.label_mining import LabelMiner
from input_pipeline.vocabulary import Vocabulary


class Labeller:
    """Adds `labels` to records: classes of a vocabulary, ascending, each once; often none.

    They are those of all captions that the record keeps, in all its fields. Labels that it had are
    replaced.

    Args:
      vocabulary: decides the classes.
      mode: of the label miner.

    Raises:
      ValueError: the mode cannot be had.
    """

    def __init__(self, vocabulary: Vocabulary, mode: str):
        self._vocabulary, self._miner = vocabulary, LabelMiner(mode)

    def description(self) -> dict[str, Any]:
        """What decides the labels beside the captions, and the number of classes."""
        return {
            "fingerprint": self._vocabulary.fingerprint(),
            "size": len(self._vocabulary),
            "mode": self._miner.mode,
        }

    def label(
        self, records: Iterable[dict[str, Any]], counts: Counter[str]
    ) -> Iterator[dict[str, Any]]:
        """Yields the records with their labels, and counts in `counts` the "labels" and the
        "records without".

        Raises:
          ValueError: a record has no captions.
        """
        for record in records:
            if "captions" not in record:
                raise ValueError(f"record {record['id']!r} has no captions to take labels from")
            texts = [text for field in record["captions"].values() for text in field]
            keys = {key for text in texts for key in self._miner.keys(text)}
            labels = self._vocabulary.labels(keys)
            counts["labels"] += len(labels)
            counts["records without"] += not labels
            yield {**record, "labels": labels}
