"""Texts in groups by length have the features and the gradients of whole ones, whatever fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.methods.shared import text_groups

WHOLE, END, WIDTH = 12, 50, 4


def params():
    rng = np.random.default_rng(0)
    return {"table": rng.normal(size=(END + 1, WIDTH)), "out": rng.normal(size=(WIDTH, 3))}


def fn(params, tokens):
    """A feature of all that comes before the end of a text, and of its position there."""
    seen = jnp.cumsum(jnp.tanh(params["table"][tokens] + jnp.arange(tokens.shape[1])[:, None]), 1)
    ends = tokens.argmax(axis=1)
    return jnp.take_along_axis(seen, ends[:, None, None], axis=1)[:, 0] ** 2 @ params["out"]


def texts(lengths):
    """What comes after the end of a text matters to none."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, END, (len(lengths), WHOLE), dtype=np.int32)
    tokens[np.arange(len(lengths)), np.asarray(lengths) - 1] = END
    return tokens


def with_gradients(fn, params, tokens, weights):
    features, backward = jax.vjp(lambda params: fn(params, tokens), params)
    return features, backward(weights)


@pytest.mark.parametrize(
    "groups, count", [(((0.5, 4), (0.3, 8)), 19), (((1.0, 6),), 5), (((0.01, 4), (0.4, 5)), 1)]
)
def test_features_and_gradients_are_those_of_whole_texts(groups, count):
    """Of texts that fit, of some that do not, and of none that does: the same program."""
    shapes = []

    def seen(params, tokens):
        shapes.append(tokens.shape)
        return fn(params, tokens)

    def grouped(params, tokens):
        return text_groups.encode(seen, params, tokens, groups)

    short = np.full(count, 2)
    mixed = np.random.default_rng(3).integers(1, WHOLE + 1, count)
    almost = np.where(np.arange(count) < 0.4 * count, 4, WHOLE)
    run = jax.jit(lambda params, tokens, weights: with_gradients(grouped, params, tokens, weights))
    plain = jax.jit(lambda params, tokens, weights: with_gradients(fn, params, tokens, weights))
    weights = np.random.default_rng(2).normal(size=(count, 3)).astype(np.float32)
    for lengths in (short, mixed, almost, np.full(count, WHOLE)):
        tokens = texts(lengths)
        expected, found = plain(params(), tokens, weights), run(params(), tokens, weights)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
    sizes = text_groups.sizes(count, WHOLE, groups)
    turn = -(-count // text_groups.TURNS)
    assert set(shapes) == {*sizes, (turn, WHOLE)}


@pytest.mark.parametrize(
    "lengths, turns",
    [([2] * 32, 0), ([2] * 16 + [6] * 9 + [12] * 7, 0), ([2] * 16 + [9] * 16, 5), ([12] * 32, 13)],
)
def test_the_loop_turns_for_what_does_not_fit(lengths, turns):
    """Of 32 texts, 16 have room at 4 positions and 9 at 8; each turn takes two."""
    parts = text_groups.sizes(32, WHOLE, ((0.5, 4), (0.3, 8)))
    assert parts == [(16, 4), (9, 8), (7, WHOLE)]
    tokens = np.random.default_rng(4).permutation(texts(lengths))
    assert int(text_groups._plan(tokens[None], tuple(parts)).turns) == turns


def test_shares_that_add_up_to_all_leave_none_whole():
    assert text_groups.sizes(10, WHOLE, ((0.7, 4), (0.3, 8))) == [(7, 4), (3, 8)]
    assert text_groups.sizes(1, WHOLE, ((0.7, 4), (0.2, 8))) == [(1, WHOLE)]
