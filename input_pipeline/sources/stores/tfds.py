"""Source: a TensorFlow Datasets data set, read without TensorFlow."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from input_pipeline.sources import check_fields
from input_pipeline.sources.shared import base


class Source(base.Source):
    """Random access to one split of a prepared TFDS data set; images stay encoded.

    Ids are "<dataset>/<split>/<index>". Captions are stored under the name given in `captions`.

    Attributes:
      class_names: the names of label 0, 1, ..., where `label` is a ClassLabel.

    Args:
      dataset: name, with config and version if there are several: "coco_captions/2014:1.1.0".
      split: of the data set, also a part of one: "train[:10%]".
      data_dir: where the data set was prepared; by default TFDS's own.
      image: the image feature. Features within others are written "outer/inner".
      captions: text features, each one text or a sequence: ["captions/text"] in coco_captions.
      label: an integer feature.

    Raises:
      FileNotFoundError: the data set is not prepared.
      ValueError: no such split or feature, or files without random access.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        data_dir: str | os.PathLike | None = None,
        image: str = "image",
        captions: Sequence[str] | None = None,
        label: str | None = None,
    ):
        self._image, self._label = image, label
        self._captions = () if captions is None else check_fields(captions)
        builder = _find(dataset, data_dir)
        features, splits = builder.info.features, builder.info.splits
        self._name, self._split = builder.info.full_name, split
        _check(features, image, "an image", lambda f: isinstance(f, tfds.features.Image))
        for name in self._captions:
            _check(features, name, "text", _is_text, repeated=True)
        if label is not None:
            feature = _check(features, label, "an integer", _is_integer)
            if isinstance(feature, tfds.features.ClassLabel):
                self.class_names = list(feature.names)
        if not splits[split].num_examples:
            raise ValueError(f"Split {split!r} of {self._name} has no records.")
        try:
            self._data = builder.as_data_source(split=split, decoders=_undecoded(features))
        except NotImplementedError:
            raise ValueError(
                f"{self._name} is stored as {builder.info.file_format.value}, which has no random "
                f"access. Prepare it again: `tfds build {dataset} --file_format=array_record`."
            ) from None
        sizes = {name: (part.shard_lengths, part.num_bytes) for name, part in splits.items()}
        self._identity = f"tfds {self._name} {split} {image} {self._captions} {label} {sizes}"

    def __len__(self) -> int:
        return len(self._data)

    def record(self, index: int) -> dict[str, Any]:
        """The record at `index`.

        Raises:
          ValueError: a caption is no UTF-8.
        """
        example = self._data[index]
        record = {
            "id": f"{self._name}/{self._split}/{index}",
            "image": _value(example, self._image),
            "captions": {name: _texts(example, name, index) for name in self._captions},
        }
        if self._label is not None:
            record["label"] = int(_value(example, self._label))
        return record

    def identity(self) -> Iterable[str]:
        """Name, version, sizes and options."""
        yield self._identity


def _find(dataset: str, data_dir: str | os.PathLike | None):
    """The builder of what is on disk; the code that prepared it may need TensorFlow."""
    try:
        return read_only_builder.builder_from_files(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise FileNotFoundError(
            f"The TFDS data set {dataset!r} is not in {data_dir or '~/tensorflow_datasets'}. "
            f"Prepare it with `tfds build {dataset} --file_format=array_record` (that needs "
            "TensorFlow, reading does not), or set data_dir."
        ) from None


def _check(
    features: tfds.features.FeaturesDict,
    name: str,
    what: str,
    test: Callable[[Any], bool],
    repeated: bool = False,
):
    """The feature called "outer/inner", which must pass `test`; `repeated` allows sequences.

    Raises:
      ValueError: there is none, or it is something else.
    """
    found: Any = features
    for part in name.split("/"):
        found = _repeated(found) if repeated else found
        if not isinstance(found, tfds.features.FeaturesDict) or part not in found:
            raise ValueError(f"There is no feature {name!r}; there are {sorted(_names(features))}.")
        found = found[part]
    if not test(_repeated(found) if repeated else found):
        raise ValueError(f"Feature {name!r} is not {what}, but {found}.")
    return found


def _repeated(feature: Any) -> Any:
    return feature.feature if isinstance(feature, tfds.features.Sequence) else feature


def _is_text(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Text) or feature.np_dtype in (object, np.str_)


def _is_integer(feature: Any) -> bool:
    return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)


def _names(features: Any, prefix: str = ""):
    features = _repeated(features)
    if not isinstance(features, tfds.features.FeaturesDict):
        yield prefix
        return
    for name, feature in features.items():
        yield from _names(feature, f"{prefix}/{name}" if prefix else name)


def _undecoded(features: tfds.features.FeaturesDict) -> dict[str, Any]:
    """Decoders that leave all images alone, also those that are not used."""
    decoders = {}
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            decoders[name] = tfds.decode.SkipDecoding()
        elif isinstance(feature, tfds.features.FeaturesDict) and (inner := _undecoded(feature)):
            decoders[name] = inner
    return decoders


def _value(example: dict[str, Any], name: str) -> Any:
    for part in name.split("/"):
        example = example[part]
    return example


def _texts(example: dict[str, Any], name: str, index: int) -> list[str]:
    value = _value(example, name)
    values = [value] if isinstance(value, bytes | str) else list(value)
    try:
        texts = [text.decode() if isinstance(text, bytes) else str(text) for text in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"Record {index}, feature {name!r}: {error}.") from None
    return [text.strip() for text in texts if text.strip()]
