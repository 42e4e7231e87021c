"""FLOPs of the products that a program computes, counted before it is compiled."""

import math

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(fn, *args) -> float:
    """FLOPs of all matrix products and convolutions of `fn(*args)`, on all devices together.

    What stands in a loop counts as often as it runs; a loop of unknown length counts once, and of
    the branches of a condition the costliest. Custom calls are not seen.

    Args:
      args: arrays or jax.ShapeDtypeStruct.
    """
    return _of_program(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_program(jaxpr: Jaxpr) -> float:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inner = [_of_program(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    return sum(inner) * _times(name, params)


def _of_convolution(equation) -> float:
    """Products with the zeros that a dilation puts between pixels do not count."""
    params = equation.params
    numbers = params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    flops = 2 * equation.outvars[0].aval.size * per_output
    return flops / math.prod(params["lhs_dilation"])


def _times(name: str, params) -> int:
    """How often an equation runs the programs in it."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # written for one device
        return params["mesh"].size
    if name == "pallas_call":  # for one block
        return math.prod(params["grid_mapping"].grid)
    return 1


def _jaxprs(value):
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _jaxprs(item)
