"""Methods: one module per objective, chosen by `config.method.name`."""

from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp

from input_pipeline.checks import arguments, parts

Tree = Any  # nested dicts of arrays
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


class Method(Protocol):
    """An objective as pure functions over plain nested dicts of arrays.

    `model` is everything inference needs: parameters and, under "batch_stats", running statistics
    (see `trees.split_statistics`). The loop splits the parameters into a trainable and a frozen
    part and differentiates only the trainable one. `averaged` is an average over the trainable
    part and the statistics (a teacher, an EMA) or {}.

    `dtype` is that of the computation. "bfloat16" keeps parameters, moments, statistics, logits and
    losses in fp32. "float32" has full-precision products on every device, which on TPUs and GPUs
    take several times as long as their default for fp32 (see `models.network`).
    """

    vocab_size: int | None
    """How many token ids its text input knows; None, or not there, where it takes no text."""

    def init(self, rng) -> tuple[Tree, Tree]:
        """(model, averaged) from a key; `averaged` covers the whole model here."""

    def loss(
        self, trainable: Tree, frozen: Tree, averaged: Tree, statistics: Tree, batch, *, rng, step
    ) -> tuple[Any, tuple[Tree, dict]]:
        """Scalar loss of the global batch, and (new statistics, dict of scalar metrics)."""

    def after_update(self, old: Tree, new: Tree, averaged: Tree, step) -> tuple[Tree, Tree]:
        """Clamps the trainable part and moves the average.

        `old` is the trainable part and the statistics before this step, `new` after it.
        """

    def text_length(self, batch) -> int:
        """How many positions of their text the rows of a host's batch need; 0: it is not cut."""

    def cut_text(self, batch, length: int) -> dict:
        """The batch with text cut to the shortest static length that holds `length` positions.

        Losses and gradients stay the same. `length` is the largest `text_length` of all hosts.
        """

    def model_images(self, batch, keys) -> dict[str, Any]:
        """{view kind: f32[B, V, S, S, 3]}: the augmented, normalised images that train the model.

        `keys` holds one random key per row.
        """

    def dead_parameters(self) -> dict[str, tuple]:
        """{path: index}: parts `parameter[index]` that no loss can reach; they are left alone."""

    def predict_fns(self) -> dict[str, Callable]:
        """{name: fn(model, batch) -> outputs}: what evaluators may call."""


def make_method(name: str, **kwargs) -> Method:
    """Builds the `Method` of a module of `big_vlp.methods`, or of another: see `checks.parts`.

    Raises:
      ValueError: no such method.
      ArgumentError: the method does not take one of the arguments, or lacks one.
    """
    return arguments.call("", parts.find("method", __name__, name, "Method"), kwargs)


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype that a method computes in.

    Raises:
      ValueError: it is none that models are computed in.
    """
    if name not in COMPUTE_DTYPES:
        raise ValueError(arguments.unknown("dtype", name, COMPUTE_DTYPES))
    return jnp.dtype(name)
