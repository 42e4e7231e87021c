"""The base of evaluators that compare images with texts: the two encoders."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evaluators.shared.base import Evaluator
from evaluators.shared.rows import RowMap, map_images
from input_pipeline.text.tokenizers import make_tokenizer


class TowersEvaluator(Evaluator):
    """Calls `encode_image` and `encode_text`, see `shared.base`.

    Raises:
      ValueError: also where the model takes no text.
    """

    needs = ("encode_image", "encode_text")

    def __post_init__(self):
        super().__post_init__()
        if self.preprocess.tokenizer is None:
            raise ValueError("This evaluator needs text, but the model has no tokenizer.")
        self._encode_image = RowMap(self.predict_fns["encode_image"], self.mesh)
        self._encode_text = RowMap(self.predict_fns["encode_text"], self.mesh)
        self._tokenizer = make_tokenizer(self.preprocess.tokenizer)
        # Loads it here, not in all threads at once.
        self._tokenizer([""], self.preprocess.context_length)

    def encode_images(self, model, describe: Callable[[dict], Any]) -> tuple[np.ndarray, list]:
        """Encodes all images of the source to features f32[N, D]; otherwise as `map_images`."""
        return map_images(
            self._encode_image, model, self.source, self.preprocess, self.batch_size, describe
        )

    def encode_texts(self, model, texts: Sequence[str]) -> np.ndarray:
        """Encodes strings to features f32[len(texts), D]."""
        length = self.preprocess.context_length

        def load(row):
            return {"tokens": self._tokenizer([texts[row]], length)[0]}

        return self._encode_text(model, load, len(texts), self.batch_size)
