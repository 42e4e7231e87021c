"""Text from a CogVLM: greedy, sampled, or by beam search, over a cache of keys and values.

`generate` writes for a batch of prompts of different lengths in one compiled program, `stream` the
same token by token. An ambient mesh (`jax.set_mesh`) splits the cache: rows over data and fsdp,
heads over tensor, if these divide. Weights stay where they are while tokens are written: what
travels are the few rows.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.generation.beams import Beams, beam_search
from big_vlp.generation.cache import (
    Prompts,
    Settings,
    decode,
    empty_cache,
    make_prompts,
    prefill,
    settings_for,
)
from big_vlp.models.cogvlm import CogVLM


class Sampling(NamedTuple):
    """Draws each token; the limits apply in this order.

    Attributes:
      temperature: above 0; divides the logits.
      top_k: only so many of the most probable tokens; 0: all. With 1 this is the greedy strategy.
      top_p: of these, only the most probable that together have this probability, in 0..1; the
        first is always among them.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


Strategy = Sampling | Beams | None  # None is greedy


class _State(NamedTuple):
    """Rows that each hold one new token, not yet in the cache of what is written.

    token, position (its id): i32[B]. done: bool[B].
    """

    written: Any
    token: jax.Array
    position: jax.Array
    done: jax.Array


def generate(
    model: CogVLM,
    params,
    tokens,
    types,
    features=None,
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int = 0,
    strategy: Strategy = None,
    key=None,
    layout: str = "general",
    multiple: int = 1,
) -> jax.Array:
    """Continues every prompt to its end of sentence.

    A program is compiled for each shape, layout, `max_new_tokens` and kind of strategy. Compiled
    functions may call this; then nobody checks what the arrays hold, and "general" prompts with
    images are read as by "any".

    Args:
      tokens, types: i32[B, T] as of `models.layout`, padded on one side of each row.
      features: [B, I, N + 2, D] of `CogVLM.encode_images`, or None without images.
      key: for `Sampling`. What a row draws depends on the key and its place in the batch, not on
        the other rows.
      layout: what prompts promise, see `models.layout`: "static", "general", which are padded by
        the room that they need, or "any", whose padding is that of the fullest row there could be.
      multiple: prompts are padded to a multiple of so many tokens, to compile for fewer lengths.

    Returns:
      i32[B, max_new_tokens]: the new tokens, with end of sentence, then `pad_id`.

    Raises:
      ValueError: an option is out of range, the layout unknown, or the rows are not what it or the
        features need.
    """
    _check(strategy, key, max_new_tokens)
    settings = settings_for(model, types, layout, max_new_tokens, eos_id, pad_id)
    prompts = make_prompts(tokens, types, features, settings.layout, multiple)
    if isinstance(strategy, Beams):
        return beam_search(settings, strategy, params, prompts, features)
    return _write(settings, params, prompts, features, strategy, key)


def stream(
    model: CogVLM,
    params,
    tokens,
    types,
    features=None,
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int = 0,
    strategy: Sampling | None = None,
    key=None,
    layout: str = "general",
    multiple: int = 1,
) -> Iterator[np.ndarray]:
    """As `generate`, but yields the new tokens i32[B] one after another, until all rows ended.

    Raises:
      ValueError: as `generate`, at once; or beam search, which knows its tokens at the end only.
    """
    if isinstance(strategy, Beams):
        raise ValueError("Beam search cannot be streamed; use generate.")
    _check(strategy, key, max_new_tokens)
    settings = settings_for(model, types, layout, max_new_tokens, eos_id, pad_id)
    prompts = make_prompts(tokens, types, features, settings.layout, multiple)

    def run():
        cache, state = _first(settings, params, prompts, features, strategy, key)
        yield np.asarray(state.token)
        for step in range(1, max_new_tokens):
            if state.done.all():
                return
            given = settings, params, cache, prompts.lengths
            state = _next(*given, state, step, strategy, key)
            yield np.asarray(state.token)

    return run()


def choose(logits, sampling: Sampling | None, keys) -> jax.Array:
    """A token of each row: i32[B] from logits f32[B, V]; `keys` [B] are for `Sampling`."""
    if sampling is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    # In the order of probability; of equals the first is ahead, as it is for argmax.
    order = jnp.argsort(-logits, axis=-1)
    logits = jnp.take_along_axis(logits, order, axis=-1) / sampling.temperature
    rank = jnp.arange(logits.shape[-1])
    logits = jnp.where((sampling.top_k == 0) | (rank < sampling.top_k), logits, -jnp.inf)
    probabilities = jax.nn.softmax(logits, axis=-1)
    ahead = jnp.cumsum(probabilities, axis=-1) - probabilities
    # Sums are rounded: with 1 nothing is left out.
    kept = (ahead < sampling.top_p) | (sampling.top_p >= 1) | (rank == 0)
    drawn = jax.vmap(jax.random.categorical)(keys, jnp.where(kept, logits, -jnp.inf))
    return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def _write(settings: Settings, params, prompts: Prompts, features, sampling, key):
    cache, state = _begin(settings, params, prompts, features, sampling, key)
    shape = len(state.token), settings.max_new_tokens
    ids = jnp.full(shape, settings.pad_id, jnp.int32).at[:, 0].set(state.token)

    def unfinished(carry):
        step, state, _ = carry
        return (step < settings.max_new_tokens) & ~state.done.all()

    def body(carry):
        step, state, ids = carry
        state = _advance(settings, params, cache, prompts.lengths, state, step, sampling, key)
        return step + 1, state, ids.at[:, step].set(state.token)

    return jax.lax.while_loop(unfinished, body, (1, state, ids))[-1]


def _begin(settings: Settings, params, prompts: Prompts, features, sampling, key):
    """Reads the prompts and chooses the first tokens: (the prompts' cache, _State)."""
    logits, position, cache = prefill(settings, params, prompts, features)
    token = choose(logits, sampling, _row_keys(sampling, key, len(logits), 0))
    written = empty_cache(settings, params, len(token))
    return cache, _State(written, token, position, token == settings.eos_id)


def _advance(
    settings: Settings, params, cache, lengths, state: _State, step, sampling, key
) -> _State:
    """Chooses token number `step` of each row; `pad_id` where the row is done."""
    last = state.written, state.token, state.position
    logits, written = decode(settings, params, cache, *last, lengths, step - 1)
    token = choose(logits, sampling, _row_keys(sampling, key, len(logits), step))
    token = jnp.where(state.done, settings.pad_id, token)
    return _State(written, token, state.position + 1, state.done | (token == settings.eos_id))


_first = jax.jit(_begin, static_argnums=0)
_next = jax.jit(_advance, static_argnums=0, donate_argnames="state")


def _row_keys(sampling: Sampling | None, key, batch: int, step):
    if sampling is None:
        return None
    fold = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), step))
    return fold(jnp.arange(batch))


def check_strategy(strategy: Strategy) -> None:
    """Raises ValueError where an option is out of range."""
    if isinstance(strategy, Beams):
        if strategy.count < 1:
            raise ValueError(f"Beam search needs 1 beam or more, not {strategy.count}.")
    elif strategy is not None:
        temperature, top_k, top_p = strategy
        if not 0 < temperature < math.inf or top_k < 0 or not 0 <= top_p <= 1:
            raise ValueError(
                f"{strategy}: temperature must be above 0, top_k 0 or more, and top_p in 0..1."
            )


def _check(strategy: Strategy, key, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: give 1 or more.")
    check_strategy(strategy)
    if isinstance(strategy, Sampling) and key is None:
        raise ValueError("Sampling needs a random key.")
