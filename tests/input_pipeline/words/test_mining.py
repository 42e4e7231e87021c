"""Captions to keys: every rule by example, and the quick way against the plain one."""

import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from input_pipeline.sources import scenes
from input_pipeline.words import synsets, tagging, tokens
from input_pipeline.words.mining import LabelMiner, clean, clean_anything, keys_plainly
from tests.parity.fixtures import fixtures

TARS = os.environ.get("BIG_VLP_OPENCLIPART")
MINER = LabelMiner()


def names(caption, miner=MINER):
    """Head words of the labels; all are first senses."""
    found = [synsets.load().name(key) for key in miner.keys(caption)]
    assert all(name.endswith(".n.01") for name in found)
    return [name.removesuffix(".n.01") for name in found]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("An image of black dog.", "image black dog"),
        ("a dog catching a frisbee", "dog catching frisbee"),
        ("dog dog DOG", "dog dog dog"),
        ("dog, cat; bird: fish? horse.", "dog cat bird fish horse"),
        ("a couch, a bike and a tv", ""),  # synonyms of what their synsets are named after
        ("men and women in jeans", "woman jean"),
        ("a hot dog", "dog"),
        ("the dog's bowl", "dog bowl"),
        ("red%20apple%2Btree", "red apple tree"),
        ("red+apple", "red apple"),
        ("<b>dog</b> and <i>cat</i>", "dog cat"),
        ("3 < 5 dogs and 7 > 2 cats", "cat"),
        ("a dog <not\na tag> of a cat", "dog tag cat"),
        ("dog &amp; cat", "dog cat"),
        ("a &lt;dog&gt;", "dog"),
        ("“dog”", "dog"),
        ("ﬁsh", "fish"),
        ("dog\u200bcat", ""),
        ("dog\tcat\n", "dog cat"),
        ("dog.cat", ""),
        ("Dr. Dog lives. Here is a cat.", "dog life here cat"),
        ("", ""),
        (" \n ", ""),
        ("...", ""),
        (None, "none"),
        (12345, ""),
        (["It's a bird", "two dogs"], "bird dog"),  # 'two is one word,
        (b"dog", ""),
    ],
)
def test_examples(caption, expected):
    assert names(caption) == expected.split()
    assert MINER.keys(caption) == keys_plainly(caption)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ab  c ", "ab c"),
        ("a%20b%2Bc%zz%ff", "a b c%zz\ufffd"),
        ("\n a \t b\n", "a \t b"),
        ("<a>b</a><c\nd>", "b<c\nd>"),
        ("<<a>>b", ">b"),
        ("a < b < c", "a < b < c"),
        ("sÃ£o &eacute;", "são é"),
        ("&eacute; < a", "&eacute; < a"),
    ],
)
def test_cleaning(text, expected):
    assert clean(text) == clean_anything(text) == expected


def captions():
    """Captions of all the kinds there are, and made-up ones."""
    rng = random.Random(0)
    lemmas = [lemma.replace("_", " ") for lemma in synsets.load()._keys]
    tricky = ["can't", "cannot", "wanna", "d'ye", "'tis", "more'n", "it's", "dogs'", "o'clock"]
    tricky += ["U.S.", "Dr.", "etc.", "a.m.", "J.", "--", "...", "..", ".", "!", "?!", "(", "(dog"]
    tricky += [
        "dog)",
        "[x]",
        '"',
        "''",
        "'",
        "`",
        "&amp;",
        "<b>",
        "<",
        ">",
        "%20",
        "+",
        "#1",
        "@me",
    ]
    tricky += ["1,000", "2.5", ":", ",", "dog,", "cat.)", "(cat.", "\n", "\t", "\xa0", "é", "“a”"]
    tricky += [
        "—",
        "İ",
        "犬",
        "Ã©",
        "x.y",
        "men",
        "ice_cream",
        ")'",
        "').",
        '."',
        "::",
        ",,",
        "x,1",
    ]
    for _ in range(2000):
        words = (rng.choice(tricky if rng.random() < 0.4 else lemmas) for _ in range(8))
        gaps = (rng.choice([" ", " ", " ", "", ". ", "  ", "! ", ": ", "\n"]) for _ in range(8))
        yield "".join(word + gap for word, gap in zip(words, gaps))
    # Marks and letters that the quick way takes, then all others too.
    for letters in ("abdogcatstin    .,'!?():;-&#@$%*_/019é", "dogs   .'\"!?()<>[]{}`\n\té—”«‘"):
        for _ in range(3000):
            yield "".join(rng.choices(letters, k=rng.randint(0, 25)))
    for i in range(100):
        scene = scenes.describe("train", i)
        yield from (scene.caption, scene.question, *scene.sentences)
        yield ". ".join(scene.sentences) + "."
    for file in fixtures("catlip_captions*.jsonl"):
        for line in file.read_text().splitlines():
            yield json.loads(line)["caption"]


@pytest.mark.slow
def test_the_quick_way_gives_what_the_plain_one_does():
    quick, count = 0, 0
    for caption in captions():
        assert MINER.keys(caption) == keys_plainly(caption), repr(caption)
        text = clean(caption)
        assert text == clean_anything(str(caption)), repr(caption)
        assert MINER._tokens(text) == tokens.tokenise(text), repr(caption)
        quick += not tokens._HARD.search(text)
        count += 1
    assert 0.3 * count < quick < 0.9 * count  # both ways were taken


@pytest.mark.skipif(not TARS, reason="BIG_VLP_OPENCLIPART names no folder of openclipart tars")
def test_the_quick_way_on_all_of_openclipart():
    for path in sorted(Path(TARS).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    sample = json.load(tar.extractfile(member))
                    for caption in (sample["raw_caption"], sample["keywords"], *sample["keywords"]):
                        assert MINER.keys(caption) == keys_plainly(caption), repr(caption)


def test_tables_that_are_full_start_anew(monkeypatch):
    monkeypatch.setattr(tokens, "_TABLE_SIZE", 3)
    miner = LabelMiner()
    for caption in ("a dog. A cat and a bird, a fish.", "two dogs", "a dog. A cat.") * 3:
        assert miner.keys(caption) == keys_plainly(caption)
    tables = (miner._keys, miner._tokens._last, miner._tokens._other, miner._tokens._ends)
    assert all(len(table) <= 3 for table in tables)


def test_long_words_are_not_kept():
    miner = LabelMiner()
    assert miner.keys("dog" * 50 + " cat") == keys_plainly("cat")
    assert max(map(len, miner._keys)) <= 40


def test_a_pickled_miner_is_small_and_works():
    pytest.importorskip("textblob")
    miner = LabelMiner("paper")
    miner.keys("a dog catching a frisbee")
    data = pickle.dumps(miner)
    assert len(data) < 200
    copy = pickle.loads(data)
    assert copy.mode == "paper"
    assert names("a dog catching a frisbee", copy) == ["dog", "frisbee"]


def test_the_mode_of_the_paper_keeps_nouns():
    pytest.importorskip("textblob")
    miner = LabelMiner("paper")
    assert names("a free black dog is catching two frisbees", miner) == ["dog", "frisbee"]
    assert names("", miner) == []


def test_unknown_modes_and_a_missing_tagger_are_errors(monkeypatch):
    with pytest.raises(ValueError, match="Unknown label mode 'Paper'; choose one of"):
        LabelMiner("Paper")
    monkeypatch.setattr(tagging.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'big_vlp\[pos\]'"):
        LabelMiner("paper")


def test_making_a_miner_loads_nothing():
    code = (
        "import sys; from input_pipeline.words.mining import LabelMiner; LabelMiner(); "
        "assert not {'nltk', 'punkt', 'textblob'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "unit",
    [
        "a dog and a cat ",
        "A dog ran. ",
        "<",
        "%41",
        "&amp;",
        "'",
        ".)",
        "a! ",
        "s",
        "ses",
        "é",
        "Ã©",
    ],
)
def test_a_caption_of_a_megabyte_takes_seconds(unit):
    caption = unit * (MEGABYTE // len(unit))
    started = time.monotonic()
    MINER.keys(caption)
    assert time.monotonic() - started < 30
