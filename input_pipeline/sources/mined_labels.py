"""Source: another source whose records get the labels that their captions name.

What `prepare --labels` stores, made on the fly: for evaluating CatLIP on captions as they are.
"""

import os
from collections.abc import Mapping
from typing import Any

from input_pipeline import arguments
from input_pipeline.files import fingerprint
from input_pipeline.label_mining import LabelMiner
from input_pipeline.sources import make_source
from input_pipeline.vocabulary import Vocabulary


class Source:
    """The records of a source, in its order, each with `labels`: classes of all its captions.

    Args:
      data: `name` and arguments of the source.
      vocabulary: file of classes, see `input_pipeline.vocabulary`.
      vocabulary_size: keep only so many of the most frequent classes; by default all.
      label_mode: one of `label_mining.MODES`.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        vocabulary: str,
        vocabulary_size: int | None = None,
        label_mode: str = "released",
    ):
        self._source = arguments.call("data", make_source, data)
        self._vocabulary = Vocabulary.load(vocabulary, vocabulary_size)
        self._miner = LabelMiner(label_mode)
        self.label_vocabulary = self._vocabulary.fingerprint()
        self.num_label_classes = len(self._vocabulary)
        self.class_names = list(self._vocabulary.names)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._source[index]
        captions = [text for texts in record["captions"].values() for text in texts]
        keys = [key for caption in captions for key in self._miner.keys(caption)]
        return {**record, "labels": self._vocabulary.labels(keys)}

    def fingerprint(self) -> str:
        text = f"{self._source.fingerprint()} {self.label_vocabulary} {self._miner.mode}"
        return fingerprint(text)

    def files(self) -> list[str | os.PathLike]:
        """Those of the source."""
        return getattr(self._source, "files", list)()
