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
  gqaN, gqa_biasN  as qkv, with N heads of keys and of values; the path is a pair here: that of the
            queries [in, heads, head_dim] and that of keys and values [in, 2, N, head_dim]
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import trees

Rules = Sequence[tuple[str | tuple[str, str], str, str]]


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
    if kind.startswith("gqa"):
        kv_heads = int(kind.removeprefix("gqa").removeprefix("_bias"))
        rows = value.reshape(heads + 2 * kv_heads, -1, *value.shape[1:])  # [.., head_dim, (in)]
        query, key_value = rows[:heads], rows[heads:]
        key_value = key_value.reshape(2, kv_heads, *key_value.shape[1:])
        last = (lambda x: x) if value.ndim == 1 else (lambda x: np.moveaxis(x, -1, 0))
        return last(query), last(key_value)
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
    if kind.startswith("gqa"):
        is_bias = kind.startswith("gqa_bias")
        parts = [x.reshape(-1) if is_bias else x.reshape(x.shape[0], -1).T for x in value]
        return (jnp if isinstance(parts[0], jax.Array) else np).concatenate(parts)
    return value


def to_model(state: Mapping, rules: Rules, layers: int, heads: int) -> dict:
    """A state dict -> nested dict of numpy arrays, as the rules say.

    Tensors are read one at a time, and may be anything that np.asarray reads.
    """
    flat = {}
    for paths, key, kind in rules:
        stacked = "{i}" in key
        for i in range(layers if stacked else 1):
            parts = forward(kind, np.asarray(state[key.format(i=i)]), heads)
            for path, part in _pairs(paths, parts):
                if not stacked:
                    flat[path] = np.asarray(part, order="C")
                    continue
                if path not in flat:
                    flat[path] = np.empty((layers, *part.shape), part.dtype)
                flat[path][i] = part
    return trees.unflatten(flat)


def to_state(model: dict, rules: Rules, layers: int) -> dict:
    """The inverse of `to_model`; runs also under jax.eval_shape."""
    flat, state = trees.flatten(model), {}
    for paths, key, kind in rules:
        for i in range(layers if "{i}" in key else 1):
            parts = [flat[p][i] if "{i}" in key else flat[p] for p, _ in _pairs(paths, paths)]
            value = tuple(parts) if isinstance(paths, tuple) else parts[0]
            state[key.format(i=i)] = backward(kind, value)
    return state


def _pairs(paths, values):
    """[(path, value)] of a rule for one array or for several."""
    return list(zip(paths, values)) if isinstance(paths, tuple) else [(paths, values)]


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
