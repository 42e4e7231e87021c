"""Words and scores of captions are those of COCO's evaluation."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from evaluators.answers import captions as captions_evaluator
from evaluators.answers.shared import captioning, ptb

# 500 captions of odd spellings, with what pycocoevalcap 1.2 says of them.
SCORED = json.loads((Path(__file__).parent / "scored_captions.json").read_text())


def words(captions):
    return [caption.split() for caption in captions]


@pytest.fixture(scope="module")
def tokenized():
    flat = iter(ptb.tokenize([text for own in SCORED["given"] for text in own]))
    given = [[next(flat) for _ in own] for own in SCORED["given"]]
    return ptb.tokenize(SCORED["written"]), given


def test_words_are_those_of_the_published_tokenizer(tokenized):
    written, given = tokenized
    assert [" ".join(own) for own in written] == SCORED["words_written"]
    assert [[" ".join(c) for c in own] for own in given] == SCORED["words_given"]
    assert len(written) + sum(map(len, given)) == 500


def test_scores_are_those_of_the_published_code(tokenized):
    np.testing.assert_allclose(captioning.cider_d(*tokenized), SCORED["cider"], atol=1e-6)
    np.testing.assert_allclose(captioning.bleu(*tokenized), SCORED["bleu"], atol=1e-6)
    np.testing.assert_allclose(captioning.rouge_l(*tokenized), SCORED["rouge_l"], atol=1e-6)
    assert 1 < np.mean(SCORED["cider"]) < 9 and 0.1 < SCORED["bleu"][3] < 0.9


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("A man's dog can't swim.", "a man 's dog ca n't swim"),
        ('"Hello," she said - twice...', "hello she said twice"),
        ("a sign (red) at 5 p.m.", "a sign -lrb- red -rrb- at 5 p.m."),
        ("black-and-white TV/radio", "black-and-white tv/radio"),
        ("It costs $5.00, 50% off!!", "it costs $ 5.00 50 % off !!"),
        ("Mr. Smith of the U.S. The end", "mr. smith of the u.s. the end"),
        ("at 10:30am on 1/2", "at 10:30 am on 1/2"),
        ("I cannot, it’s gonna rain", "i can not it 's gon na rain"),
        ("", ""),
        (" \t. ", ""),
        ("two\nlines", "two lines"),
    ],
)
def test_words(caption, expected):
    assert ptb.tokenize([caption]) == [expected.split()]


def test_any_text_has_words():
    rng = random.Random(0)
    signs = "aB é9 .,'\"’-()/&<>:;#$*_!?\n\t“”½😀中"
    texts = ["".join(rng.choices(signs, k=rng.randrange(20))) for _ in range(300)]
    found = ptb.tokenize(texts)
    assert len(found) == 300
    for text, own in zip(texts, found):
        assert all(own) and bool(own) >= any(letter in text for letter in "aB9中é")


def test_cider_by_hand():
    """Two images, one word each: unigrams alone, a quarter of the mean over n."""
    given = [[["cat"]], [["dog"]]]
    scores = captioning.cider_d([["cat"], ["cat"]], given)
    np.testing.assert_allclose(scores, [10 / 4, 0])
    # A word that all images have tells nothing.
    assert captioning.cider_d([["cat"], ["cat"]], [[["cat"]], [["cat"]]]).tolist() == [0, 0]
    # Five pairs of words more than given: exp(-25 / 72) of what remains is left.
    long = captioning.cider_d([["cat"] * 7, ["dog"]], [[["cat", "cat"]], [["dog"]]])[0]
    assert long == pytest.approx(10 / 4 * (2 / 7 + 1 / 6) * math.exp(-25 / 72))


def test_bleu_by_hand():
    # "the" counts twice at most, as in one of the captions; 7 words against the closest length, 7.
    written, given = words(["the the the the the the the"]), [words(["the cat the mat is on now"])]
    bleu = captioning.bleu(written, given)
    assert bleu[0] == pytest.approx(2 / 7)
    assert bleu[1] < 1e-7
    # Too short: exp(1 - 6 / 3).
    short = captioning.bleu(words(["the cat sat"]), [words(["the cat sat on a mat"])])
    assert short[:3] == pytest.approx([math.exp(-1)] * 3, rel=1e-6)


def test_rouge_by_hand():
    # All three words stand in the given caption in this order.
    found = captioning.rouge_l(
        [["police", "the", "gunman"]], [[["police", "killed", "the", "gunman"]]]
    )
    precision, recall, beta = 1.0, 3 / 4, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    np.testing.assert_allclose(found, [expected])
    assert captioning.rouge_l([[]], [[["a"]]]).tolist() == [0]


def test_only_the_given_captions_say_what_is_rare():
    rng = np.random.default_rng(0)
    given = [[list(rng.choice(list("abcdefgh"), 6)) for _ in range(2)] for _ in range(5)]
    scores = captioning.cider_d([own[0] for own in given], given)
    order = rng.permutation(5)
    moved = captioning.cider_d([given[i][0] for i in order], [given[i] for i in order])
    np.testing.assert_allclose(moved, scores[order])
    assert (scores > 0).all() and (scores <= 10).all()


def test_meteor_needs_its_package(monkeypatch):
    captioning.has_meteor.cache_clear()
    monkeypatch.setattr(captioning.shutil, "which", lambda name: None)
    assert not captioning.has_meteor()
    captioning.has_meteor.cache_clear()


@pytest.mark.skipif(not captioning.has_meteor(), reason="pycocoevalcap and java are not there")
def test_meteor_is_that_of_the_published_code(tokenized):
    """What pycocoevalcap 1.2 says of the same captions, tokenized by its own Java code."""
    assert captioning.meteor(*tokenized) == pytest.approx(SCORED["meteor"], abs=1e-6)
    written, given = tokenized
    assert captioning.meteor([own[0] for own in given], given) > captioning.meteor(written, given)


def test_captions_have_meteor_where_it_can_be_counted(monkeypatch):
    """Only then, and once for each group."""
    captions = [["a cat sat"], ["a dog ran"]]
    kept = [{"id": c, "by": c[0], "answers": [" ".join(a)]} for c, a in zip("ab", captions)]
    monkeypatch.setattr(captioning, "has_meteor", lambda: True)
    monkeypatch.setattr(captioning, "meteor", lambda written, given: len(written) / 10)
    found = dict(captions_evaluator.Scoring(by="x").scores(["a cat", "a dog"], kept))
    assert (found["meteor"], found["meteor_a"], found["meteor_b"]) == (0.2, 0.1, 0.1)
    monkeypatch.setattr(captioning, "has_meteor", lambda: False)
    assert "meteor" not in dict(captions_evaluator.Scoring().scores(["a cat", "a dog"], kept))
