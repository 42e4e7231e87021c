"""Groups of texts by length: what is proposed holds what comes, and no other saves more."""

import numpy as np
import pytest

from input_pipeline.text.lengths import positions, propose_groups

WHOLE = 77


def draw(seed, count, mean=22.0, sigma=0.6):
    """Lengths with a long tail."""
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(np.round(drawn), 3, WHOLE).astype(int)


@pytest.mark.parametrize("texts", [64, 1536])
def test_batches_rarely_have_more_long_texts_than_room(texts):
    groups = propose_groups(draw(0, 50_000), WHOLE, texts)
    assert len(groups) == 2 and sum(share for share, _ in groups) < 1
    batches = np.sort(draw(1, 500 * texts).reshape(500, texts), axis=1)
    taken, fits = 0, np.ones(500, bool)
    for share, length in groups:
        taken += share
        fits &= batches[:, int(taken * texts) - 1] <= length
    assert fits.mean() > 0.98


def test_more_texts_and_more_groups_save_more():
    lengths = draw(0, 20_000)
    cost = {
        (texts, count): positions(propose_groups(lengths, WHOLE, texts, count), WHOLE)
        for texts in (64, 4096)
        for count in (1, 2, 3, 4)
    }
    for texts in (64, 4096):
        falling = [cost[texts, count] for count in (1, 2, 3, 4)]
        assert falling[0] == WHOLE and falling == sorted(falling, reverse=True)
        assert falling[2] < falling[1] < falling[0]
    assert cost[4096, 3] < cost[64, 3]
    assert lengths.mean() < cost[4096, 3] < 40


@pytest.mark.parametrize(
    "lengths, expected",
    [([WHOLE] * 9, ()), ([200] * 9, ()), ([3, 8], ((1.0, 8),)), ([9], ((1.0, 16),))],
)
def test_texts_of_one_kind(lengths, expected):
    """Where all fit one length no text stays whole; where none does all do."""
    assert propose_groups(np.array(lengths), WHOLE, 10**9) == expected
