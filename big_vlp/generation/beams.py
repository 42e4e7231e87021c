"""Beam search, for `generation.sampling.generate`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from big_vlp.generation.cache import Prompts, Settings, decode, empty_cache, prefill
from big_vlp.parallel import meshes

NEVER = -jnp.inf  # score of what must not be chosen


class Beams(NamedTuple):
    """The options of a beam search; it follows Hugging Face's transformers with its defaults.

    A sequence scores its summed log probability over its length (with end of sentence) to the power
    of `length_penalty`. At each step the 2 * count best continuations are looked at: those that end
    are kept if they are among the first `count`, the best `count` others go on. A row stops when it
    keeps `count` ended sequences and its best open one, scored at its present length, is no better
    than the worst of these.
    """

    count: int
    length_penalty: float = 1.0


class _Search(NamedTuple):
    """Where a search stands, with K beams a row and sequences of M tokens.

    open_ids, ended_ids: i32[B, K, M]; their scores f32[B, K], best first, NEVER where there is
    none. origins: i32[B, K], which beam an open one goes on from. done: bool[B]. written: the
    cache of the B * K beams behind their prompts, as it was before they went on.
    """

    written: Any
    open_ids: jax.Array
    open_scores: jax.Array
    origins: jax.Array
    ended_ids: jax.Array
    ended_scores: jax.Array
    done: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def beam_search(settings: Settings, beams: Beams, params, prompts: Prompts, features) -> jax.Array:
    """The best sequence of each row, i32[B, max_new_tokens], see `generation.sampling.generate`."""
    count, length = beams.count, settings.max_new_tokens
    logits, position, cache = prefill(settings, params, prompts, features)
    batch = len(logits)
    logits, position = (jnp.repeat(a, count, axis=0) for a in (logits, position))
    ids = jnp.full((batch, count, length), settings.pad_id, jnp.int32)
    # Equal beams would stay equal: only the first one counts at the beginning.
    open_scores = jnp.full((batch, count), NEVER).at[:, 0].set(0.0)
    ended_scores = jnp.full((batch, count), NEVER)
    origins, done = jnp.zeros((batch, count), jnp.int32), jnp.zeros(batch, bool)
    written = empty_cache(settings, params, batch * count)
    search = _Search(written, ids, open_scores, origins, ids, ended_scores, done)
    search = _extend(settings, beams, search, logits, 0)

    def unfinished(carry):
        step, search = carry
        return (step < length) & ~search.done.all()

    def body(carry):
        step, search = carry
        written = jax.tree.map(lambda a: _follow(a, search.origins), search.written)
        last = step - 1
        token = search.open_ids[:, :, last].ravel()
        logits, written = decode(
            *(settings, params, cache, written, token, position + last, prompts.lengths, last)
        )
        search = search._replace(written=written)
        return step + 1, _extend(settings, beams, search, logits, step)

    return jax.lax.while_loop(unfinished, body, (1, search))[1].ended_ids[:, 0]


def _extend(settings: Settings, beams: Beams, search: _Search, logits, step) -> _Search:
    """All beams by token number `step`, whose logits are f32[B * K, V]."""
    count = beams.count
    batch, vocab_size = len(search.done), logits.shape[-1]
    scores = jax.nn.log_softmax(logits).reshape(batch, count, vocab_size)
    scores = meshes.keep(scores, meshes.BATCH_AXES)  # the best are chosen among a row's own
    scores = (scores + search.open_scores[..., None]).reshape(batch, -1)
    scores, index = jax.lax.top_k(scores, 2 * count)
    origins, token = index // vocab_size, index % vocab_size
    ids = _take(search.open_ids, origins).at[:, :, step].set(token)
    ends = (token == settings.eos_id) | (step == settings.max_new_tokens - 1)

    open_scores, order = jax.lax.top_k(jnp.where(ends, NEVER, scores), count)
    open_ids, origins = _take(ids, order), _take(origins, order)

    by_length = (jnp.float32(step) + 1) ** beams.length_penalty
    kept = ends & (jnp.arange(2 * count) < count) & ~search.done[:, None]
    ended_scores = jnp.where(kept, scores / by_length, NEVER)
    ended_scores = jnp.concatenate([search.ended_scores, ended_scores], axis=1)
    ended_scores, order = jax.lax.top_k(ended_scores, count)
    ended_ids = _take(jnp.concatenate([search.ended_ids, ids], axis=1), order)

    done = search.done | (open_scores[:, 0] / by_length <= ended_scores[:, -1])
    return _Search(search.written, open_ids, open_scores, origins, ended_ids, ended_scores, done)


def _take(beams, index):
    """Of beams [B, K, ...] those of an index i32[B, J]."""
    return jax.vmap(lambda row, index: row[index])(beams, index)


def _follow(cache, origins):
    """A cache [L, B * K, ...] after the beams went on from `origins` i32[B, K] of the same row."""
    beams = cache.reshape(len(cache), *origins.shape, *cache.shape[2:])
    return jax.vmap(_take, (0, None))(beams, origins).reshape(cache.shape)
