"""The base of all evaluators, and how one is made of its name.

An evaluator is a class `Evaluator(predict_fns, preprocess, mesh, **config)` in a module of its
own; `run(model)` yields `(metric name, value)`. It runs on all hosts at once and every host gets
the same values. It reads encoders from `predict_fns` and nothing about the method behind them:

  encode_image(model, {"image": u8[B, S, S, 3]}) -> f32[B, D], L2-normalised
  encode_text(model, {"tokens": i32[B, T]}) -> f32[B, D], L2-normalised
  classify(model, {"image": u8[B, S, S, 3]}) -> f32[B, C], logits
  segment(model, {"image": u8[B, S, S, 3]}) -> f32[B, H, W, C], logits
  token_losses(model, rows) -> (f32[B], i32[B]), summed loss of each row's answer and its tokens
  generate(model, rows without loss_mask) -> i32[B, M], the tokens that continue each prompt; it may
    have generate.weights(model), made once for many batches, with which it is called instead

Rows are those of `input_pipeline.views.cogvlm`: `images`, `tokens`, `token_types`, `loss_mask`.
Evaluators from outside this package may derive from the base, and need not.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from jax.sharding import Mesh

from evaluators.shared.records import open_source
from input_pipeline.checks import arguments, parts
from input_pipeline.preprocess import Preprocess


def make_evaluator(name: str, predict_fns, preprocess, mesh: Mesh, **config):
    """Builds the `Evaluator` of a module in `evaluators`, or of another: see `checks.parts`.

    Raises:
      ValueError: no such evaluator.
      ArgumentError: it does not take one of the arguments, or lacks one.
    """
    evaluator = parts.find("evaluator", "evaluators", name, "Evaluator")
    return arguments.call("", evaluator, config, predict_fns, preprocess, mesh)


@dataclasses.dataclass(eq=False)
class Evaluator:
    """What evaluators have in common: the fields from `data` on are the keys of their configs.

    A subclass with keys of its own is such a dataclass too, with `kw_only`. Its `__post_init__`
    goes on from this one and looks at the first record, to fail now and not after training.

    Attributes:
      needs: names of the predict functions that it calls.
      predict_fns: what the method lets evaluators call, by name.
      preprocess: of the model.
      mesh: the devices; rows are split over "data" and "fsdp".
      data: name and arguments of a data source.
      batch_size: rows on all devices together; has no influence on the values.
      source: what `data` describes, one record at least.

    Raises:
      ValueError: the method lacks a function, or the data is empty.
      ArgumentError: `data` does not fit the source.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    predict_fns: Mapping[str, Callable]
    preprocess: Preprocess
    mesh: Mesh
    _: dataclasses.KW_ONLY
    data: Mapping[str, Any]
    batch_size: int = 256

    def __post_init__(self):
        missing = sorted(set(self.needs) - set(self.predict_fns))
        if missing:
            raise ValueError(
                f"This evaluator needs the predict functions {missing}; the method offers "
                f"{sorted(self.predict_fns)}. Remove the evaluator or train a method that has them."
            )
        self.source = open_source(self.data)

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Yields (metric name, value), the same on every host.

        Raises:
          ValueError: records and model do not fit.
        """
        raise NotImplementedError
