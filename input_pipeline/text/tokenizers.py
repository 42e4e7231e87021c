"""Text -> token ids: CLIP's byte-level BPE, SentencePiece models as SigLIP or LLaMA use them,
Gemma's vocabulary as SigLIP 2 uses it, BERT's as CLIPA does, and Llama 3's tokenizer.json.

A tokenizer object holds a name only; the vocabulary is loaded on first use, once per process, so
pickling one for a loader worker costs nothing. Text that is not valid Unicode is a ValueError.
"""

import functools
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers

from input_pipeline.checks import unicode
from input_pipeline.files.buckets import storage_path
from input_pipeline.text.common import (
    canonicalize,
    check_texts,
    clean_text,
    json_tokenizer,
    padded,
    sentencepiece_model,
)
from input_pipeline.text.vocabularies import Siglip2Tokenizer, WordPieceTokenizer

START_OF_TEXT = 49406
END_OF_TEXT = 49407

_DATA = Path(__file__).parents[1] / "data"
_MERGES = _DATA / "clip_bpe_merges.txt.gz"
# Of the embedded scenes, made by `python -m input_pipeline.train_tokenizer`.
_SCENES_MODEL = _DATA / "scenes_llama.model"
# Contractions, runs of letters, single digits, runs of anything else; white space is dropped. So is
# U+0345: the original matches case-insensitively, where that mark counts as neither kind.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))  # Latin-1 bytes


def make_tokenizer(name: str):
    """The tokenizer of that name.

    "clip"; "sentencepiece:PATH" and "llama:PATH" with the path of a .model file, used as SigLIP or
    as LLaMA does; "siglip2:PATH" with that of Gemma's tokenizer.json or .model file;
    "wordpiece:PATH" with that of BERT's vocab.txt; "llama:scenes" with the embedded model for the
    source `scenes`; "llama3:PATH" with the path of Llama 3's tokenizer.json. A PATH may be the URL
    of a file in a bucket.

    Raises:
      ValueError: the name is unknown; PathError: the URL cannot be read.
      FileNotFoundError: there is no file at PATH.
    """
    if name == "clip":
        return ClipTokenizer()
    kind, _, path = name.partition(":")
    if kind == "sentencepiece" and path:
        return SentencePieceTokenizer(path)
    if kind == "siglip2" and path:
        return Siglip2Tokenizer(path)
    if kind == "wordpiece" and path:
        return WordPieceTokenizer(path)
    if kind == "llama" and path:
        return LlamaTokenizer(path)
    if kind == "llama3" and path:
        return Llama3Tokenizer(path)
    raise ValueError(
        f"Unknown tokenizer {name!r}; use 'clip', 'sentencepiece:PATH', 'siglip2:PATH', "
        "'wordpiece:PATH', 'llama:PATH', 'llama:scenes' or 'llama3:PATH'."
    )


class ClipTokenizer:
    """OpenAI CLIP's lower-casing byte-level BPE.

    Text never yields the two special ids: the literal "<|endoftext|>" in a caption is tokenized
    like any other characters (OpenAI's code would end the caption there).
    """

    name = "clip"
    vocab_size = END_OF_TEXT + 1

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Returns i32[n, length]: start of text, ids, end of text, zeros. Text that is too long is
        cut and still ends with end of text."""
        bpe = _clip_bpe()
        ids = (bpe.encode(clean_text(text)).ids for text in check_texts(texts))
        rows = ([START_OF_TEXT, *row, END_OF_TEXT] for row in ids)
        return padded(rows, len(texts), length, end_id=END_OF_TEXT, pad_id=0)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row of ids, cleaned and with a space after every word."""
        bpe, symbols = _clip_bpe(), _byte_symbols()
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(END_OF_TEXT)] if END_OF_TEXT in ids else ids
        pieces = "".join(bpe.id_to_token(i) for i in ids if i < START_OF_TEXT)
        to_byte = dict(zip(symbols, _bytes_in_id_order()))
        words = pieces.split("</w>")
        return " ".join(
            bytes(to_byte[c] for c in word).decode("utf-8", "replace") for word in words
        ).strip()


class SentencePieceTokenizer:
    """A SentencePiece model used the way SigLIP's released tokenizers use theirs.

    Text is lower-cased and stripped of ASCII punctuation. (The authors' training pipeline only
    lower-cases; their zero-shot prompts and the published ports of the weights are canonicalised
    like this.) The end-of-sentence id is appended, survives cutting and fills the padding, because
    SigLIP reads the text feature at the last position.

    Raises:
      FileNotFoundError: there is no file at `path`.
    """

    def __init__(self, path: str):
        if not storage_path(path).is_file():
            raise FileNotFoundError(
                f"No SentencePiece model at {path!r}. Put the .model file there, or correct the "
                "tokenizer name, which must read 'sentencepiece:PATH'."
            )
        self.path = path
        self.name = f"sentencepiece:{path}"

    @property
    def vocab_size(self) -> int:
        return sentencepiece_model(self.path).get_piece_size()

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Returns i32[n, length]: ids, then end-of-sentence ids up to `length`.

        Raises:
          ValueError: the model has no end-of-sentence piece.
        """
        model = sentencepiece_model(self.path)
        end_id = model.eos_id()
        if end_id < 0:
            raise ValueError(f"The SentencePiece model {self.path!r} has no end-of-sentence piece.")
        rows = ([*model.encode(canonicalize(text)), end_id] for text in check_texts(texts))
        return padded(rows, len(texts), length, end_id=end_id, pad_id=end_id)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row of ids."""
        return sentencepiece_model(self.path).decode([int(i) for i in ids])


class LlamaTokenizer:
    """A SentencePiece model used the way LLaMA and Vicuna use theirs.

    Text is taken as it is: case, spaces and line ends survive. Every piece of text that is encoded
    by itself begins with a space of its own ("\u2581"); digits are single tokens; what the
    vocabulary lacks becomes bytes. Special ids are added by whoever lays out the tokens, and text
    never yields them ("</s>" in a caption is four or more ordinary tokens).

    Args:
      path: of the .model file, or "scenes" for the embedded one.

    Raises:
      FileNotFoundError: there is no file at `path`.
    """

    def __init__(self, path: str):
        self.path = str(_SCENES_MODEL) if path == "scenes" else path
        if not storage_path(self.path).is_file():
            raise FileNotFoundError(
                f"No SentencePiece model at {path!r}. Put LLaMA's or Vicuna's tokenizer.model "
                "there, or make one with `python -m input_pipeline.train_tokenizer`; the "
                "tokenizer's name must read 'llama:PATH'."
            )
        self.name = f"llama:{path}"

    @property
    def vocab_size(self) -> int:
        return self._model.get_piece_size()

    @property
    def bos_id(self) -> int:
        return self._special("bos", self._model.bos_id())

    @property
    def eos_id(self) -> int:
        return self._special("eos", self._model.eos_id())

    @property
    def pad_id(self) -> int:
        """That of the unknown piece where the model has no padding, as in LLaMA: 0."""
        pad_id = self._model.pad_id()
        return self._model.unk_id() if pad_id < 0 else pad_id

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ones; none for an empty text."""
        unicode.check(text)
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids: exactly what was encoded. Special ids are silent; an id that the model
        lacks (networks may have more outputs) counts as the unknown piece."""
        model = self._model
        # A model says -1 of what it has not.
        silent = {model.bos_id(), model.eos_id(), model.pad_id()} - {-1}
        ids = [int(i) for i in ids if int(i) not in silent]
        return model.decode([i if 0 <= i < self.vocab_size else model.unk_id() for i in ids])

    @property
    def _model(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece_model(self.path)

    def _special(self, kind: str, id_: int) -> int:
        if id_ < 0:
            raise ValueError(
                f"The SentencePiece model {self.path!r} has no {kind} piece, which LLaMA's have."
            )
        return id_


class Llama3Tokenizer(LlamaTokenizer):
    """Llama 3's byte-level BPE, with the same interface.

    Text that is encoded by itself gets no space in front; what reads like a special token is
    ordinary text. Padding is the id that CogVLM2 uses, its first reserved one.

    Args:
      path: of a tokenizer.json.

    Raises:
      FileNotFoundError: there is no file at `path`.
    """

    def __init__(self, path: str):
        self.path = path
        if not storage_path(path).is_file():
            raise FileNotFoundError(
                f"No tokenizer.json at {path!r}. Put Llama 3's there; the tokenizer's name must "
                "read 'llama3:PATH'."
            )
        self.name = f"llama3:{path}"

    @property
    def vocab_size(self) -> int:
        return self._model.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int:
        return self._id_of("<|begin_of_text|>")

    @property
    def eos_id(self) -> int:
        return self._id_of("<|end_of_text|>")

    @property
    def pad_id(self) -> int:
        return self._id_of("<|reserved_special_token_0|>")

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ones; none for an empty text."""
        unicode.check(text)
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ids, and those that the vocabulary lacks, are silent."""
        known = [int(i) for i in ids if 0 <= int(i) < self.vocab_size]
        return self._model.decode(known, skip_special_tokens=True)

    @property
    def _model(self) -> tokenizers.Tokenizer:
        return json_tokenizer(self.path)

    def _id_of(self, token: str) -> int:
        found = self._model.token_to_id(token)
        if found is None:
            raise ValueError(f"{self.path!r} lacks {token!r}: it is no tokenizer of Llama 3.")
        return found


@functools.cache
def _clip_bpe() -> tokenizers.Tokenizer:
    with gzip.open(_MERGES, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file]
    # The order of the pieces defines the ids: bytes, bytes that end a word, merges in order.
    symbols = _byte_symbols()
    pieces = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges)]
    bpe = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=merges,
            end_of_word_suffix="</w>",
        )
    )
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(
                tokenizers.Regex(_WORDS), behavior="removed", invert=True
            ),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return bpe


def _byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes, in id order: the bytes that are printable
    Latin-1 stand for themselves, the others are mapped to characters from 256 on."""
    shifted = iter(range(256, 512))
    return [chr(b) if b in _PRINTABLE else chr(next(shifted)) for b in _bytes_in_id_order()]


def _bytes_in_id_order() -> list[int]:
    return [*_PRINTABLE, *(b for b in range(256) if b not in _PRINTABLE)]
