"""Vocabularies of image-text models beside CLIP's and SigLIP's: SigLIP 2's and CLIPA's."""

import functools
from collections.abc import Sequence

import numpy as np
import tokenizers

from input_pipeline.files.buckets import storage_path
from input_pipeline.text.common import (
    check_texts,
    clean_text,
    json_tokenizer,
    padded,
    sentencepiece_model,
)


class Siglip2Tokenizer:
    """Gemma's vocabulary the way SigLIP 2 uses it: lower-cased text, an end-of-sentence id, which
    survives cutting, then padding.

    Args:
      path: of a tokenizer.json, or of a SentencePiece model.

    Raises:
      FileNotFoundError: there is no file at `path`.
    """

    def __init__(self, path: str):
        if not storage_path(path).is_file():
            raise FileNotFoundError(
                f"No vocabulary at {path!r}. Put Gemma's tokenizer.json or tokenizer.model there; "
                "the tokenizer's name must read 'siglip2:PATH'."
            )
        self.path = path
        self.name = f"siglip2:{path}"

    @property
    def vocab_size(self) -> int:
        if self._is_json:
            return json_tokenizer(self.path).get_vocab_size(with_added_tokens=True)
        return sentencepiece_model(self.path).get_piece_size()

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Returns i32[n, length]: ids, end of sentence, padding.

        Raises:
          ValueError: the vocabulary has no <eos> or no <pad>.
        """
        end, pad = self._special_ids()
        if self._is_json:
            made = json_tokenizer(self.path)
            encode = lambda text: made.encode(text, add_special_tokens=False).ids  # noqa: E731
        else:
            encode = sentencepiece_model(self.path).encode
        rows = ([*encode(text.lower()), end] for text in check_texts(texts))
        return padded(rows, len(texts), length, end_id=end, pad_id=pad)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row of ids; special ids are silent."""
        kept = [int(i) for i in ids if int(i) not in self._special_ids()]
        if self._is_json:
            return json_tokenizer(self.path).decode(kept)
        return sentencepiece_model(self.path).decode(kept)

    @property
    def _is_json(self) -> bool:
        return self.path.endswith(".json")

    def _special_ids(self) -> tuple[int, int]:
        if self._is_json:
            ids = [json_tokenizer(self.path).token_to_id(x) for x in ("<eos>", "<pad>")]
        else:
            model = sentencepiece_model(self.path)
            ids = [model.eos_id(), model.pad_id()]
        if None in ids or min(ids) < 0:
            raise ValueError(f"{self.path!r} lacks <eos> or <pad>: it is no vocabulary of Gemma's.")
        return ids[0], ids[1]


class WordPieceTokenizer:
    """BERT's uncased vocabulary the way CLIPA uses it (arXiv 2305.07017): cleaned text, a start id,
    pieces, zeros; no end.

    Args:
      path: of a vocab.txt.

    Raises:
      FileNotFoundError: there is no file at `path`.
    """

    def __init__(self, path: str):
        if not storage_path(path).is_file():
            raise FileNotFoundError(
                f"No vocabulary at {path!r}. Put BERT's vocab.txt there; the tokenizer's name must "
                "read 'wordpiece:PATH'."
            )
        self.path = path
        self.name = f"wordpiece:{path}"

    @property
    def vocab_size(self) -> int:
        return _word_pieces(self.path).get_vocab_size()

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Returns i32[n, length]: start, ids, zeros from the last position on, or before."""
        pieces = _word_pieces(self.path)
        start = pieces.token_to_id("[CLS]")
        encoded = (
            pieces.encode(clean_text(text), add_special_tokens=False).ids
            for text in check_texts(texts)
        )
        rows = ([start, *ids[: length - 2]] for ids in encoded)
        return padded(rows, len(texts), length, end_id=0, pad_id=0)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a row of ids; special ids are silent."""
        return _word_pieces(self.path).decode([int(i) for i in ids if int(i)])


@functools.cache
def _word_pieces(path: str) -> tokenizers.BertWordPieceTokenizer:
    lines = storage_path(path).read_text("utf-8").split("\n")
    vocabulary = {line: i for i, line in enumerate(lines) if line}
    if not {"[CLS]", "[SEP]", "[UNK]"} <= vocabulary.keys():
        raise ValueError(f"{path!r} lacks [CLS], [SEP] or [UNK]: it is no vocabulary of BERT's.")
    return tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True)
