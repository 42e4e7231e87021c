"""The bases of evaluators that work on features: of images, and of images and texts."""

import contextlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from evaluators.shared.base import Evaluator
from evaluators.shared.records import image_of
from evaluators.shared.rows import RowMap, gather_rows, load_row
from evaluators.shared.sharing import once
from input_pipeline.text.tokenizers import make_tokenizer


class FeaturesEvaluator(Evaluator):
    """Calls `encode_image`, see `shared.base`; `features` of methods that have no text.

    Raises:
      ValueError: also where the method has neither.
    """

    def __post_init__(self):
        super().__post_init__()
        encode = self.predict_fns.get("encode_image") or _unit(self.predict_fns.get("features"))
        if encode is None:
            raise ValueError(
                "This evaluator needs the predict function 'encode_image' or 'features'; the "
                f"method offers {sorted(self.predict_fns)}."
            )
        self._encode_image = RowMap(encode, self.mesh)

    def encode_images(self, model, describe: Callable[[dict], Any]) -> tuple[np.ndarray, list]:
        """Encodes all images of the source: each is read once and by one host, and evaluators that
        share a model (see `shared.sharing`) and have equal `data` encode them once together.

        Args:
          describe: what to keep of a record, which comes without its image and other arrays.

        Returns:
          Features f32[N, D] and the N descriptions, in the source's order, on every host.
        """
        return self.encode_source(model, self.source, self.data, describe)

    def encode_source(
        self, model, source, data: Mapping[str, Any], describe: Callable[[dict], Any]
    ) -> tuple[np.ndarray, list]:
        """`encode_images` of another source, which `data` describes."""

        def compute():
            facts = {}

            def load(row):
                record = source[row]
                facts[row] = _facts(record)
                describe(facts[row])  # fail at the first, and not after the last
                return {"image": image_of(record, self.preprocess)}

            features = self._encode_image(model, load, len(source), self.batch_size)
            return features, gather_rows(facts, len(source))

        key = "encode_image", json.dumps(data, sort_keys=True, default=str)
        features, facts = once(model, key, compute)
        return features, [load_row(lambda row: describe(facts[row]), i) for i in range(len(facts))]


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


def _unit(features):
    """The predict function with outputs of length 1; None where there is none."""
    if features is None:
        return None

    def encode(model, batch):
        found = features(model, batch)
        return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)

    return encode


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says besides its image, masks and other arrays, as JSON data."""
    facts = {}
    for name, value in record.items():
        with contextlib.suppress(AttributeError, TypeError, ValueError):  # it is no JSON data
            facts[name] = json.loads(json.dumps(value, default=operator.methodcaller("item")))
    return facts
