"""Attention written out for XLA: all queries at once, or in blocks that leave nothing behind."""

import jax
import jax.numpy as jnp

QUERIES = 128  # in a block
DRAW_BITS = PACKED = 16


def whole(query, key, value, *, causal: bool, spans=None, segments=None, dropout=None):
    """As `attention.attention`; holds the weights, [B, H, T, S]."""
    positions = jnp.arange(query.shape[1])
    if dropout is not None:
        return _attend(query, key, value, positions, causal, spans, segments, dropout)
    mask, plain = None, spans is None and segments is None
    if not plain:
        mask = seen(positions, key.shape[1], causal, spans, segments)[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal and plain, implementation="xla"
    )


def by_blocks(query, key, value, *, causal: bool, spans=None, segments=None, dropout=None):
    """As `whole`, one block of queries after the other; the backward pass computes each again.

    What is dropped is the same, and the same whatever the size of a block.
    """
    batch, length, heads, width = query.shape
    size = min(QUERIES, length)
    count = -(-length // size)
    padded = jnp.pad(query, ((0, 0), (0, count * size - length), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(batch, count, size, heads, width), 1, 0)
    # Their gradients are sums over the blocks, made in fp32.
    keys, values = key.astype(jnp.float32), value.astype(jnp.float32)

    def block(inputs):
        query, first = inputs
        exact = keys.astype(key.dtype), values.astype(value.dtype)
        return _attend(query, *exact, first + jnp.arange(size), causal, spans, segments, dropout)

    # In a loop XLA cannot merge the recomputation away, so it needs no barrier.
    block = jax.checkpoint(block, prevent_cse=False)
    out = jax.lax.map(block, (blocks, size * jnp.arange(count)))
    return jnp.moveaxis(out, 0, 1).reshape(padded.shape)[:, :length]


def seen(positions, keys: int, causal: bool, spans, segments=None):
    """Which keys the queries at positions i32[T] see: bool[B or 1, T, keys]; None: all."""

    def common(numbers):  # [B, keys] -> (numbers of the queries [B, T, 1], bool[B, T, keys])
        own = jnp.take(numbers, positions, axis=1, mode="clip")[:, :, None]
        return own, own == numbers[:, None]

    within = None if segments is None else common(segments)[1]
    if not causal:
        return within
    query, key = positions[:, None], jnp.arange(keys)
    visible = (key <= query)[None]
    if isinstance(spans, tuple):
        start, stop = spans
        inside = (query >= start) & (query < stop) & (key >= start) & (key < stop)
        visible = visible | inside[None]
    elif spans is not None:
        own, same = common(spans)
        visible = visible | (same & (own > 0))
    return visible if within is None else visible & within


def draws(rate: float, keys, positions, shape: tuple[int, ...]):
    """(bool[B, T, *shape], f32): what is kept with probability 1 - rate, and the exact share.

    A draw is `DRAW_BITS` bits of a counter-based generator, so the share is a multiple of 2^-16. It
    is a function of its row's key, its position and its place in `shape` alone.

    Args:
      keys: [B], or their data u32[B, 2].
      positions: i32[T], or i32[B, T] where they differ from row to row.
      shape: of what is drawn at each position.
    """
    words = _words(keys, positions, shape)
    halves = [words & (2**DRAW_BITS - 1), words >> DRAW_BITS]
    kept = jnp.concatenate(halves, axis=-1)[..., : shape[-1]] >= _dropped(rate)
    return kept, share(rate)


def packed_draws(rate: float, keys, length: int, shape: tuple[int, ...]):
    """i32[B, W, *shape]: `draws` of positions 0..length-1, bit t % PACKED of number t // PACKED for
    the position t."""
    count = -(-length // PACKED)
    words = _words(keys, jnp.arange(count * PACKED), shape)
    halves = [words & (2**DRAW_BITS - 1), words >> DRAW_BITS]
    low, high = ((half >= _dropped(rate)).astype(jnp.uint32) for half in halves)
    # Both in one sum, so that the compiler draws, compares and adds up in one go.
    both = (low | high << PACKED).reshape(len(keys), count, PACKED, *words.shape[2:])
    place = jnp.arange(PACKED, dtype=jnp.uint32).reshape(-1, *[1] * len(shape))
    both = (both << place).sum(axis=2, dtype=jnp.uint32)
    halves = [both & (2**PACKED - 1), both >> PACKED]
    return jnp.concatenate(halves, axis=-1)[..., : shape[-1]].astype(jnp.int32)


def _words(keys, positions, shape: tuple[int, ...]):
    """u32[B, T, *shape], but half of the last axis, as two draws go into a word."""
    *outer, last = shape

    def of_position(key, position):
        own = jax.random.fold_in(key, position)
        return jax.random.bits(own, (*outer, -(-last // 2)), jnp.uint32)

    of_row = jax.vmap(of_position, (None, 0))
    return jax.vmap(of_row, (0, 0 if positions.ndim == 2 else None))(keys, positions)


def share(rate: float) -> float:
    """Which share is kept of what is dropped at this rate."""
    return 1 - _dropped(rate) / 2**DRAW_BITS


def _dropped(rate: float) -> int:
    return round(rate * 2**DRAW_BITS)


def _attend(query, key, value, positions, causal: bool, spans, segments, dropout):
    """Attention of the queries [B, T, H, D] at positions i32[T] of their rows."""
    batch, length, heads, width = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, width)  # [B, T, K, H / K, D]
    logits = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=jnp.float32)
    logits *= width**-0.5
    visible = seen(positions, key.shape[1], causal, spans, segments)
    if visible is not None:
        logits = jnp.where(visible[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1)
    if dropout is not None:
        kept, share = draws(*dropout, positions, (*weights.shape[1:3], key.shape[1]))
        weights = jnp.where(jnp.moveaxis(kept, 1, 3), weights / share, 0)
    out = jnp.einsum("bkgts,bskd->btkgd", weights.astype(query.dtype), value)
    return out.reshape(batch, length, heads, width)
