"""The base of all evaluators, and how one is made of its name.

An evaluator is a class `Evaluator(predict_fns, preprocess, mesh, **config)` in a module of its
own; `run(model)` yields `(metric name, value)`. It runs on all hosts at once and every host gets
the same values. It reads encoders from `predict_fns` and nothing about the method behind them:

  encode_image(model, {"image": u8[B, S, S, 3]}) -> f32[B, D], L2-normalised
  encode_text(model, {"tokens": i32[B, T]}) -> f32[B, D], L2-normalised
  classify(model, {"image": u8[B, S, S, 3]}) -> f32[B, C], logits
  segment(model, {"image": u8[B, S, S, 3]}) -> f32[B, H, W, C], logits
  token_losses(model, rows) -> (f32[B], i32[B]), summed loss of each row's answer and its tokens
  generate(model, rows without loss_mask) -> i32[B, M], the tokens that continue each prompt

Rows are those of `input_pipeline.views.cogvlm`: `images`, `tokens`, `token_types`, `loss_mask`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from evaluators.shared.records import open_source
from input_pipeline.checks import arguments, parts


def make_evaluator(name: str, predict_fns, preprocess, mesh: Mesh, **config):
    """Builds the `Evaluator` of a module in `evaluators`, or of another: see `checks.parts`.

    Raises:
      ValueError: no such evaluator.
      ArgumentError: it does not take one of the arguments, or lacks one.
    """
    evaluator = parts.find("evaluator", "evaluators", name, "Evaluator")
    return arguments.call("", evaluator, config, predict_fns, preprocess, mesh)


class Evaluator:
    """What evaluators have in common. Each lists the keys of its config in its own constructor.

    Attributes:
      needs: names of the predict functions that it calls.
      source: the data, one record at least.
      predict_fns, preprocess, mesh, batch_size: see the constructor.
    """

    needs: tuple[str, ...] = ()

    def __init__(
        self,
        predict_fns: Mapping[str, Callable],
        preprocess,
        mesh: Mesh,
        data: Mapping[str, Any],
        batch_size: int,
    ):
        """
        Args:
          predict_fns: what the method lets evaluators call, by name.
          preprocess: the model's `Preprocess`.
          mesh: the devices; rows are split over "data" and "fsdp".
          data: name and arguments of a data source.
          batch_size: rows on all devices together; has no influence on the values.

        Raises:
          ValueError: the method lacks a function, or the data is empty.
          ArgumentError: `data` does not fit the source.
        """
        missing = sorted(set(self.needs) - set(predict_fns))
        if missing:
            raise ValueError(
                f"This evaluator needs the predict functions {missing}; the method offers "
                f"{sorted(predict_fns)}. Remove the evaluator or train a method that has them."
            )
        self.predict_fns, self.preprocess, self.mesh = predict_fns, preprocess, mesh
        self.source, self.batch_size = open_source(data), batch_size

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Yields (metric name, value), the same on every host.

        Raises:
          ValueError: records and model do not fit.
        """
        raise NotImplementedError
