"""The direction of an update from the gradients, and what is remembered for it: over optax.

None knows of learning rates, weight decay or frozen parameters: those are the rules' (see `rules`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import optax
from optax import contrib

from big_vlp import trees
from big_vlp.models.layers.axes import Axes, Declared
from big_vlp.run.optim.factored import is_factored, scale_by_factored

MOMENT_DTYPES = ("float32", "bfloat16")
# Of Adam's updates, about, so that its learning rates are Muon's (arXiv 2502.16982, section 2.2).
ADAMS_RMS = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """What all have in common.

    Attributes:
      first_moment_dtype: "float32", or "bfloat16" for half the memory of the mean of the gradients;
        second moments are always fp32, since bf16 loses what a step of 1 % adds to them.

    Raises:
      ValueError: another dtype.
    """

    first_moment_dtype: str = "float32"

    def __post_init__(self):
        if self.first_moment_dtype not in MOMENT_DTYPES:
            raise ValueError(
                f"first_moment_dtype={self.first_moment_dtype!r}; choose one of {MOMENT_DTYPES}."
            )

    def transformation(self, declared: Declared) -> optax.GradientTransformation:
        """Of trees of gradients to trees of directions, which the learning rate multiplies."""
        raise NotImplementedError

    def treats(self, path: str, shape: tuple[int, ...], declared: Declared) -> str:
        """What is particular about a parameter, for people; "" where all are treated alike."""
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Update):
    """Adam (arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101)."""

    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8

    def transformation(self, declared):
        return optax.scale_by_adam(
            self.beta1, self.beta2, self.epsilon, mu_dtype=self.first_moment_dtype
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Update):
    """The sign of a mean of the gradients (arXiv 2302.06675); no second moment. Every weight moves
    by the whole learning rate: a tenth to a third of AdamW's, and as many times its decay."""

    beta1: float = 0.9
    beta2: float = 0.99

    def transformation(self, declared):
        return optax.scale_by_lion(self.beta1, self.beta2, mu_dtype=self.first_moment_dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Update):
    """Adafactor (arXiv 1804.04235) in the form of arXiv 2106.04560, as big_vision has it: second
    moments of matrices by rows and columns alone, a mean of the updates, no clipping of single
    parameters and no steps relative to their size.

    Attributes:
      beta1: share of the old mean of updates that stays.
      beta2: the most of the old second moments that stays; before, 1 - t^-0.8 at step t = 1, 2, ...
    """

    beta1: float = 0.9
    beta2: float = 0.999

    def transformation(self, declared):
        return scale_by_factored(self.beta1, self.beta2, self.first_moment_dtype, declared.kernels)

    def treats(self, path, shape, declared):
        return "factored" if is_factored(path, shape, declared.kernels) else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Update):
    """Muon (Jordan, 2024): the mean of a matrix' gradients with all singular values near one, by
    five Newton-Schulz steps; Adam for what is no matrix.

    Matrices are the kernels of dense layers, but for a model's last (`models.layers.head.Head`):
    each layer of stacked blocks for itself, query, key and value too, heads together. Their updates
    are scaled to the size of Adam's, so that its learning rate and decay may stay
    (arXiv 2502.16982).

    Attributes:
      momentum: share of the old mean of a matrix' gradients that stays; the step looks ahead by it
        (Nesterov).
      beta1, beta2, epsilon: of Adam.
    """

    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8

    def transformation(self, declared):
        dims = {path: dimensions(axes) for path, axes in declared.kernels.items()}

        def of(tree):
            flat = trees.flatten(tree)
            return trees.unflatten({path: dims[path] for path in flat})

        matrices = optax.chain(
            contrib.scale_by_muon(
                beta=self.momentum,
                mu_dtype=self.first_moment_dtype,
                weight_dimension_numbers=of,
            ),
            _scale_to_adams(dims),
        )
        adam = optax.scale_by_adam(
            self.beta1, self.beta2, self.epsilon, mu_dtype=self.first_moment_dtype
        )
        return _apart(matrices, adam, declared.is_hidden)

    def treats(self, path, shape, declared):
        return "muon" if declared.is_hidden(path) else "adam"


UPDATES: dict[str, type[Update]] = {
    "adafactor": Adafactor,
    "adamw": AdamW,
    "lion": Lion,
    "muon": Muon,
}


def dimensions(axes: Axes) -> contrib.MuonDimensionNumbers:
    """A kernel's axes counted from the end, [..., inputs, parts, outputs]; the others, and the
    parts, number matrices."""
    outputs = tuple(range(-axes.outputs, 0))
    first = -sum(axes)
    return contrib.MuonDimensionNumbers(tuple(range(first, first + axes.inputs)), outputs)


def _scale_to_adams(dims: Mapping[str, contrib.MuonDimensionNumbers]):
    """Multiplies orthogonal matrices by 0.2 sqrt(max(inputs, outputs))."""

    def scaled(path, update):
        sizes = (math.prod(update.shape[i] for i in axes) for axes in dims[path])
        return update * (ADAMS_RMS * math.sqrt(max(sizes)))

    def update(updates, state, params=None):
        flat = trees.flatten(updates)
        return trees.unflatten({path: scaled(path, x) for path, x in flat.items()}), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _apart(
    matrices: optax.GradientTransformation,
    others: optax.GradientTransformation,
    is_matrix: Callable[[str], bool],
) -> optax.GradientTransformation:
    """One transformation for some paths of a tree, another for the others."""
    both = {"matrices": matrices, "others": others}

    def init(params):
        parts = trees.split(params, is_matrix)
        return {name: both[name].init(part) for name, part in zip(both, parts)}

    def update(updates, state, params=None):
        parts = zip(both, trees.split(updates, is_matrix))
        found = {name: both[name].update(part, state[name]) for name, part in parts}
        directions = trees.merge(*(direction for direction, _ in found.values()))
        return directions, {name: new for name, (_, new) in found.items()}

    return optax.GradientTransformation(init, update)
