"""Vocabularies as files: what is read, what is refused, what it costs."""

import os
import pickle
import time

import pytest

from input_pipeline.words import synsets
from input_pipeline.words.vocabulary import Vocabulary

WORDS = ["image", "stock", "black", "free", "white", "design", "set", "woman", "template", "home"]
KEYS = [synsets.load().key_of(word) for word in WORDS]
COUNTS = list(range(52, 42, -1))
LINES = "".join(f"{k}\t{c}\t{w}.n.01\n" for k, c, w in zip(KEYS, COUNTS, WORDS))


@pytest.fixture
def file(tmp_path):
    """Writes a vocabulary file of text, bytes, or an object to be pickled."""

    def write(contents, name="words.tsv"):
        path = tmp_path / name
        if isinstance(contents, str):
            path.write_text(contents)
        else:
            path.write_bytes(contents if isinstance(contents, bytes) else pickle.dumps(contents))
        return path

    return write


def test_what_was_written_is_read(tmp_path):
    Vocabulary(KEYS, COUNTS).write(tmp_path / "words.tsv", ["one", "two"])
    text = (tmp_path / "words.tsv").read_text()
    assert text == "# one\n# two\n# key\tcount\tname\n" + LINES
    read = Vocabulary.load(tmp_path / "words.tsv")
    assert read.keys == tuple(KEYS) and read.counts == tuple(COUNTS)
    assert read.names == tuple(f"{word}.n.01" for word in WORDS)
    assert len(read) == 10


def test_the_test_vector_of_the_reference(file):
    from input_pipeline.words.mining import LabelMiner

    labels = Vocabulary.load(file(LINES)).labels(LabelMiner().keys("An image of black dog."))
    assert labels == [0, 2]  # its multi-hot vector is [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_classes():
    words = Vocabulary(KEYS, COUNTS)
    assert [words.labels([key]) for key in KEYS] == [[i] for i in range(10)]
    assert words.labels([KEYS[7], "n2084071", KEYS[0], KEYS[7]]) == [0, 7]
    assert words.labels([]) == []


def test_a_part_of_the_classes(file):
    words = Vocabulary.load(file(LINES), size=3)
    assert words.keys == tuple(KEYS[:3]) and words.counts == (52, 51, 50)
    assert len(Vocabulary.load(file(LINES), size=99)) == 10
    with pytest.raises(ValueError, match="size=0: keep at least one class"):
        Vocabulary.load(file(LINES), size=0)


def test_the_fingerprint_is_that_of_the_classes(file):
    words = Vocabulary(KEYS, COUNTS)
    assert words.fingerprint() == Vocabulary(KEYS, [1] * 10).fingerprint()
    assert words.fingerprint() == Vocabulary.load(file(LINES)).fingerprint()
    others = [Vocabulary(KEYS[::-1], COUNTS), Vocabulary(KEYS[:9], COUNTS[:9])]
    assert len({words.fingerprint(), *(other.fingerprint() for other in others)}) == 3


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_reference_s_pickles(file, protocol):
    data = pickle.dumps(dict(zip(KEYS, COUNTS)), protocol)
    words = Vocabulary.load(file(data, "words.pkl"))
    assert words.keys == tuple(KEYS) and words.counts == tuple(COUNTS)
    if protocol >= 2:
        assert Vocabulary.load(file(data, "words.bin")).keys == words.keys


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


class Text(str):
    pass


@pytest.mark.parametrize(
    "contents",
    [
        {KEYS[0]: Trap()},
        Trap(),
        {KEYS[0]: 1.5},
        {KEYS[0]: True},
        {KEYS[0]: None},
        {1: 2},
        {Text(KEYS[0]): 1},
        [KEYS[0]],
        KEYS[0],
        pickle.dumps({KEYS[0]: 1})[:-4],
        b"\x80",
        b"",
        b"not a pickle",
        b"\x80\x04Pelsewhere\n.",
    ],
)
def test_pickles_of_anything_else_are_refused_and_do_nothing(file, contents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(contents, str):
        contents = pickle.dumps(contents)
    with pytest.raises(ValueError, match=r"words.pkl: this pickle (cannot be read|does not hold)"):
        Vocabulary.load(file(contents, "words.pkl"))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("# only\n# comments\n", "empty"),
        (LINES + "n2084071\t1\n", "line 11 is not KEY, COUNT, NAME"),
        (LINES + "n2084071\tx\tdog.n.01\n", "line 11 is not"),
        (LINES + "n2084071\t-1\tdog.n.01\n", "line 11 is not"),
        (LINES + "\n", "line 11 is not"),
        (LINES + "n2084071 1 dog.n.01\n", "line 11 is not"),
        (LINES + "n2084071\t1\tdog.n.02\n", "n2084071 is dog.n.01 in WordNet 3.0, not dog.n.02"),
        (LINES + "n2086723\t1\tdog.n.01\n", "'n2086723' is no noun of WordNet 3.0"),  # 3.1's
        (LINES + "n02084071\t1\tdog.n.01\n", "'n02084071' is no noun.*without leading zeros"),
        (LINES + f"{KEYS[4]}\t1\twhite.n.01\n", f"has {KEYS[4]} twice"),
        (LINES + "n2084071\t99\tdog.n.01\n", "most frequent must come first; 43 is before 99"),
    ],
)
def test_malformed_files_are_one_clear_error(file, text, message):
    with pytest.raises(ValueError, match=rf"words.tsv: .*{message}"):
        Vocabulary.load(file(text))


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m input_pipeline"):
        Vocabulary.load(tmp_path / "words.tsv")


def test_size_and_speed_of_one_as_large_as_the_published(tmp_path):
    nouns = synsets.load()
    keys = [key for lemma, key in nouns._keys.items() if key and "_" not in lemma][:24_320]
    counts = range(60_000, 60_000 - len(keys), -1)
    Vocabulary(keys, counts).write(tmp_path / "words.tsv", [])
    started = time.monotonic()
    words = Vocabulary.load(tmp_path / "words.tsv")
    copy = pickle.loads(pickle.dumps(words))
    assert time.monotonic() - started < 2
    assert copy.keys == words.keys and copy.labels(keys[5:3:-1]) == [4, 5]
