import collections
import json
import random

import pytest

from input_pipeline.text import captions
from tests.parity.fixtures import fixtures

DREAMLIP = {name: [f"{name}{i}" for i in range(3)] for name in captions.DREAMLIP_FIELDS}


@pytest.fixture(scope="module", params=fixtures("cosmos_*.json"), ids=lambda path: path.stem)
def golden(request):
    return json.loads(request.param.read_text())["text"]


def test_split_equals_reference(golden):
    for case in golden["split"]:
        assert captions.split_sentences(case["inp"]) == case["out"]


def test_textcrop_draws_equal_reference(golden):
    rng = random.Random(0)
    case = golden["sampler_seed0"]
    # The pool follows the published field order, whatever order the record has.
    fields = dict(reversed(case["lists"].items()))
    for expected in case["out"]:
        assert captions.sample_captions(fields, "textcrop", 8, rng) == expected


def test_pixelprose_draws_equal_reference(golden):
    rng = random.Random(0)
    case = golden["sampler_pixelprose_seed0"]
    fields = {name: [text] for name, text in case["sample"].items()}
    for expected in case["out"]:
        assert captions.sample_captions(fields, "textcrop_pixelprose", 8, rng) == expected


def test_oversampling_equals_reference(golden):
    case = golden["oversample_seed0"]
    assert captions.sample(case["list"], case["k"], random.Random(0)) == case["out"]


def test_split_sentences_are_clean_and_lose_no_letter():
    rng = random.Random(1)
    for _ in range(200):
        text = "".join(rng.choices(["a", "b ", ".", "\n", "</s>", " "], k=20))
        parts = captions.split_sentences(text)
        assert all(part == part.strip() != "" and "." not in part for part in parts)
        letters = text.replace("</s>", "")
        assert "".join(parts).count("a") == letters.count("a")
        assert "".join(parts).count("b") == letters.count("b")


@pytest.mark.parametrize("pool_size", [1, 3, 7])
@pytest.mark.parametrize("m", [0, 1, 3, 8, 15])
def test_sample_covers_the_pool_evenly(pool_size, m):
    pool = [str(i) for i in range(pool_size)]
    for seed in range(20):
        out = captions.sample(pool, m, random.Random(seed))
        counts = collections.Counter({text: 0 for text in pool})
        counts.update(out)
        assert len(out) == m and set(out) <= set(pool)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_pools():
    everything = [text for texts in DREAMLIP.values() for text in texts]
    assert captions.caption_pool({**DREAMLIP, "keywords": ["k"]}, "random") == everything
    assert captions.caption_pool(DREAMLIP, "textcrop") == everything
    assert captions.caption_pool(DREAMLIP, "raw") == DREAMLIP["raw_caption"]
    assert captions.caption_pool(DREAMLIP, "short") == everything[:12]
    assert captions.caption_pool(DREAMLIP, "long") == everything[12:]

    other = {"long_b": ["1"], "raw": ["2", "3"], "short_a": ["4"], "caption": ["5. 6."]}
    assert captions.caption_pool(other, "random") == ["1", "2", "3", "4", "5. 6."]
    assert captions.caption_pool(other, "short") == ["2", "3", "4"]
    assert captions.caption_pool(other, "long") == ["1"]

    prose = {"caption": ["5. 6", "7"], "original_caption": ["o. p"], "url": ["u"]}
    for mode in ("random_pixelprose", "textcrop_pixelprose"):
        assert captions.caption_pool(prose, mode) == ["o. p", "5", "6", "7"]
    assert captions.caption_pool(prose, "raw_pixelprose") == ["o. p"]


@pytest.mark.parametrize("mode", captions.MODES)
def test_every_mode_gives_k_captions_from_its_pool(mode):
    fields = {**DREAMLIP, "original_caption": ["orig"], "caption": ["one. two. three"]}
    pool = set(captions.caption_pool(fields, mode))
    for seed in range(30):
        k = 1 if mode.startswith("raw") else 2 + seed % 9
        out = captions.sample_captions(fields, mode, k, random.Random(seed))
        assert len(out) == k
        whole, sentences = (out[:2], out[2:]) if mode.startswith("textcrop") else ([], out)
        assert set(sentences) <= pool
        for text in whole:
            parts = text.split(". ")
            assert 1 <= len(parts) <= 5 and set(parts) <= pool
        assert out == captions.sample_captions(fields, mode, k, random.Random(seed))


def test_pool_is_not_shared_with_the_record():
    captions.caption_pool(DREAMLIP, "raw").append("x")
    assert "x" not in DREAMLIP["raw_caption"]


def test_plain_string_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'title' is a plain string.*characters.*list of strings"):
        captions.caption_pool({"title": "a cat"}, "random")
    with pytest.raises(ValueError, match="'caption' is a plain string"):
        captions.caption_pool({"original_caption": ["o"], "caption": "a. b"}, "textcrop_pixelprose")
    with pytest.raises(ValueError, match="'title' must hold strings"):
        captions.caption_pool({"title": ["a cat", None]}, "random")
    with pytest.raises(TypeError, match="one string"):
        captions.split_sentences(["a. b"])


def test_missing_captions_say_what_to_do():
    with pytest.raises(ValueError, match=r"needs the caption field 'raw_caption'.*'title'"):
        captions.caption_pool({"title": ["t"]}, "raw")
    with pytest.raises(ValueError, match=r"start with long; the record has 'title', 'alt'"):
        captions.caption_pool({"title": ["t"], "alt": []}, "long")
    with pytest.raises(ValueError, match=r"no caption in the fields 'alt'.*when preparing"):
        captions.caption_pool({"alt": []}, "random")
    with pytest.raises(ValueError, match="no caption fields"):
        captions.caption_pool({}, "textcrop")


@pytest.mark.parametrize(
    "mode, k, message",
    [
        ("rnadom", 1, "Unknown caption mode"),
        ("raw", 2, "exactly one caption"),
        ("raw_pixelprose", 8, "exactly one caption"),
        ("textcrop", 1, "two global captions"),
        ("random", 0, "at least 1"),
    ],
)
def test_modes_are_checked(mode, k, message):
    with pytest.raises(ValueError, match=message):
        captions.check_mode(mode, k)
    with pytest.raises(ValueError, match=message):
        captions.sample_captions(DREAMLIP, mode, k, random.Random(0))


def test_unknown_mode_has_no_pool():
    with pytest.raises(ValueError, match="Unknown caption mode"):
        captions.caption_pool(DREAMLIP, "rnadom")
