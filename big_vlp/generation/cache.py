"""Prompts and the cache of a generation: what `sampling` and `beams` share.

The cache has two parts, each of its final length from the start. That of the prompts is written
once and then only read; that of what is written behind them takes one more position of every row
with each step.
"""

from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import trees
from big_vlp.models import layout as layouts
from big_vlp.models.cogvlm import CogVLM, needed_layout
from big_vlp.models.layout import LANGUAGE, PADDING, pad_right, position_ids


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


def settings_for(
    model: CogVLM, types, layout: str, max_new_tokens: int, eos_id: int, pad_id: int
) -> Settings:
    """For prompts of these types. Where nobody can look how much room they need, they get what
    "any" makes.

    Raises:
      ValueError: an unknown layout.
    """
    layout = needed_layout(model, layout)
    if layout == "general" and not _can_look(types):
        layout = "any"
    return Settings(hashable(model), layout, max_new_tokens, eos_id, pad_id)


def hashable(model: CogVLM) -> CogVLM:
    """The same model, fit for `Settings`: a module that was given plain dicts has no hash."""
    return model.clone(
        image=None if model.image is None else flax.core.freeze(dict(model.image)),
        text=flax.core.freeze(dict(model.text)),
        expert_parts=tuple(model.expert_parts),
    )


def make_prompts(tokens, types, features, layout: str, multiple: int) -> Prompts:
    """Checks rows, moves padding to the right and adds some: as much as the general layout takes,
    and up to a multiple.

    Args:
      layout: of `settings_for`.
      others: as of `generation.sampling.generate`.

    Raises:
      ValueError: the rows are not what the layout or the features need.
    """
    length = jnp.shape(types)[1]
    if _can_look(types):
        images, slots = (0, 0) if features is None else features.shape[1:3]
        _check(np.asarray(types), images, slots, layout)
        if layout == "general":
            length = max(length, layouts.room(types, images, slots))
    lengths, types, tokens = pad_right(jnp.asarray(types), tokens)
    length += -length % multiple
    more = ((0, 0), (0, length - types.shape[1]))
    types = jnp.pad(types, more, constant_values=PADDING)
    # The end of an image that closes a prompt is known by the token behind it, which is to come.
    positions = position_ids(jnp.where(types == PADDING, LANGUAGE, types))
    return Prompts(jnp.pad(tokens, more), types, positions, lengths)


def prefill(settings: Settings, params, prompts: Prompts, features):
    """Reads the prompts.

    Returns:
      (logits f32[B, V], position ids i32[B]) of each row's first new token, and the prompts' cache.
    """
    tokens, types, positions, lengths = prompts
    logits, cache = settings.model.apply(
        trees.variables(params),
        *(tokens, types, lengths, features, settings.layout, positions),
        method="prefill",
    )
    last = jnp.take_along_axis(positions, lengths[:, None] - 1, axis=1)[:, 0]
    return logits, last + 1, cache


def empty_cache(settings: Settings, params, rows: int):
    """A cache for what is written in so many rows: all but the last token, which nobody reads."""
    length = max(settings.max_new_tokens - 1, 1)
    return settings.model.apply(trees.variables(params), rows, length, method="empty_cache")


def decode(settings: Settings, params, prompts, written, token, position, lengths, step):
    """(logits f32[B, V], `written`) behind one more token of each row, see `Llama.decode`."""
    args = prompts, written, token, position, lengths, step
    return settings.model.apply(trees.variables(params), *args, method="decode")


def _can_look(types) -> bool:
    """Not at traced arrays, nor at those of other hosts."""
    return not isinstance(types, jax.core.Tracer) and getattr(types, "is_fully_addressable", True)


def _check(types: np.ndarray, images: int, slots: int, layout: str) -> None:
    real = types != PADDING
    if not real.any(axis=1).all():
        raise ValueError(f"Row {int(real.any(axis=1).argmin())} is empty: a prompt needs a token.")
    if (layouts.runs(real) > 1).any():
        raise ValueError("Padding must stand on one side of each row.")
    # These rows are made as long as the general layout takes.
    layouts.check("any" if layout == "general" else layout, types, images, slots)
