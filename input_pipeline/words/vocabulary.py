"""The classes of CatLIP: synsets by how often captions name them.

A vocabulary is a text file, one synset per line, the most frequent first; a synset's place in it is
its class. `python -m input_pipeline.vocabulary` builds one, see `words.command`.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from input_pipeline.files import pickles
from input_pipeline.files.buckets import storage_path
from input_pipeline.files.whole import write_whole
from input_pipeline.words import synsets

_COLUMNS = "# key\tcount\tname"
_MODE, _FIELDS = "# mode: ", "# caption fields: "


class Vocabulary:
    """Synsets in the order of their classes.

    Attributes:
      keys: e.g. "n2084071"; class i is keys[i].
      counts: how often each occurred in the captions.
      names: e.g. "dog.n.01".
      caption_fields: fields of the captions that were counted; None where that is not known, as in
        files of the reference and in those written before it was recorded.
      mode: of the label miner that counted; None likewise.

    Raises:
      ValueError: there is none, one is there twice, is none of WordNet 3.0, or counts rise.
    """

    def __init__(
        self,
        keys: Sequence[str],
        counts: Sequence[int],
        caption_fields: Sequence[str] | None = None,
        mode: str | None = None,
    ):
        self.keys, self.counts = tuple(keys), tuple(counts)
        self.caption_fields = None if caption_fields is None else tuple(caption_fields)
        self.mode = mode
        nouns = synsets.load()
        for key in self.keys:
            if key not in nouns:
                raise ValueError(
                    f"{key!r} is no noun of WordNet {synsets.VERSION}: this vocabulary is of "
                    "another one. (A key is n and the offset, without leading zeros.)"
                )
        if not self.keys:
            raise ValueError("The vocabulary is empty.")
        self._index = {key: i for i, key in enumerate(self.keys)}
        if len(self._index) < len(self.keys):
            twice = next(key for i, key in enumerate(self.keys) if self._index[key] != i)
            raise ValueError(f"The vocabulary has {twice} twice.")
        for before, after in itertools.pairwise(self.counts):
            if after > before:
                raise ValueError(f"The most frequent must come first; {before} is before {after}.")
        self.names = tuple(nouns.name(key) for key in self.keys)

    @classmethod
    def load(cls, path: str | os.PathLike, size: int | None = None) -> "Vocabulary":
        """Reads a file that this module, or the reference, has written.

        Args:
          path: text, or a pickle of {key: count} (ends in .pkl, or begins like one). Nothing that
            is stored in a pickle is executed: it may hold a dict of str and int only.
          size: keeps only so many of the first, if there are more.

        Raises:
          FileNotFoundError: there is no such file.
          PathError: it is a URL that cannot be read.
          ValueError: it is malformed, or as the class says.
        """
        if size is not None and size < 1:
            raise ValueError(f"size={size}: keep at least one class of {path}.")
        file = storage_path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"There is no vocabulary {path}. `python -m input_pipeline.vocabulary` makes one."
            )
        data = file.read_bytes()
        is_pickle = file.suffix in (".pkl", ".pickle") or data.startswith(b"\x80")
        try:
            rows = _read_pickle(data) if is_pickle else _read_text(data)
            origin = {} if is_pickle else _read_origin(data)
            keys, counts = [key for key, _, _ in rows], [count for _, count, _ in rows]
            vocabulary = cls(keys, counts, **origin)
            for (key, _, name), expected in zip(rows, vocabulary.names):
                if name not in (expected, None):
                    raise ValueError(
                        f"{key} is {expected} in WordNet {synsets.VERSION}, not {name}: this "
                        "vocabulary is of another one."
                    )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return vocabulary if size is None else cls(keys[:size], counts[:size], **origin)

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.keys)

    def labels(self, keys: Iterable[str]) -> list[int]:
        """Classes of the keys that are in the vocabulary, ascending, each once."""
        return sorted({self._index[key] for key in keys if key in self._index})

    def fingerprint(self) -> str:
        """16 hex digits of the keys in their order: equal ones, equal classes."""
        return hashlib.sha256("\n".join(self.keys).encode()).hexdigest()[:16]

    def write(self, path: Path | epath.Path, comments: Sequence[str]) -> None:
        """Writes the text file; `comments` are its first lines."""
        lines = [f"# {comment}" for comment in comments]
        if self.mode is not None:
            lines.append(f"{_MODE}{self.mode}")
        if self.caption_fields is not None:
            lines.append(_FIELDS + json.dumps(self.caption_fields))
        lines.append(_COLUMNS)
        rows = zip(self.keys, self.counts, self.names)
        lines += [f"{key}\t{count}\t{name}" for key, count, name in rows]
        write_whole(path, ("\n".join(lines) + "\n").encode("ascii"))


def _read_text(data: bytes) -> list[tuple[str, int, str]]:
    """(key, count, name) of every line."""
    rows = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if line.startswith("#"):
            continue
        key, *rest = line.split("\t")
        if len(rest) != 2 or not (rest[0].isascii() and rest[0].isdecimal()):
            raise ValueError(f"line {number} is not KEY, COUNT, NAME between tabs: {line[:80]!r}")
        rows.append((key, int(rest[0]), rest[1]))
    return rows


def _read_origin(data: bytes) -> dict[str, Any]:
    """What the first lines say of the captions that were counted: arguments of `Vocabulary`."""
    origin: dict[str, Any] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not line.startswith("#"):
            break
        if line.startswith(_MODE):
            origin["mode"] = line.removeprefix(_MODE).split(";")[0].strip()
        elif line.startswith(_FIELDS):
            try:
                fields = json.loads(line.removeprefix(_FIELDS))
            except ValueError:
                fields = None
            if not (fields and isinstance(fields, list) and all(type(f) is str for f in fields)):
                raise ValueError(
                    f"line {number}: {line!r} must hold a JSON list of names of caption fields, "
                    f'such as {_FIELDS}["caption"]'
                )
            origin["caption_fields"] = fields
    return origin


def _read_pickle(data: bytes) -> list[tuple[str, int, None]]:
    """(key, count, no name) of every item, in the order of the dict."""
    counts = pickles.load(data)
    if type(counts) is not dict or not all(
        type(key) is str and type(count) is int for key, count in counts.items()
    ):
        raise ValueError("this pickle does not hold a dict of str and int.")
    return [(key, count, None) for key, count in counts.items()]
