"""What tokenizers share: cleaning, rows of one length, and files of vocabularies, read once."""

import functools
import html
import re
import string
from collections.abc import Iterable, Sequence

import ftfy
import numpy as np
import sentencepiece
import tokenizers

from input_pipeline.checks import unicode
from input_pipeline.files.buckets import storage_path

_SPACES = re.compile(r"\s+")
_NO_PUNCTUATION = str.maketrans({"_": " "} | {c: None for c in string.punctuation if c != "_"})


def clean_text(text: str) -> str:
    """CLIP's cleaning: mends mis-decoded Unicode, unescapes HTML twice, collapses white space,
    lower-cases."""
    # Nothing to mend or unescape in plain ASCII, which most captions are; ftfy is the slow part.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _SPACES.sub(" ", text).strip().lower()


def canonicalize(text: str) -> str:
    """SigLIP's cleaning: lower-cases, drops ASCII punctuation, makes "_" and white space single
    spaces."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def check_texts(texts: Sequence[str]) -> Sequence[str]:
    """The texts themselves, valid Unicode; raises for others, and for a single string."""
    # A string is a sequence too: of its characters.
    if isinstance(texts, str):
        raise TypeError("A tokenizer takes a list of strings; put the single string in a list.")
    for text in texts:
        unicode.check(text)
    return texts


def padded(
    rows: Iterable[list[int]], num_rows: int, length: int, end_id: int, pad_id: int
) -> np.ndarray:
    """Rows of ids -> i32[num_rows, length]; what is too long is cut and ends with `end_id`."""
    tokens = np.full((num_rows, length), pad_id, np.int32)
    for i, row in enumerate(rows):
        if len(row) > length:
            row = [*row[: length - 1], end_id]
        tokens[i, : len(row)] = row
    return tokens


@functools.cache
def sentencepiece_model(path: str) -> sentencepiece.SentencePieceProcessor:
    """The model in a file."""
    return sentencepiece.SentencePieceProcessor(model_proto=storage_path(path).read_bytes())


@functools.cache
def json_tokenizer(path: str) -> tokenizers.Tokenizer:
    """The tokenizer in a tokenizer.json; ValueError where the file is none."""
    data = storage_path(path).read_bytes()
    try:
        made = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path!r} is no tokenizer.json: {error}") from error
    made.encode_special_tokens = True  # "<|end_of_text|>" in a caption is text
    return made
