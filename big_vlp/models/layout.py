"""What follows from where images lie in a sequence: positions, experts, spans (CogVLM).

Every token has a type. An image takes N + 2 consecutive VISION slots: begin of image (boi), its N
patches, end of image (eoi). Padding may stand before or behind the rest of a row.

Several examples may share a row, packed: `segments` i32[B, T] then number them from 1, with 0 in
padding, and each begins with a language token.

Rows have a layout, which says what a model may rely on:

* "static": one token, the slots of one image, then text or padding, in every row.
* "general": images anywhere, in each row as many as it has; but rows have room: what the vision
  experts would take of all images that a batch holds for a row, `vision_places`, and the text of
  the longest fit into a row beside each other. Rows with that many images always have room, and so
  have rows of `1 + images * slots + context` tokens with up to `context` of text.
* "any": the same without the promise.
"""

import jax
import jax.numpy as jnp
import numpy as np

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


def position_ids(types, segments=None):
    """i32[B, T]: ids count up at each language token, boi, first patch and eoi; from 0 again in
    each of a row's segments.

    All patches of an image share an id. So do padding and the token before it; without segments,
    behind padding on the left, the first token's id is 1. As in the released code, boi and eoi are
    known by a language token (or an end of the row) beside them: two images need a token between
    them.
    """
    vision, language = types == VISION, types == LANGUAGE
    at_border = _preceding(language, True) | _following(language, True)
    language = language | (vision & at_border)  # boi and eoi
    patch = vision & ~language
    first_patch = patch & _preceding(language, False)
    steps = (language | first_patch).at[:, 0].set(False)
    ids = jnp.cumsum(steps, axis=1, dtype=jnp.int32)
    if segments is None:
        return ids
    return ids - jax.lax.cummax(jnp.where(starts(segments), ids, 0), axis=1)


def starts(segments):
    """bool[B, T]: the first position of each of a row's segments."""
    return (segments != _preceding(segments, 0)).at[:, 0].set(True)


def slot_order(types):
    """i32[B, T]: the positions of each row, those of its vision slots in front."""
    return jnp.argsort(types != VISION, axis=1, stable=True).astype(jnp.int32)


def image_spans(types):
    """i32[B, T]: the number, from 1, of the image whose boi or patch a token is; 0 elsewhere.

    As `spans` of attention they make the ablation "full visual mask" of arXiv 2311.03079.
    """
    inside, first = expert_mask(types), image_starts(types)
    return jnp.where(inside, jnp.cumsum(first, axis=1, dtype=jnp.int32), 0)


def image_starts(types):
    """bool[B, T]: the begin of each image."""
    vision = types == VISION
    return vision & ~_preceding(vision, False)


def vision_places(length: int, images: int, slots: int) -> int:
    """How many tokens of a row the vision experts take at most: boi and patches of so many images,
    or of those that the row is long enough for."""
    return min(images, length // slots) * (slots - 1)


def stream_order(types, vision: int):
    """What text and vision experts take of rows of the general layout.

    Args:
      types: i32[B, T].
      vision: `vision_places`.

    Returns:
      (order i32[B, T], fits bool[B]): the first T - `vision` positions in `order` are for the
      language experts, the others for the vision experts, and padding fills up both. Where a row
      does not fit, some of its tokens are in the wrong part.
    """
    experts, padding = expert_mask(types), types == PADDING
    order = jnp.argsort(jnp.where(experts, 2, padding), axis=1, stable=True)
    text = types.shape[1] - vision
    fits = (experts.sum(axis=1) <= vision) & ((~experts & ~padding).sum(axis=1) <= text)
    return order.astype(jnp.int32), fits


def room(types, images: int, slots: int) -> int:
    """How many tokens rows need for the general layout; on the host.

    Args:
      types: i32[B, T].
      images: for how many a batch has place in each row.
      slots: N + 2.
    """
    return _longest_text(np.asarray(types)) + images * (slots - 1)


def is_static(types, slots: int) -> bool:
    """Whether all rows are one token, `slots` image slots, then text or padding; on the host.

    Args:
      types: i32[B, T].
      slots: N + 2.
    """
    types = np.asarray(types)
    return bool(types.shape[1] > slots and static_rows(types, slots).all())


def static_rows(types, slots: int):
    """bool[B]: which rows of i32[B, T] are one token, `slots` image slots, then text or padding."""
    index = np.arange(types.shape[1])
    image = (index >= 1) & (index <= slots)
    return ((types == VISION) == image).all(axis=1) & (types[:, 0] == LANGUAGE)


def check(layout: str, types, images: int, slots: int) -> None:
    """Checks what nobody can look at while a program runs; on the host.

    Args:
      layout: what the rows promise.
      types: i32[B, T].
      images: for how many a batch has place in each row.
      slots: N + 2.

    Raises:
      ValueError: the slots are not those of at most so many images, or the promise does not hold.
    """
    types = np.asarray(types)
    vision = types == VISION
    if not images:
        if vision.any():
            raise ValueError("The rows have slots for images, but there are no image features.")
        return
    rows, lengths = _run_lengths(vision)
    wrong = runs(vision) > images
    wrong[rows[lengths != slots]] = True
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"An image takes {slots} slots in a row, with a token between it and the next one, and "
            f"there are {images} images a row; but row {row} has runs of "
            f"{lengths[rows == row].tolist()} slots."
        )
    if layout == "static" and not is_static(types, slots):
        raise ValueError(
            "The rows are not one token, one image, then text and padding: use layout='general'."
        )
    length = types.shape[1]
    free = length - vision_places(length, images, slots)
    if layout == "general" and (text := _longest_text(types)) > free:
        raise ValueError(
            f"A row has {text} tokens of text; rows of {length} with place for {images} images "
            f"have room for {free}: make them {room(types, images, slots)} long, or use "
            "layout='any', which costs about twice as much."
        )


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


def _longest_text(types: np.ndarray) -> int:
    """The most tokens of a row that language experts handle; eoi is one."""
    return int(((types == LANGUAGE).sum(axis=1) + runs(types == VISION)).max())


def runs(flags: np.ndarray) -> np.ndarray:
    """How many runs of True each row of bool[B, T] has."""
    before = np.pad(flags[:, :-1], ((0, 0), (1, 0)))
    return (flags & ~before).sum(axis=1)


def _run_lengths(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, length) of each run of True in bool[B, T], in order."""
    changes = np.diff(np.pad(flags, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (rows, first), (_, stop) = np.nonzero(changes == 1), np.nonzero(changes == -1)
    return rows, stop - first
