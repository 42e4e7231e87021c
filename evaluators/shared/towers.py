"""The bases of evaluators that work on features: of images, and of images and texts."""

import contextlib
import functools
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from big_vlp.parallel.processes import raise_together
from evaluators.shared.base import Evaluator
from evaluators.shared.records import described, image_of
from evaluators.shared.rows import RowMap, gather_rows, load_row
from evaluators.shared.sharing import once
from input_pipeline.records import BrokenRecordError
from input_pipeline.text.tokenizers import make_tokenizer


class FeaturesEvaluator(Evaluator):
    """Calls `encode_image`, see `shared.base`; `features` of methods that have no text.

    Raises:
      ValueError: also where the method has neither.
    """

    @classmethod
    def needed(cls, predict_fns: Mapping[str, Callable]) -> tuple[str, ...]:
        """`encode_image`, or `features` where that is not there; see `Evaluator.needed`."""
        if cls.needs:
            return super().needed(predict_fns)
        for name in ("encode_image", "features"):
            if name in predict_fns:
                return (name,)
        raise ValueError(
            "This evaluator needs the predict function 'encode_image' or 'features'; the method "
            f"offers {sorted(predict_fns)}."
        )

    def __post_init__(self):
        super().__post_init__()
        encode = self.predict_fns.get("encode_image") or _unit(self.predict_fns["features"])
        self._encode_image = RowMap(encode, self.mesh)
        self._key = encode, self.preprocess

    def encode_images(self, model, describe: Callable[[dict], Any]) -> tuple[np.ndarray, list]:
        """Encodes all images of the source: each is read once and by one host, and evaluators that
        share a model (see `shared.sharing`) and have equal `data` encode them once together.

        Args:
          describe: what to keep of a record, as JSON data; it comes without its image and other
            arrays.

        Returns:
          Features f32[N, D] and the N descriptions, in the source's order, on every host.
        """
        return self.encode_source(model, self.source, self.data, describe)

    def encode_source(
        self, model, source, data: Mapping[str, Any], describe: Callable[[dict], Any]
    ) -> tuple[np.ndarray, list]:
        """`encode_images` of another source, which `data` describes."""

        def compute():
            said = {}  # what the records of this process say besides their images, as JSON

            def load(row):
                record = source[row]
                said[row] = _facts(record)
                describe(json.loads(said[row]))  # fail at the first, and not after the last
                return {"image": image_of(record, self.preprocess)}

            return self._encode_image(model, load, len(source), self.batch_size), said

        features, said = once(model, (*self._key, described(data)), compute)
        own, error = {}, None
        try:
            own = {row: load_row(lambda row: describe(json.loads(said[row])), row) for row in said}
        except BrokenRecordError as failed:  # another evaluator had no quarrel with it
            error = failed
        raise_together(self.mesh, error)
        return features, gather_rows(own, len(source))


class TowersEvaluator(FeaturesEvaluator):
    """Calls `encode_image` and `encode_text`, see `shared.base`.

    Raises:
      ValueError: also where the model takes no text.
    """

    needs = ("encode_image", "encode_text")

    def __post_init__(self):
        super().__post_init__()
        if self.preprocess.tokenizer is None:
            raise ValueError("This evaluator needs text, but the model has no tokenizer.")
        self._encode_text = RowMap(self.predict_fns["encode_text"], self.mesh)
        self._tokenizer = make_tokenizer(self.preprocess.tokenizer)
        # Loads it here, not in all threads at once.
        self._tokenizer([""], self.preprocess.context_length)

    def encode_texts(self, model, texts: Sequence[str]) -> np.ndarray:
        """Encodes strings to features f32[len(texts), D]."""
        length = self.preprocess.context_length

        def load(row):
            return {"tokens": self._tokenizer([texts[row]], length)[0]}

        return self._encode_text(model, load, len(texts), self.batch_size)


@functools.cache  # jax compiles anew for each new function
def _unit(features):
    """The predict function with outputs of length 1."""

    def encode(model, batch):
        found = features(model, batch)
        return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)

    return encode


def _facts(record: Mapping[str, Any]) -> str:
    """What a record says besides its image, masks and other arrays, as JSON."""
    facts = []
    for name, value in record.items():
        with contextlib.suppress(AttributeError, TypeError, ValueError):  # it is no JSON data
            said = json.dumps(value, default=operator.methodcaller("item"))
            facts.append(f"{json.dumps(name)}: {said}")
    return f"{{{', '.join(facts)}}}"
