"""Second moments that are kept by rows and columns (Adafactor, arXiv 1804.04235, section 3)."""

import math
import re
from collections.abc import Mapping

import jax.numpy as jnp
import optax

from big_vlp import trees
from big_vlp.models.layers.axes import Axes

# Smaller matrices are kept whole, as in big_vision.
MIN_SIDE = 32
# Added to squares, so that what has no gradient stays where it is.
TINY = 1e-30
EXPONENT = 0.8


def is_factored(path: str, shape: tuple[int, ...], kernels: Mapping[str, Axes]) -> bool:
    """Whether a parameter is a matrix, or stacked ones, with sides of 32 at least."""
    axes = _axes(path, shape, kernels)
    return axes is not None and all(math.prod(shape[i] for i in side) >= MIN_SIDE for side in axes)


def scale_by_factored(
    beta1: float, beta2: float, moment_dtype: str, kernels: Mapping[str, Axes]
) -> optax.GradientTransformation:
    """Divides gradients by the root of their second moments, and takes a mean of the results.

    The second moments of a matrix are the product of their means over its rows and over its
    columns: [..., in, 1] and [..., 1, out], in the axes that the parameter has. Whose state is
    "whole" has all.

    Args:
      kernels: the axes of dense kernels; of other parameters, tables [N, W] are matrices.
    """

    def of(path, x, over: int):
        """The mean of squares over the rows or columns."""
        return jnp.mean(x, axis=_axes(path, x.shape, kernels)[over], keepdims=True)

    def init(params):
        second, whole = {}, {}
        for path, x in trees.flatten(params).items():
            if is_factored(path, x.shape, kernels):
                zeros = jnp.zeros_like(x)
                second[path] = {"rows": of(path, zeros, 1), "columns": of(path, zeros, 0)}
            else:
                whole[path] = jnp.zeros_like(x)
        mean = {path: jnp.zeros_like(x, moment_dtype) for path, x in trees.flatten(params).items()}
        return {
            "count": jnp.zeros([], jnp.int32),
            "mean": trees.unflatten(mean),
            "factors": trees.unflatten(second),
            "whole": trees.unflatten(whole),
        }

    def update(updates, state, params=None):
        count = optax.safe_increment(state["count"])
        decay = jnp.minimum(beta2, 1 - count.astype(jnp.float32) ** -EXPONENT)
        mean = trees.flatten(state["mean"])
        factors, whole = trees.flatten(state["factors"]), trees.flatten(state["whole"])

        def moved(old, new):
            return decay * old + (1 - decay) * new

        directions = {}
        for path, gradient in trees.flatten(updates).items():
            square = gradient**2 + TINY
            if path in whole:
                whole[path] = moved(whole[path], square)
                direction = gradient * jnp.reciprocal(jnp.sqrt(whole[path]))
            else:
                names = (f"{path}/rows", f"{path}/columns")
                rows, columns = (
                    moved(factors[name], of(path, square, over))
                    for name, over in zip(names, (1, 0))
                )
                factors |= dict(zip(names, (rows, columns)))
                # One after the other: the product of two tiny ones is none in fp32.
                direction = gradient / jnp.sqrt(rows / of(path, rows, 0)) / jnp.sqrt(columns)
            directions[path] = beta1 * mean[path].astype(jnp.float32) + (1 - beta1) * direction
            mean[path] = directions[path].astype(moment_dtype)
        state = {"count": count}
        for name, tree in (("mean", mean), ("factors", factors), ("whole", whole)):
            state[name] = trees.unflatten(tree)
        return trees.unflatten(directions), state

    return optax.GradientTransformation(init, update)


def _axes(path: str, shape, kernels: Mapping[str, Axes]):
    """(axes of the inputs, axes of the outputs) of a matrix; None of what is none."""
    if path in kernels:
        inputs, parts, outputs = kernels[path]
        first = len(shape) - inputs - parts - outputs
        return tuple(range(first, first + inputs)), tuple(range(len(shape) - outputs, len(shape)))
    is_table = len(shape) == 2 and not re.search(r"\bblocks/", path)
    return ((0,), (1,)) if is_table else None
