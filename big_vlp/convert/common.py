"""What converters share: rules from keys of a PyTorch state dict to paths of a model, both ways.

A rule is (path here, key there, kind). Blocks are stacked here on a leading axis: the key of such a
parameter has `{i}` in the place of the block's number. Kinds:

  same      as it is
  linear    [out, in] <-> [in, out]
  conv      [out, in, h, w] <-> [h, w, in, out]
  conv_t    of a transposed convolution, [in, out, h, w] <-> [h, w, in, out], turned by 180 degrees
  qkv       [3 * heads * head_dim, in] <-> [in, 3, heads, head_dim]
  qkv_bias  [3 * heads * head_dim] <-> [3, heads, head_dim]
  out       [out, heads * head_dim] <-> [heads, head_dim, out]
  rowN      N leading axes of size 1 there, none here
"""

from collections.abc import Mapping, Sequence

import numpy as np

from big_vlp import trees

Rules = Sequence[tuple[str, str, str]]


class ConversionError(ValueError):
    """Weights that do not fit; the message names every key that is missing, unexpected or wrong."""


def forward(kind: str, value, heads: int = 1):
    """An array of the state dict -> ours."""
    if kind.startswith("row"):
        return value.reshape(value.shape[int(kind[3:]) :])
    if kind == "linear":
        return value.T
    if kind == "conv":
        return value.transpose(2, 3, 1, 0)
    if kind == "conv_t":
        return value.transpose(2, 3, 0, 1)[::-1, ::-1]
    if kind == "qkv":
        return value.T.reshape(value.shape[1], 3, heads, -1)
    if kind == "qkv_bias":
        return value.reshape(3, heads, -1)
    if kind == "out":
        return value.T.reshape(heads, -1, value.shape[0])
    return value


def backward(kind: str, value):
    """The inverse of `forward`."""
    if kind.startswith("row"):
        return value.reshape((1,) * int(kind[3:]) + value.shape)
    if kind == "linear":
        return value.T
    if kind == "conv":
        return value.transpose(3, 2, 0, 1)
    if kind == "conv_t":
        return value[::-1, ::-1].transpose(2, 3, 0, 1)
    if kind == "qkv":
        return value.reshape(value.shape[0], -1).T
    if kind == "qkv_bias":
        return value.reshape(-1)
    if kind == "out":
        return value.reshape(-1, value.shape[-1]).T
    return value


def to_model(state: Mapping, rules: Rules, layers: int, heads: int) -> dict:
    """A state dict -> nested dict of numpy arrays, as the rules say."""
    flat = {}
    for path, key, kind in rules:
        if "{i}" in key:
            parts = [forward(kind, state[key.format(i=i)], heads) for i in range(layers)]
            flat[path] = np.stack(parts)
        else:
            flat[path] = np.asarray(forward(kind, state[key], heads), order="C")
    return trees.unflatten(flat)


def to_state(model: dict, rules: Rules, layers: int) -> dict:
    """The inverse of `to_model`; runs also under jax.eval_shape."""
    flat, state = trees.flatten(model), {}
    for path, key, kind in rules:
        if "{i}" in key:
            for i in range(layers):
                state[key.format(i=i)] = backward(kind, flat[path][i])
        else:
            state[key] = backward(kind, flat[path])
    return state


def check(expected: Mapping, state: Mapping) -> None:
    """Raises ConversionError unless two state dicts have the same keys and shapes."""
    # Keys contain dots, never slashes: the dicts are flat trees.
    lines = trees.differences(expected, state)
    if lines:
        raise ConversionError("The weights do not fit:\n  " + "\n  ".join(lines))


def count_layers(state: Mapping, prefix: str) -> int:
    """How many blocks PREFIX.0, PREFIX.1, ... there are."""
    start = f"{prefix}."
    return len({key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)})
