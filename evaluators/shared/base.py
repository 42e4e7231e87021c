"""The base of all evaluators, and how one is made of its name.

An evaluator is a class `Evaluator(predict_fns, preprocess, mesh, **config)` in a module of its
own; `run(model)` yields `(metric name, value)`. It runs on all hosts at once and every host gets
the same values. It reads encoders from `predict_fns` and nothing about the method behind them:

  encode_image(model, {"image": u8[B, S, S, 3]}) -> f32[B, D], L2-normalised
  encode_patches(model, {"image": u8[B, S, S, 3]}) -> f32[B, 2, h, w, D], L2-normalised: a vector
    for each patch, comparable to those of texts; with the last attention plain, and correlative
  encode_text(model, {"tokens": i32[B, T]}) -> f32[B, D], L2-normalised
  features(model, {"image": u8[B, S, S, 3]}) -> f32[B, D], of methods that take no text
  classify(model, {"image": u8[B, S, S, 3]}) -> f32[B, C], logits
  segment(model, {"image": u8[B, S, S, 3]}) -> f32[B, H, W, C], logits
  token_losses(model, rows) -> (f32[B], i32[B]), summed loss of each row's answer and its tokens
  generate(model, rows without loss_mask) -> i32[B, M], the tokens that continue each prompt; it may
    have generate.weights(model), made once for many batches, with which it is called instead, and
    generate.settings, a text of all that answers depend on besides weights and rows

Rows are those of `input_pipeline.views.cogvlm`: `images`, `tokens`, `token_types`, `loss_mask`.
`row_of` says what a row of each is, before there is any; those of `generate` may end sooner, see
`written.prompt_lengths`.
Evaluators from outside this package may derive from the base, and need not.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh

from evaluators.shared.records import open_source
from input_pipeline.checks import arguments, parts
from input_pipeline.preprocess import Preprocess
from input_pipeline.views import cogvlm


def row_of(function: str, preprocess: Preprocess) -> dict | None:
    """name -> (shape, dtype) of a row that one of the predict functions above reads; None where it
    is not among them."""
    size, text = preprocess.image_size, (preprocess.context_length,)
    images = ("encode_image", "encode_patches", "features", "classify", "segment")
    if function in images:
        return {"image": ((size, size, 3), np.dtype(np.uint8))}
    if function == "encode_text":
        return {"tokens": (text, np.dtype(np.int32))}
    if function not in ("token_losses", "generate"):
        return None
    row = cogvlm.Views(
        image_size=size,
        tokenizer=preprocess.tokenizer,
        context_length=preprocess.context_length,
        image_token_size=preprocess.image_token_size,
    ).spec()
    return {k: v for k, v in row.items() if function == "token_losses" or k != "loss_mask"}


def find_evaluator(name: str) -> type:
    """The class `Evaluator` of a module in `evaluators`, or of another: see `checks.parts`.

    Raises:
      ValueError: no such evaluator.
    """
    return parts.find("evaluator", "evaluators", name, "Evaluator")


def make_evaluator(name: str, predict_fns, preprocess, mesh: Mesh, **config):
    """Builds the evaluator of that name, see `find_evaluator`.

    Raises:
      ValueError: no such evaluator.
      ArgumentError: it does not take one of the arguments, or lacks one.
    """
    return arguments.call("", find_evaluator(name), config, predict_fns, preprocess, mesh)


def check_needs(needs: Iterable[str], predict_fns: Mapping[str, Callable]) -> None:
    """Raises ValueError where an evaluator needs a function that is not there."""
    missing = sorted(set(needs) - set(predict_fns))
    if missing:
        raise ValueError(
            f"This evaluator needs the predict functions {missing}; the method offers "
            f"{sorted(predict_fns)}. Remove the evaluator or train a method that has them."
        )


def needed_of(evaluator: type, predict_fns: Mapping[str, Callable]) -> tuple[str, ...]:
    """Names of the functions that an evaluator calls of these, as far as it says so, see
    `Evaluator.needed`; of one that does not derive from the base, its `needs`.

    Raises:
      ValueError: one is not there.
    """
    if issubclass(evaluator, Evaluator):
        return evaluator.needed(predict_fns)
    needs = tuple(getattr(evaluator, "needs", ()))
    check_needs(needs, predict_fns)
    return needs


@dataclasses.dataclass(eq=False)
class Evaluator:
    """What evaluators have in common: the fields from `data` on are the keys of their configs.

    A subclass with keys of its own is such a dataclass too, with `kw_only`. Its `__post_init__`
    goes on from this one and looks at the first record, to fail now and not after training.

    Attributes:
      needs: names of the predict functions that it calls, see `needed`.
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
        self.needed(self.predict_fns)
        self.source = open_source(self.data)

    @classmethod
    def needed(cls, predict_fns: Mapping[str, Callable]) -> tuple[str, ...]:
        """Names of the functions that it calls of these.

        Raises:
          ValueError: one is not there.
        """
        check_needs(cls.needs, predict_fns)
        return cls.needs

    def run(self, model) -> Iterator[tuple[str, float]]:
        """Yields (metric name, value), the same on every host.

        Raises:
          ValueError: records and model do not fit.
        """
        raise NotImplementedError
