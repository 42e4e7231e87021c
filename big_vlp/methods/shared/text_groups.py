"""Texts encoded in groups by length, so that short ones are not computed at the longest's.

Each device sorts its texts by length and encodes them in a few arrays of static shape: the shortest
share of them at the first group's length, the next at the second's, the rest whole. Which share
fits which length is a matter of the data, and a batch may have more long texts than its groups have
room for. Those are encoded again, whole, a few at a time, in a loop that makes no turn where there
are none: so results are right for any batch, and shares that do not fit the data only cost time.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.parallel import meshes

TURNS = 16  # of the loop, if it encoded all of a device's texts


def check(method) -> None:
    """Raises ValueError unless the texts of a method of two towers can be grouped as it says."""
    given, whole = method.text_groups, method.preprocess.context_length
    shares, lengths = [share for share, _ in given], [length for _, length in given]
    form = f"text_groups={tuple(map(tuple, given))}: give (share of the texts, length) of each"
    if min(shares, default=1) <= 0 or sum(shares) > 1 + 1e-9:
        raise ValueError(f"{form}, shares above 0 that add up to 1 at most.")
    if lengths != sorted({n for n in lengths if n in range(1, whole)}):
        raise ValueError(f"{form}, ascending whole lengths below the context length {whole}.")
    text = method.network.text
    if given and not (text.get("causal", True) and text.get("pool", "eot") == "eot"):
        raise ValueError(
            "text_groups needs a causal text tower with pool='eot': elsewhere features depend on "
            "the padding of a text. Leave it out."
        )


def lengths_of(tokens):
    """Positions up to the end of each text, which is its largest id: i32[..., T] -> i32[...]."""
    return tokens.argmax(axis=-1) + 1


def sizes(count: int, whole: int, groups) -> list[tuple[int, int]]:
    """(texts, length) of each group that gets some of `count` texts; the last one's is `whole`."""
    found = [(int(share * count + 1e-9), int(length)) for share, length in groups]
    found.append((count - sum(size for size, _ in found), whole))
    return [(size, length) for size, length in found if size]


def encode(fn, params, tokens, groups):
    """`fn(params, tokens)` for a batch split over its devices, texts in groups by length.

    Args:
      fn: (params, i32[N, T]) -> [N, D], of which no row depends on another, nor on what comes after
        the end of its text. It closes over nothing that is differentiated.
      params: a tree of float arrays; their gradients are those of `fn`, too.
      tokens: i32[N, T].
      groups: (share, length) of each; without any all texts stay whole.
    """
    if not groups:
        return fn(params, tokens)
    texts, parts, plan = _planned(tokens, groups)
    features = _encode(fn, parts, params, _take(texts, plan.order), plan)
    return meshes.keep_over_batch(features.reshape(len(tokens), -1))


def share_too_long(tokens, groups):
    """f32[]: how many of the texts i32[N, T] of a batch, encoded at once, were encoded again."""
    return _planned(tokens, groups)[2].too_long.mean()


class _Plan(NamedTuple):
    """How each device encodes its n texts; the loop takes m of them a turn.

    Attributes:
      order: i32[devices, n], the texts by length. What follows counts in that order.
      too_long: bool[devices, n], which are longer than their group.
      again: i32[devices, a multiple of m], the texts, those too long first.
      turns: i32[], as many as the device with the most of those needs.
      place: i32[devices, n], where each text, in the order of the batch, has its features among
        those of the groups and, after them, those of the loop.
    """

    order: jax.Array
    too_long: jax.Array
    again: jax.Array
    turns: jax.Array
    place: jax.Array


def _planned(tokens, groups):
    """The texts of each device i32[devices, n, T], (texts, length) of each group, and the plan."""
    mesh, devices = jax.sharding.get_abstract_mesh(), 1
    if not mesh.empty:
        devices = math.prod(mesh.shape[axis] for axis in meshes.BATCH_AXES)
    if len(tokens) % devices:
        devices = 1
    texts = meshes.keep_over_batch(tokens.reshape(devices, -1, tokens.shape[1]))
    parts = tuple(sizes(*texts.shape[1:], groups))
    return texts, parts, _plan(texts, parts)


def _plan(texts, parts) -> _Plan:
    lengths = lengths_of(texts)
    count, turn = lengths.shape[1], _turn(parts)
    order = jnp.argsort(lengths, axis=1)
    limits = np.repeat([length for _, length in parts], [size for size, _ in parts])
    too_long = _take(lengths, order) > limits
    again = jnp.pad(jnp.argsort(~too_long, axis=1), ((0, 0), (0, -count % turn)))
    turns = (too_long.sum(axis=1).max() + turn - 1) // turn
    place = jnp.where(too_long, count + jnp.cumsum(too_long, axis=1) - 1, jnp.arange(count))
    return _Plan(order, too_long, again, turns, _take(place, jnp.argsort(order, axis=1)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _encode(fn, parts, params, texts, plan):
    """Features [devices, n, D] in the order of the batch, of texts i32[devices, n, T] by length."""
    return _with_loop(fn, parts, params, texts, plan, _in_groups(fn, parts, texts, params))


def _forward(fn, parts, params, texts, plan):
    features, backward = jax.vjp(functools.partial(_in_groups, fn, parts, texts), params)
    features = _with_loop(fn, parts, params, texts, plan, features)
    return features, (backward, params, texts, plan)


def _backward(fn, parts, kept, gradient):
    backward, params, texts, plan = kept
    gradient = _take(gradient, plan.order)
    (found,) = backward(jnp.where(plan.too_long[..., None], 0, gradient))

    # A loop whose turns are not static has no gradient by itself. What it adds it adds to that of
    # the groups: without a turn it costs nothing.
    def more(i, found):
        rows = _rows_of_turn(parts, plan, i)
        left = plan.too_long.sum(axis=1, keepdims=True) - i * _turn(parts)
        is_too_long = jnp.arange(_turn(parts)) < left
        of_texts = jnp.where(is_too_long[..., None], _take(gradient, rows), 0)
        _, backward = jax.vjp(functools.partial(_of_rows, fn, _take(texts, rows)), params)
        return jax.tree.map(jnp.add, found, backward(of_texts)[0])

    return jax.lax.fori_loop(0, plan.turns, more, found), None, None


_encode.defvjp(_forward, _backward)


def _in_groups(fn, parts, texts, params):
    """Features [devices, n, D], those of texts longer than their group wrong."""
    edges = np.cumsum([size for size, _ in parts])[:-1]
    pieces = zip(jnp.split(texts, edges, axis=1), parts)
    features = [_of_rows(fn, piece[..., :length], params) for piece, (_, length) in pieces]
    return jnp.concatenate(features, axis=1)


def _with_loop(fn, parts, params, texts, plan, features):
    """The features, those of too long texts replaced, in the order of the batch."""

    def more(i, found):
        added = _of_rows(fn, _take(texts, _rows_of_turn(parts, plan, i)), params)
        return jax.lax.dynamic_update_slice_in_dim(found, added, i * _turn(parts), axis=1)

    found = jnp.zeros((*plan.again.shape, features.shape[-1]), features.dtype)
    found = jax.lax.fori_loop(0, plan.turns, more, meshes.keep_over_batch(found))
    return _take(jnp.concatenate([features, found], axis=1), plan.place)


def _of_rows(fn, texts, params):
    """`fn` of texts [devices, k, T] -> [devices, k, D]."""
    flat = meshes.keep_over_batch(texts.reshape(-1, texts.shape[-1]))
    return meshes.keep_over_batch(fn(params, flat).reshape(*texts.shape[:2], -1))


def _turn(parts) -> int:
    """How many of a device's texts the loop takes a turn."""
    return math.ceil(sum(size for size, _ in parts) / TURNS)


def _rows_of_turn(parts, plan, i):
    return jax.lax.dynamic_slice_in_dim(plan.again, i * _turn(parts), _turn(parts), axis=1)


def _take(x, rows):
    """Each device's rows: [devices, n, ...] and i32[devices, k] -> [devices, k, ...]."""
    return jax.vmap(lambda x, rows: x[rows])(x, rows)
