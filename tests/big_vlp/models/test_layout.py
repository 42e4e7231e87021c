"""What follows from where images lie in a row, against the rules in words."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.models import layout
from big_vlp.models.layers.attention import written
from tests.big_vlp.models.toy_cogvlm import LANGUAGE, PADDING, SLOTS, VISION, padded, row


def random_rows(seed):
    """Rows of every kind, also such as no processor makes, padded on either side."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 2, rng.integers(1, 14)).tolist() for _ in range(8)]
    rows += [row(1, "image", "image", 2), row("image"), row(2, "image", 1, "image")]
    return padded(rows, left=bool(seed % 2))


def positions_by_walking(types):
    """Position ids of one row, token after token, from the rule in words."""
    length = len(types)
    kinds = list(types)
    for t, kind in enumerate(types):
        begins = t == 0 or types[t - 1] == LANGUAGE
        ends = t == length - 1 or types[t + 1] == LANGUAGE
        if kind == VISION and (begins or ends):
            kinds[t] = LANGUAGE
    ids = [0]
    for before, kind in itertools.pairwise(kinds):
        counts = kind == LANGUAGE or (kind == VISION and before == LANGUAGE)
        ids.append(ids[-1] + counts)
    return ids


@pytest.mark.parametrize("seed", range(4))
def test_positions_and_experts_by_walking_along_the_row(seed):
    types = random_rows(seed)
    expected = [positions_by_walking(r.tolist()) for r in types]
    np.testing.assert_array_equal(layout.position_ids(jnp.asarray(types)), expected)
    expected = np.zeros(types.shape, bool)
    for b, t in np.ndindex(types.shape[0], types.shape[1] - 1):
        expected[b, t] = types[b, t] == VISION and types[b, t + 1] == VISION
    np.testing.assert_array_equal(layout.expert_mask(jnp.asarray(types)), expected)


def test_positions_of_the_usual_row():
    types = jnp.asarray([row(1, "image", 3)])
    expected = [[0, 1, 2, 2, 2, 2, 3, 4, 5, 6]]
    np.testing.assert_array_equal(layout.position_ids(types), expected)


def test_positions_begin_anew_in_each_segment():
    """Those of a segment are those of a row of its own."""
    rows = [row(1, "image", 3), row(5), row(2, "image"), row(1, "image", 1, "image", 2)]
    packed = np.concatenate([*rows, 3 * [PADDING]])
    segments = np.repeat([1, 2, 3, 4, 0], [*map(len, rows), 3])
    found = layout.position_ids(jnp.asarray([packed]), jnp.asarray([segments]))[0]
    start = 0
    for r in rows:
        expected = positions_by_walking(r)
        np.testing.assert_array_equal(found[start : start + len(r)], expected)
        start += len(r)
    assert np.asarray(layout.starts(jnp.asarray([segments]))).sum() == len(rows) + 1


@pytest.mark.parametrize("seed", range(4))
def test_streams_hold_what_their_experts_handle(seed):
    types = random_rows(seed)
    experts = np.asarray(layout.expert_mask(jnp.asarray(types)))
    length = types.shape[1]
    for vision in range(length + 1):
        order, fits = map(np.asarray, layout.stream_order(jnp.asarray(types), vision))
        np.testing.assert_array_equal(np.sort(order, axis=1)[0], np.arange(length))
        for b in range(len(types)):
            of_text, of_image = order[b, : length - vision], order[b, length - vision :]
            wrong = (
                experts[b, of_text].any()
                or (~experts[b, of_image] & (types[b, of_image] != PADDING)).any()
            )
            assert fits[b] == (not wrong)
            for stream in (of_text, of_image):
                real = stream[types[b, stream] != PADDING]
                assert wrong or (np.diff(real) > 0).all()


def test_padding_moves_to_the_right():
    types = padded([row(1, "image", 2), row(3)], left=True)
    tokens = np.arange(types.size).reshape(types.shape)
    lengths, moved, found = layout.pad_right(jnp.asarray(types), tokens)
    np.testing.assert_array_equal(lengths, [9, 3])
    np.testing.assert_array_equal(moved, padded([row(1, "image", 2), row(3)]))
    np.testing.assert_array_equal(found[1], [*tokens[1, 6:], *tokens[1, :6]])
    again = layout.pad_right(moved, found)
    np.testing.assert_array_equal(again[2], found)


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([row(1, "image", 2), row(1, "image")], True),
        ([row(1, "image", 2), row(2, "image", 1)], False),
        ([row(1, "image", 2), row(9)], False),
        ([row(1, "image", 1, "image")], False),
        ([row(1)], False),
    ],
)
def test_which_rows_are_static(rows, expected):
    assert layout.is_static(padded(rows), SLOTS) == expected


def test_an_image_sees_itself_by_its_spans():
    types = padded([row(1, "image", 1, "image", 1), row(2, "image")])
    spans, length = layout.image_spans(jnp.asarray(types)), types.shape[1]
    mask = np.asarray(written.seen(jnp.arange(length), length, True, spans))
    experts = np.asarray(layout.expert_mask(jnp.asarray(types)))
    for b, t, s in np.ndindex(*types.shape, types.shape[1]):
        between = experts[b, min(t, s) : max(t, s) + 1]
        assert mask[b, t, s] == (s <= t or between.all()), (b, t, s)
