"""What converters share: rules from keys of a state dict to paths of a model, both ways.

A rule is (path here, key there, kind). Blocks are stacked here on a leading axis: the key of such a
parameter has `{i}` in the place of the block's number. Several keys of one path are its parts, one
after the other on their first axis. Kinds:

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
  headsN, heads_biasN  [N * heads * head_dim, in] <-> N paths, each [in, heads, head_dim]
  stackN    several keys there, stacked here on axis N
  patches   of square patches of three channels, [out, h * w * 3] <-> [h, w, 3, out]

Large models are converted lazily: a parameter is a `Tensor`, which np.asarray reads or makes, and
only what is being written is in memory.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import trees
from input_pipeline.checks.errors import BigVlpError

Names = str | tuple[str, ...]
Rules = Sequence[tuple[Names, Names, str]]


class ConversionError(BigVlpError, ValueError):
    """Weights that do not fit; the message names every key that is missing, unexpected or wrong."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array that is read, or made, when np.asarray asks for it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype=None, copy=None):
        value = self.read()
        return value if dtype is None else value.astype(dtype)


# A state dict; np.asarray reads a tensor.
State = Mapping[str, Tensor | np.ndarray]


def norm(path: str, key: str) -> Rules:
    """The rules of a norm's two parameters."""
    return ((f"{path}/scale", f"{key}.weight", "same"), (f"{path}/bias", f"{key}.bias", "same"))


def dense(path: str, key: str, kind: str = "linear") -> Rules:
    """The rules of a layer's kernel, of a `kind`, and bias."""
    return ((f"{path}/kernel", f"{key}.weight", kind), (f"{path}/bias", f"{key}.bias", "same"))


def prefixed(rules: Rules, path: str = "", key: str = "") -> Rules:
    """The rules with these words in front of every path and every key."""

    def put(before, names):
        return before + names if isinstance(names, str) else tuple(before + x for x in names)

    return tuple((put(path, paths), put(key, keys), kind) for paths, keys, kind in rules)


def forward(kind: str, value, heads: int = 1):
    """An array of the state dict, or a list of several keys' -> ours, or a tuple of them."""
    if isinstance(value, list):
        if kind.startswith("stack"):
            return np.stack(value, int(kind[5:]))
        value = np.concatenate(value)
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
    if kind.startswith("heads"):
        count = int(kind.removeprefix("heads").removeprefix("_bias"))
        parts = value.reshape(count, heads, -1, *value.shape[1:])  # [N, heads, head_dim, (in)]
        parts = parts if value.ndim == 1 else np.moveaxis(parts, -1, 1)
        return tuple(parts) if count > 1 else parts[0]
    if kind == "patches":
        side = math.isqrt(value.shape[1] // 3)
        return value.T.reshape(side, side, 3, -1)
    return value


def backward(kind: str, value, keys: int = 1):
    """The inverse of `forward`; of several `keys` a list."""
    if kind.startswith("stack"):
        axis = int(kind[5:])
        return [value.take(i, axis) for i in range(keys)]
    if keys > 1:
        whole = backward(kind, value)
        rows = whole.shape[0] // keys
        return [whole[i * rows : (i + 1) * rows] for i in range(keys)]
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
    if kind.startswith("heads"):
        parts = value if isinstance(value, list) else [value]
        flat = -1 if kind.startswith("heads_bias") else (parts[0].shape[0], -1)
        parts = [x.reshape(flat).T for x in parts]
        return (jnp if isinstance(parts[0], jax.Array) else np).concatenate(parts)
    if kind == "patches":
        return value.reshape(-1, value.shape[-1]).T
    return value


def to_model(state: Mapping, rules: Rules, layers: int, heads: int) -> dict:
    """A state dict -> nested dict of numpy arrays, as the rules say.

    Raises:
      ConversionError: blocks have different types, which a stack cannot keep.
    """
    return jax.tree.map(np.asarray, to_lazy_model(state, rules, layers, heads))


def to_lazy_model(state: Mapping, rules: Rules, layers: int, heads: int) -> dict:
    """As `to_model`, a nested dict of `Tensor`s; `state` may be of these, too."""
    flat = {}
    for paths, keys, kind in rules:
        keys = as_tuple(keys)
        stacked = "{i}" in keys[0]
        values = [[state[key.format(i=i)] for key in keys] for i in range(layers if stacked else 1)]
        types = sorted({str(value.dtype) for block in values for value in block})
        if len(types) > 1:
            raise ConversionError(f"{keys[0]} has several types, {types}: give all blocks one.")
        for path, _ in _pairs(paths, paths):

            def part(arrays, path=path, paths=paths, kind=kind):
                arrays = [np.asarray(array) for array in arrays]
                arrays = arrays if len(arrays) > 1 else arrays[0]
                return dict(_pairs(paths, forward(kind, arrays, heads)))[path]

            like = part([_without_memory(value) for value in values[0]])
            shape = (layers, *like.shape) if stacked else like.shape
            flat[path] = Tensor(shape, like.dtype, functools.partial(_read, values, part, stacked))
    return trees.unflatten(flat)


def _read(values: Sequence, part: Callable, stacked: bool) -> np.ndarray:
    """part(value) of one value, or of all in a stack; holds one value at a time."""
    if not stacked:
        return np.asarray(part(values[0]), order="C")
    stack = None
    for i, value in enumerate(values):
        value = part(value)
        if stack is None:
            stack = np.empty((len(values), *value.shape), value.dtype)
        stack[i] = value
    return stack


def _without_memory(value) -> np.ndarray:
    """Zeros of a shape and dtype, of which rules make the shape of their result."""
    return np.broadcast_to(np.zeros((), value.dtype), value.shape)


def to_state(model: dict, rules: Rules, layers: int) -> dict:
    """The inverse of `to_model`; runs also under jax.eval_shape."""
    flat, state = trees.flatten(model), {}
    for paths, keys, kind in rules:
        stacked = "{i}" in as_tuple(keys)[0]
        for i in range(layers) if stacked else (None,):
            arrays = _unstack(lambda names: [flat[path] for path in names], paths, keys, kind, i)
            state |= {key.format(i=i): array for key, array in zip(as_tuple(keys), arrays)}
    return state


def parts_to_state(model: dict, parts: Sequence) -> dict:
    """`to_state` of several parts (rules, layers, heads), each of other parameters."""
    state = {}
    for rules, layers, _ in parts:
        state |= to_state(model, rules, layers)
    return state


def to_lazy_state(model: dict, rules: Rules, layers: int) -> dict[str, Tensor]:
    """As `to_state`, of a nested dict of arrays or `Tensor`s.

    The parameters behind the tensor that was read last stay in memory, so read them in order.
    """
    flat, state = trees.flatten(model), {}
    latest = _Latest(lambda paths: [np.asarray(flat[path]) for path in paths])
    without_memory = lambda paths: [_without_memory(flat[path]) for path in paths]  # noqa: E731
    for paths, keys, kind in rules:
        indices = range(layers) if "{i}" in as_tuple(keys)[0] else (None,)
        likes = _unstack(without_memory, paths, keys, kind, indices[0])
        for i in indices:
            for number, (key, like) in enumerate(zip(as_tuple(keys), likes)):
                read = functools.partial(_one_of, number, latest, paths, keys, kind, i)
                state[key.format(i=i)] = Tensor(like.shape, like.dtype, read)
    return state


def _one_of(number: int, *args):
    return _unstack(*args)[number]


def _unstack(load: Callable, paths: Names, keys: Names, kind: str, i: int | None) -> list:
    """The tensors of a rule's keys, from block i of its parameters, or from all of them."""
    parts = [value if i is None else value[i] for value in load(as_tuple(paths))]
    count = len(as_tuple(keys))
    found = backward(kind, parts if len(parts) > 1 else parts[0], count)
    return found if count > 1 else [found]


def as_tuple(names: Names) -> tuple[str, ...]:
    """Names of a rule, also where it has one."""
    return (names,) if isinstance(names, str) else names


class _Latest:
    """A function that remembers one result, and forgets it before it makes the next."""

    def __init__(self, function: Callable):
        self._function, self._key, self._value = function, None, None

    def __call__(self, key):
        if key != self._key:
            self._key = self._value = None
            self._value = self._function(key)
            self._key = key
        return self._value


def _pairs(paths, values):
    """[(path, value)] of a rule for one array or for several."""
    return list(zip(paths, values)) if isinstance(paths, tuple) else [(paths, values)]


def check(expected: Mapping, state: Mapping) -> None:
    """Raises ConversionError unless two state dicts have the same keys and shapes."""
    lines = trees.differences(expected, state)
    if lines:
        raise ConversionError("The weights do not fit:\n  " + listed(lines))


def listed(lines: Sequence[str], most: int = 40) -> str:
    """Lines for an error, not all of hundreds: those of other weights altogether."""
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n  ".join([*lines[:most], *more])


def count_layers(state: Mapping, prefix: str) -> int:
    """How many blocks PREFIX.0, PREFIX.1, ... there are."""
    start = f"{prefix}."
    return len({key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)})
