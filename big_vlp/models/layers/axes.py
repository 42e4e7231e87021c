"""What modules declare about the axes of their parameters, beside where they make them.

Two attributes of a module's class:

    tensor_axes = outputs("qkv", -2) | inputs("out", -3)
    fused_layers = ("qkv",)

`tensor_axes` says which axis of a parameter the mesh axis "tensor" splits, by the parameter's path
below the module. `fused_layers` names dense layers whose first axis of outputs holds parts, each
with factors of its own where LoRA adds some: query, key and value.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from big_vlp.models.layers.head import Head
from big_vlp.parallel.placing import Split


class Axes(NamedTuple):
    """How many axes of a dense layer's kernel are what, in this order."""

    inputs: int = 1
    parts: int = 0
    outputs: int = 1


@dataclasses.dataclass(frozen=True)
class Declared:
    """What the modules of a model declare, by the parameters' paths in the model.

    Attributes:
      splits: for `parallel.placing.place`.
      kernels: of all dense layers.
      heads: paths of those whose layer is a `head.Head`, the last of a model.
    """

    splits: dict[str, Split] = dataclasses.field(default_factory=dict)
    kernels: dict[str, Axes] = dataclasses.field(default_factory=dict)
    heads: set[str] = dataclasses.field(default_factory=set)

    def is_hidden(self, path: str) -> bool:
        """Whether a parameter is the kernel of a dense layer with others behind it."""
        return path in self.kernels and path not in self.heads


def outputs(layer: str, axis: int = -1, must: bool = True) -> dict[str, Split]:
    """`tensor_axes` of a layer that is split by an axis of its outputs, which a bias has, too."""
    return {f"{layer}/{name}": Split(axis, must) for name in ("kernel", "bias")}


def inputs(layer: str, axis: int = -2) -> dict[str, Split]:
    """`tensor_axes` of a layer that is split by an axis of its inputs, at one sum over devices."""
    return {f"{layer}/kernel": Split(axis)}


_BELOW: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("below", default=())
_OPEN: contextvars.ContextVar[tuple[Declared, ...]] = contextvars.ContextVar("open", default=())


@contextlib.contextmanager
def below(path: tuple[str, ...]):
    """A context in which modules that run apart from their parent are found below a path of it."""
    token = _BELOW.set((*_BELOW.get(), *path))
    try:
        yield
    finally:
        _BELOW.reset(token)


@contextlib.contextmanager
def recording():
    """A context that gives a `Declared`, filled by the modules that run in it."""
    found = Declared()

    def intercept(call, args, kwargs, context):
        module = context.module
        if module.scope is not None and module.is_initializing():
            _record(module, found)
        return call(*args, **kwargs)

    token = _OPEN.set((*_OPEN.get(), found))
    try:
        with nn.intercept_methods(intercept):
            yield found
    finally:
        _OPEN.reset(token)


def traced(init: Callable, *args) -> tuple:
    """(what `init(*args)` returns, as jax.ShapeDtypeStruct; what its modules declare)."""
    with recording() as found:
        # A function of its own: of one that jax has traced before, no module would run.
        shapes = jax.eval_shape(lambda *args: init(*args), *args)
    return shapes, found


def declare(splits: Mapping[str, Split]) -> None:
    """Declares parameters that are made outside of modules, by their paths in the model."""
    for found in _OPEN.get():
        found.splits.update(splits)


def _record(module: nn.Module, found: Declared) -> None:
    path = "/".join((*_BELOW.get(), *module.path, ""))
    for name, split in getattr(type(module), "tensor_axes", {}).items():
        found.splits[path + name] = split
    if isinstance(module, nn.Dense | nn.DenseGeneral):
        parts = int(module.name in getattr(type(module.parent), "fused_layers", ()))
        outputs = np.size(module.features) - parts
        found.kernels[f"{path}kernel"] = Axes(inputs_of(module), parts, outputs)
        if isinstance(module, Head):
            found.heads.add(f"{path}kernel")


def inputs_of(layer: nn.Dense | nn.DenseGeneral) -> int:
    """How many axes of its inputs a dense layer sums over."""
    return np.size(layer.axis) if isinstance(layer, nn.DenseGeneral) else 1
