"""Prompts and the cache of a generation: what `sampling` and `beams` share."""

import math
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from big_vlp import trees
from big_vlp.models.cogvlm import CogVLM
from big_vlp.models.layout import LANGUAGE, PADDING, VISION, is_static, pad_right, position_ids
from big_vlp.models.llama import extend_cache
from big_vlp.parallel.meshes import BATCH_AXES


class Settings(NamedTuple):
    """What a program is compiled for, beside shapes."""

    model: CogVLM
    layout: str
    max_new_tokens: int
    eos_id: int
    pad_id: int


class Prompts(NamedTuple):
    """Rows padded on the right: tokens, types and positions i32[B, T], lengths i32[B]."""

    tokens: jax.Array
    types: jax.Array
    positions: jax.Array
    lengths: jax.Array


def hashable(model: CogVLM) -> CogVLM:
    """The same model, fit for `Settings`: a module that was given plain dicts has no hash."""
    return model.clone(
        image=None if model.image is None else flax.core.freeze(dict(model.image)),
        text=flax.core.freeze(dict(model.text)),
        expert_parts=tuple(model.expert_parts),
    )


def make_prompts(tokens, types, features, layout: str, multiple: int) -> Prompts:
    """Checks rows, moves padding to the right and adds some up to a multiple.

    Args:
      as of `generation.sampling.generate`.

    Raises:
      ValueError: the rows are not what the layout or the features need.
    """
    # Neither traced arrays nor those of other hosts can be looked at.
    if not isinstance(types, jax.core.Tracer) and getattr(types, "is_fully_addressable", True):
        _check(np.asarray(types), features, layout)
    lengths, types, tokens = pad_right(jnp.asarray(types), tokens)
    more = ((0, 0), (0, -types.shape[1] % multiple))
    types = jnp.pad(types, more, constant_values=PADDING)
    # The end of an image that closes a prompt is known by the token behind it, which is to come.
    positions = position_ids(jnp.where(types == PADDING, LANGUAGE, types))
    return Prompts(jnp.pad(tokens, more), types, positions, lengths)


def prefill(settings: Settings, params, prompts: Prompts, features):
    """Reads the prompts.

    Returns:
      (logits f32[B, V], position ids i32[B]) of each row's first new token, and the cache with room
      for all new tokens but the last, which nobody reads.
    """
    tokens, types, positions, lengths = prompts
    logits, cache = settings.model.apply(
        trees.variables(params),
        *(tokens, types, lengths, features, settings.layout, positions),
        method="prefill",
    )
    cache = extend_cache(cache, tokens.shape[1] + settings.max_new_tokens - 1)
    last = jnp.take_along_axis(positions, lengths[:, None] - 1, axis=1)[:, 0]
    return logits, last + 1, split_cache(cache)


def decode(settings: Settings, params, cache, token, position, filled):
    """(logits f32[B, V], cache) behind one more token of each row, see `CogVLM.decode`."""
    logits, cache = settings.model.apply(
        trees.variables(params), cache, token, position, filled, method="decode"
    )
    return logits, split_cache(cache)


def split_cache(cache):
    """Has the compiler split a cache [L, B, S, K, D] over the ambient mesh, if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return cache
    _, batch, _, heads, _ = cache["key"].shape
    rows = BATCH_AXES if batch % math.prod(mesh.shape[a] for a in BATCH_AXES) == 0 else None
    spec = PartitionSpec(None, rows, None, "tensor" if heads % mesh.shape["tensor"] == 0 else None)
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, spec), cache)


def _check(types: np.ndarray, features, layout: str) -> None:
    real, vision = types != PADDING, types == VISION
    if not real.any(axis=1).all():
        raise ValueError(f"Row {int(real.any(axis=1).argmin())} is empty: a prompt needs a token.")
    if (_runs(real) > 1).any():
        raise ValueError("Padding must stand on one side of each row.")
    if features is None:
        if vision.any():
            raise ValueError("The rows have slots for images, but there are no image features.")
        return
    count, slots = features.shape[1:3]
    images = _runs(vision)
    if (images * slots != vision.sum(axis=1)).any() or images.max() > count:
        raise ValueError(
            f"An image takes {slots} slots in a row, with a token between it and the next one, and "
            f"there are {count} images a row; but the rows have {vision.sum(axis=1).tolist()} "
            f"slots in {images.tolist()} runs."
        )
    if layout == "static" and not is_static(jnp.asarray(types), slots):
        raise ValueError(
            "The rows are not one token, one image, then text and padding: use layout='general'."
        )


def _runs(flags: np.ndarray) -> np.ndarray:
    """How many runs of True each row of bool[B, T] has."""
    before = np.pad(flags[:, :-1], ((0, 0), (1, 0)))
    return (flags & ~before).sum(axis=1)
