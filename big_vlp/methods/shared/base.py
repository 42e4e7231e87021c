"""What a method is: a model, a loss, and what evaluators may call; the rest has defaults."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from big_vlp import trees
from big_vlp.methods.shared.ema import check_decay, ema
from big_vlp.models.layers import axes
from big_vlp.parallel import placing
from input_pipeline.checks.arguments import unknown

Tree = Any  # nested dicts of arrays
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


class Method:
    """An objective as pure functions over plain nested dicts of arrays.

    A method is a frozen dataclass of this base, whose fields are the keys of `config.method`; it
    writes `init_model`, `loss` and `predict_fns`, and of the rest what is its own.

    `model` is everything inference needs: parameters and, under "batch_stats", running statistics
    (see `trees.split_statistics`). The loop splits the parameters into a trainable and a frozen
    part and differentiates only the trainable one. `averaged` is an average over the trainable
    part and the statistics (a teacher, an EMA) or {}.

    `dtype` is that of the computation. "bfloat16" keeps parameters, moments, statistics, logits and
    losses in fp32. "float32" has full-precision products on every device, which on TPUs and GPUs
    take several times as long as their default for fp32 (see `models.layers.network`).

    Attributes:
      dtype: see above; frozen parameters are kept in it.
      ema_decay: share of the old average that stays after a step; None keeps no average.
      vocab_size: how many token ids its text input knows; None where it takes no text.
    """

    dtype: str = "float32"
    ema_decay: float | None = None
    vocab_size: int | None = None

    def __init_subclass__(cls, **kwargs):
        """A field that a subclass names without a default must be given, also where it has the name
        of one of the attributes here, which dataclasses would take for its default."""
        super().__init_subclass__(**kwargs)
        for name in inspect.get_annotations(cls):
            if hasattr(Method, name) and name not in vars(cls):
                setattr(cls, name, dataclasses.field())

    def __post_init__(self):
        check_decay(self.ema_decay)

    def init_model(self, rng) -> Tree:
        """A fresh model from a key."""
        raise NotImplementedError

    def init(self, rng) -> tuple[Tree, Tree]:
        """(model, averaged) from a key; `averaged` covers the whole model here."""
        model = self.init_model(rng)
        return model, {} if self.ema_decay is None else jax.tree.map(jnp.copy, model)

    @functools.cached_property
    def _traced(self) -> tuple[tuple[Tree, Tree], axes.Declared]:
        return axes.traced(self.init, jax.random.key(0))

    @property
    def shapes(self) -> tuple[Tree, Tree]:
        """(model, averaged) of jax.ShapeDtypeStruct; traced once."""
        return self._traced[0]

    @property
    def splits(self) -> dict[str, placing.Split]:
        """What the model's modules declare for `placing.place`, see `models.layers.axes`."""
        return self.declared.splits

    @property
    def declared(self) -> axes.Declared:
        """What the model's modules declare about the axes of its parameters."""
        return self._traced[1]

    def loss(
        self, trainable: Tree, frozen: Tree, averaged: Tree, statistics: Tree, batch, *, rng, step
    ) -> tuple[Any, tuple[Tree, dict]]:
        """Scalar loss of the global batch, and (new statistics, dict of scalar metrics)."""
        raise NotImplementedError

    def check_spec(self, spec: dict) -> None:
        """Looks at what the views give, see `Views.spec`, when a run begins.

        Raises:
          ValueError: `loss` does not take it.
        """

    def check_batch(self, rows: dict) -> None:
        """Looks at a batch on its way to the devices, where nobody can: this process' rows, NumPy.

        Raises:
          ValueError: `loss` does not take them.
        """

    def after_update(self, old: Tree, new: Tree, averaged: Tree, step) -> tuple[Tree, Tree]:
        """The trainable part, where it has to be clamped, and the average, moved.

        `old` is the trainable part and the statistics before this step, `new` after it.
        """
        del old, step
        return new, averaged if self.ema_decay is None else ema(averaged, new, self.ema_decay)

    def model_images(self, batch, keys) -> dict[str, Any]:
        """{view kind: f32[B, V, S, S, 3]}: the augmented, normalised images that train the model.

        `keys` holds one random key per row.
        """
        return {}

    def dead_parameters(self) -> dict[str, tuple]:
        """{path: index}: parts `parameter[index]` that no loss can reach; they are left alone."""
        return {}

    def towers(self) -> dict[str, dict[str, Any]]:
        """{path of a tower's parameters: what it computes that these do not tell}, so that a run
        which starts from another model can compare."""
        return {}

    def predict_fns(self) -> dict[str, Callable]:
        """{name: fn(model, batch) -> outputs}: what evaluators may call."""
        return {}


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype that a method computes in.

    Raises:
      ValueError: it is none that models are computed in.
    """
    if name not in COMPUTE_DTYPES:
        raise ValueError(unknown("dtype", name, COMPUTE_DTYPES))
    return jnp.dtype(name)


def in_compute_dtype(params: Tree, dtype: str, names=("kernel",)) -> Tree:
    """`params` with what has one of these names in `dtype`; the others as they are.

    Modules cast their kernels anyway. Token tables ("embedding") are for those that are frozen: the
    gradient of a table adds up rows, which takes fp32.
    """
    flat = trees.flatten(params)
    cast = {path: x.astype(dtype) for path, x in flat.items() if path.split("/")[-1] in names}
    return trees.unflatten({**flat, **cast})
