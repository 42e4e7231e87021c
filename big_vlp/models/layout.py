"""What follows from where images lie in a sequence: positions, experts, spans (CogVLM).

Every token has a type. An image takes N + 2 consecutive VISION slots: begin of image (boi), its N
patches, end of image (eoi). Padding may stand before or behind the rest of a row.
"""

import jax
import jax.numpy as jnp

from input_pipeline.text.token_types import LANGUAGE, PADDING, VISION


def token_types(token_type_ids, attention_mask=None):
    """Types i32[B, T] from what Hugging Face's processors give.

    Args:
      token_type_ids: i32[B, T], 0 language and 1 vision; 0 also in padding.
      attention_mask: [B, T], false or 0 in padding; None: there is none.
    """
    if attention_mask is None:
        return jnp.asarray(token_type_ids, jnp.int32)
    return jnp.where(jnp.asarray(attention_mask, bool), token_type_ids, PADDING).astype(jnp.int32)


def expert_mask(types):
    """bool[B, T]: which tokens the vision expert handles: vision slots before another one.

    So boi and all patches, but not eoi (arXiv 2311.03079 does not say so; its released code does).
    """
    vision = types == VISION
    return vision & _following(vision, False)


def position_ids(types):
    """i32[B, T]: ids count up at each language token, boi, first patch and eoi.

    All patches of an image share an id. So do padding and the token before it; behind padding on
    the left the first token's id is 1. As in the released code, boi and eoi are known by a
    language token (or an end of the row) beside them: two images need a token between them.
    """
    vision, language = types == VISION, types == LANGUAGE
    at_border = _preceding(language, True) | _following(language, True)
    language = language | (vision & at_border)  # boi and eoi
    patch = vision & ~language
    first_patch = patch & _preceding(language, False)
    steps = (language | first_patch).at[:, 0].set(False)
    return jnp.cumsum(steps, axis=1, dtype=jnp.int32)


def image_index(types):
    """i32[B, T]: which of its row's vision slots a slot is, from 0; meaningless elsewhere."""
    return jnp.cumsum(types == VISION, axis=1, dtype=jnp.int32) - 1


def image_spans(types):
    """i32[B, T]: the number, from 1, of the image whose boi or patch a token is; 0 elsewhere.

    As `spans` of attention they make the ablation "full visual mask" of arXiv 2311.03079.
    """
    inside = expert_mask(types)
    starts = inside & ~_preceding(inside, False)
    return jnp.where(inside, jnp.cumsum(starts, axis=1, dtype=jnp.int32), 0)


def is_static(types, slots: int):
    """bool: whether all rows are one token, `slots` image slots, then text or padding.

    Args:
      types: i32[B, T].
      slots: N + 2.
    """
    index = jnp.arange(types.shape[1])
    image = (index >= 1) & (index <= slots)
    fits = ((types == VISION) == image).all() & (types[:, 0] == LANGUAGE).all()
    return fits & (types.shape[1] > slots)


def pad_right(types, *rows):
    """Moves padding from the left of each row to its right.

    Args:
      types: i32[B, T], padding on one side.
      rows: arrays [B, T, ...] that go with it, such as tokens and position ids.

    Returns:
      (lengths i32[B], types, *rows).
    """
    padding = types == PADDING
    order = jnp.argsort(padding, axis=1, stable=True)
    take = jax.vmap(lambda row, order: row[order])
    lengths = types.shape[1] - padding.sum(axis=1, dtype=jnp.int32)
    return lengths, *(take(jnp.asarray(row), order) for row in (types, *rows))


def _preceding(flags, first: bool):
    """Each position's left neighbour, `first` at the start."""
    return jnp.pad(flags[:, :-1], ((0, 0), (1, 0)), constant_values=first)


def _following(flags, last: bool):
    """Each position's right neighbour, `last` at the end."""
    return jnp.pad(flags[:, 1:], ((0, 0), (0, 1)), constant_values=last)
