import gzip
import html
import itertools
import json
import pathlib
import pickle
import random
import unicodedata

import ftfy
import numpy as np
import pytest
import sentencepiece

from input_pipeline.text import tokenizers, vocabularies
from tests.parity.fixtures import fixtures

CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
SOT, EOT = tokenizers.START_OF_TEXT, tokenizers.END_OF_TEXT


class PlainBpe:
    """The same tokenizer from its definition, in plain Python: slow, sharing the data only."""

    def __init__(self):
        path = pathlib.Path(tokenizers.__file__).parents[1] / "data" / "clip_bpe_merges.txt.gz"
        merges = [
            tuple(line.split()) for line in gzip.decompress(path.read_bytes()).decode().splitlines()
        ]
        self.rank = {pair: i for i, pair in enumerate(merges)}
        plain = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
        rest = [b for b in range(256) if b not in plain]
        self.symbol = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(rest)}
        singles = [self.symbol[b] for b in plain + rest]
        pieces = singles + [s + "</w>" for s in singles] + [a + b for a, b in merges]
        self.ids = {piece: i for i, piece in enumerate(pieces)}

    def words(self, text):
        def kind(char):
            if char == "\u0345" or char.isspace():
                return "skip"
            return {"L": "letter", "N": "digit"}.get(unicodedata.category(char)[0], "other")

        at = 0
        while at < len(text):
            # The original matches without regard to case: the long s is an s there.
            rest = text[at : at + 3].replace("\u017f", "s")
            suffix = next((c for c in CONTRACTIONS if rest.startswith(c)), None)
            end = at + (len(suffix) if suffix else 1)
            group = kind(text[at])
            if not suffix and group in ("letter", "other"):
                while end < len(text) and kind(text[end]) == group:
                    end += 1
            if group != "skip":
                yield text[at:end]
            at = end

    def encode(self, text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        out = []
        for word in self.words(" ".join(text.split()).lower()):
            parts = [self.symbol[b] for b in word.encode()]
            parts[-1] += "</w>"
            while True:
                ranked = [
                    (self.rank.get(pair, 1 << 30), i)
                    for i, pair in enumerate(itertools.pairwise(parts))
                ]
                best, i = min(ranked, default=(1 << 30, 0))
                if best == 1 << 30:
                    break
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            out += [self.ids[part] for part in parts]
        return out


def _random_texts(seed, count):
    """Words, contractions, digits, punctuation, markup, emoji and any assigned character."""
    rng = random.Random(seed)
    # Assigned in Unicode 3.2, so that every Unicode version in use agrees about it.
    assigned = [
        chr(c)
        for c in range(0x110000)
        if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs")
    ]
    latin = [c for c in assigned if ord(c) < 0x250]
    pieces = [
        "a photo of ",
        "dogs",
        "don't",
        "It'LL",
        "we've ",
        "'s",
        "2024",
        "½",
        "...",
        "?!",
        "</s>",
    ]
    pieces += [
        "&amp;",
        "&amp;lt;",
        "&#39;",
        "😀",
        "👩‍👧",
        "schön",
        "Ã©",
        "“q”",
        "ﬁ",
        "\n",
        "\t ",
        "  ",
        "İ",
        "ß",
    ]
    pieces += ["it'\u017f", "'\u017fa", "!\u0345?", "a\u0345b\u0345"]
    for _ in range(count):
        pools = rng.choices(
            [pieces, latin, assigned, [chr(c) for c in range(32, 127)]], k=rng.randint(1, 20)
        )
        yield "".join(rng.choice(pool) for pool in pools)


@pytest.fixture(scope="module")
def clip():
    return tokenizers.make_tokenizer("clip")


@pytest.fixture(scope="module")
def plain():
    return PlainBpe()


@pytest.mark.parametrize("path", fixtures("cosmos_*.json"), ids=lambda path: path.stem)
def test_clip_equals_reference(clip, path):
    cases = json.loads(path.read_text())["text"]["tokens"]
    tokens = clip([case["inp"] for case in cases], 77)
    np.testing.assert_array_equal(tokens, [case["ids"] for case in cases])
    assert tokens.dtype == np.int32


def test_clip_equals_plain_bpe(clip, plain):
    texts = list(_random_texts(0, 4000))
    length = 400  # Nothing is cut.
    for text, row in zip(texts, clip(texts, length)):
        ids = plain.encode(text)
        assert row.tolist() == [SOT, *ids, EOT] + [0] * (length - len(ids) - 2), repr(text)


def test_clip_equals_plain_bpe_on_very_long_text(clip, plain):
    text = " ".join(_random_texts(1, 500)) + "supercalifragilistic" * 30 + "a" * 500
    ids = plain.encode(text)
    assert len(ids) > 5000
    np.testing.assert_array_equal(clip([text], len(ids) + 2)[0], [SOT, *ids, EOT])
    np.testing.assert_array_equal(clip([text], 77)[0], [SOT, *ids[:75], EOT])


def test_texts_equal_open_clips(clip):
    """2,000 random strings: CLIP's tokens, and SigLIP's cleaning."""
    theirs = pytest.importorskip("open_clip.tokenizer", reason="the oracle is open_clip's")
    texts = [text for text in _random_texts(6, 2100) if "<|" not in text][:2000]
    assert len(texts) == 2000
    np.testing.assert_array_equal(clip(texts, 77), theirs.SimpleTokenizer()(texts).numpy())
    # SigLIP's authors neither mend Unicode nor unescape HTML, as open_clip does first.
    plain = [text for text in texts if theirs.basic_clean(text) == text.strip()]
    assert len(plain) > 800
    for text in plain:
        assert tokenizers.canonicalize(text) == theirs._clean_canonicalize(text), repr(text)


def test_siglips_ids_equal_transformers(tmp_path):
    """Of a model that is trained as T5's are."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers'")
    pytest.importorskip("google.protobuf")
    # There "_" is dropped, and "<" may begin the unknown piece.
    texts = [text for text in _random_texts(3, 800) if not {"\u2581", "_", "<"} & set(text)]
    path = _train(tmp_path / "t5", pad_id=0, eos_id=1, unk_id=2)
    theirs = transformers.SiglipTokenizer(str(path), pad_token="</s>")
    made = tokenizers.make_tokenizer(f"sentencepiece:{path}")
    for text in texts:
        ids = theirs(text, padding="max_length", max_length=32, truncation=True)["input_ids"]
        assert made([text], 32)[0].tolist() == ids, repr(text)


def test_clip_rows(clip):
    words = ["dog"] * 30
    for count in range(len(words)):
        row = clip([" ".join(words[:count])], 16)[0]
        end = min(count + 1, 15)
        assert row[0] == SOT and row[end] == EOT and (row[end + 1 :] == 0).all()
        assert not np.isin(row[1:end], [0, SOT, EOT]).any()


def test_clip_batch_equals_single(clip):
    texts = list(_random_texts(2, 50))
    np.testing.assert_array_equal(clip(texts, 32), np.concatenate([clip([t], 32) for t in texts]))
    assert clip([], 77).shape == (0, 77)


def test_text_cannot_forge_special_ids(clip):
    row = clip(["a <|endoftext|> b <|startoftext|>"], 77)[0]
    assert (row == SOT).sum() == 1 and (row == EOT).sum() == 1


def test_plain_ascii_needs_no_mending():
    rng = random.Random(3)
    for _ in range(3000):
        text = "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randint(0, 40)))
        mended = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert tokenizers.clean_text(text) == " ".join(mended.split()).lower()


def test_vocabulary(clip):
    assert clip.vocab_size == 49408 and clip.name == "clip"
    assert tokenizers._clip_bpe().get_vocab_size() == SOT


def test_pickle_carries_the_name_only(clip, sentencepiece_path):
    sp = tokenizers.make_tokenizer(f"sentencepiece:{sentencepiece_path}")
    for tokenizer in (clip, sp):
        before = tokenizer(["a small red dog"], 12)
        data = pickle.dumps(tokenizer)
        assert len(data) < 400
        copy = pickle.loads(data)
        assert copy.name == tokenizer.name
        np.testing.assert_array_equal(copy(["a small red dog"], 12), before)


def test_single_string_is_refused(clip, sentencepiece_path):
    for tokenizer in (clip, tokenizers.make_tokenizer(f"sentencepiece:{sentencepiece_path}")):
        with pytest.raises(TypeError, match="list of strings"):
            tokenizer("a cat", 77)


@pytest.mark.parametrize("name", ["clp", "sentencepiece", "sentencepiece:", "clip:x", ""])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="Unknown tokenizer"):
        tokenizers.make_tokenizer(name)


@pytest.fixture(scope="module")
def sentencepiece_path(tmp_path_factory):
    return str(_train(tmp_path_factory.mktemp("sp") / "tiny", pad_id=0, eos_id=1, unk_id=2))


def _train(prefix, **ids):
    rng = random.Random(0)
    words = [
        "a",
        "the",
        "small",
        "big",
        "red",
        "green",
        "dog",
        "cat",
        "house",
        "runs",
        "sits",
        "on",
    ]
    text = [" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(500)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_prefix=str(prefix),
        vocab_size=30,
        bos_id=-1,
        minloglevel=2,
        **ids,
    )
    return prefix.with_suffix(".model")


def test_sentencepiece_rows(sentencepiece_path):
    tokenizer = tokenizers.make_tokenizer(f"sentencepiece:{sentencepiece_path}")
    model = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_path)
    assert tokenizer.vocab_size == 30
    texts = ["the small dog", "", "a red cat sits on the green house under two big blue trees"]
    tokens = tokenizer(texts, 8)
    assert tokens.shape == (3, 8) and tokens.dtype == np.int32
    for text, row in zip(texts, tokens):
        ids = model.encode(text)[:7]
        assert row.tolist() == ids + [model.eos_id()] * (8 - len(ids))


def test_sentencepiece_canonicalises(sentencepiece_path):
    tokenizer = tokenizers.make_tokenizer(f"sentencepiece:{sentencepiece_path}")
    variants = ["the small dog", "The SMALL  dog.", " \tthe_small\n(dog)!", "the 'small' \"dog\""]
    assert len(np.unique(tokenizer(variants, 12), axis=0)) == 1
    for text in _random_texts(4, 300):
        once = tokenizers.canonicalize(text)
        assert tokenizers.canonicalize(once) == once == once.strip()


@pytest.fixture(scope="module")
def gemma_path(tmp_path_factory):
    """A tokenizer.json of Gemma's kind: bytes where the words end."""
    from tokenizers import Tokenizer, models, normalizers

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "\u2581", "a\u2581"]
    vocabulary = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocabulary, [("a", "\u2581")], unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    path = tmp_path_factory.mktemp("gemma") / "tokenizer.json"
    made.save(str(path))
    return str(path)


def test_siglip2_rows(gemma_path, sentencepiece_path):
    """Lower case, punctuation kept; one end of the sentence, also of what was cut, then padding."""
    tokenizer = tokenizers.make_tokenizer(f"siglip2:{gemma_path}")
    assert tokenizer.vocab_size == 8
    assert tokenizer(["A bA.", "", "a a a a a"], 6).tolist() == [
        [7, 5, 4, 3, 1, 0], [1, 0, 0, 0, 0, 0], [7, 7, 7, 7, 4, 1],
    ]  # fmt: skip
    of_model = tokenizers.make_tokenizer(f"siglip2:{sentencepiece_path}")
    model = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_path)
    (row,) = of_model(["The DOG"], 12)
    ids = model.encode("the dog")
    assert row.tolist() == [*ids, 1, *[0] * (11 - len(ids))]
    assert of_model.decode(row) == "the dog" and of_model.vocab_size == 30
    with pytest.raises(FileNotFoundError, match=r"No vocabulary at .*x.json"):
        tokenizers.make_tokenizer("siglip2:x.json")


def test_wordpiece_rows(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\ndog\n##s\n.\n")
    tokenizer = tokenizers.make_tokenizer(f"wordpiece:{path}")
    rows = tokenizer(["Red  DOGS.", "", "red red red red red", "\u00e9 [SEP]"], 6)
    assert rows.tolist() == [
        [2, 4, 5, 6, 7, 0], [2, 0, 0, 0, 0, 0], [2, 4, 4, 4, 4, 0], [2, 1, 1, 1, 1, 0],
    ]  # fmt: skip
    assert tokenizer.decode(rows[0]) == "red dogs." and tokenizer.vocab_size == 8
    path.write_text("red\n")
    with pytest.raises(ValueError, match="no vocabulary of BERT's"):
        vocabularies._word_pieces.__wrapped__(str(path))


def test_sentencepiece_file_problems(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No SentencePiece model at .*nowhere.model"):
        tokenizers.make_tokenizer(f"sentencepiece:{tmp_path}/nowhere.model")
    path = _train(tmp_path / "no_eos", eos_id=-1, pad_id=-1, unk_id=0)
    with pytest.raises(ValueError, match="no end-of-sentence"):
        tokenizers.make_tokenizer(f"sentencepiece:{path}")(["a"], 4)


def test_clip_decode_gives_the_words_back():
    tokenizer = tokenizers.make_tokenizer("clip")
    for text in ("a photo of a cat", "Caf\u00e9 \U0001f600 don 't"):
        ids = tokenizer([text], 20)[0]
        assert tokenizer.decode(ids) == text.lower()
    assert tokenizer.decode(tokenizer(["word " * 50], 8)[0]) == " ".join(["word"] * 6)


@pytest.mark.parametrize("text", ["half \ud800", "\udcff from a command line", "\udc00\ud800"])
def test_text_that_is_not_unicode_is_an_error(text):
    for encode in (
        lambda: tokenizers.ClipTokenizer()(["good", text], 8),
        lambda: tokenizers.make_tokenizer("llama:scenes").encode(text),
    ):
        with pytest.raises(ValueError, match=r"the text '.*\\ud.*' is not valid Unicode"):
            encode()
