"""Which column of a metadata table holds what, and its values.

Known are the names in LAION-400M, LAION-2B and -5B, Re-LAION, COYO-700M and DataComp, and of what
img2dataset writes; letter case does not matter.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# What a column can hold -> names under which it is known.
KNOWN = {
    "width": ("original_width", "width"),
    "height": ("original_height", "height"),
    "nsfw": ("punsafe", "nsfw_score_opennsfw2", "nsfw_score_gantman"),
    "nsfw_tag": ("nsfw",),
    "watermark": ("pwatermark", "watermark_score"),
    "similarity": (
        "similarity",
        *("clip_similarity_vitb32", "clip_similarity_vitl14"),
        *("clip_b32_similarity_score", "clip_l14_similarity_score"),
    ),
    "language": ("language", "detected_language"),
    "caption": ("text", "caption"),
    "url": ("url",),
    "id": (),  # by default a row's id is its place, as the source `table` has it
}
# Of an image before img2dataset resized it, which writes both.
_PREFERRED = {kind: KNOWN[kind][0] for kind in ("width", "height")}
# A rule may go by several columns of these.
SCORES = ("nsfw", "watermark", "similarity")


def find(kind: str, names: Sequence[str], given: Mapping[str, Sequence[str]]) -> list[str]:
    """The columns that hold something: those that were given, or else the one that is known.

    Args:
      kind: a key of `KNOWN`.
      names: of the table's columns.
      given: kind -> columns that the user named.

    Raises:
      ValueError: there is none, one is not there or there twice, or several are known.
    """
    there = f"it has {', '.join(name[:80] for name in names)}"
    found = list(given.get(kind, ()))
    if not found:
        found = [name for name in names if name.lower() in KNOWN[kind]]
        found = [name for name in found if name.lower() == _PREFERRED.get(kind)] or found
        if not found:
            known = f" (such as {', '.join(KNOWN[kind])})" if KNOWN[kind] else ""
            raise ValueError(
                f"no column is known to hold the {kind}{known}; {there}. Give --column {kind}=NAME"
            )
        if len(found) > 1:
            several = f", or several of them, by --column {kind}={found[0]} --column ..."
            raise ValueError(
                f"the {kind} may be in {' or '.join(found)}: choose one by "
                f"--column {kind}={found[0]}{several if kind in SCORES else ''}"
            )
    for name in found:
        if (times := list(names).count(name)) != 1:
            wrong = "no column" if not times else f"{times} columns"
            raise ValueError(f"it has {wrong} {name!r}; {there}")
    return found


class Rows:
    """Some rows of a table, by what their columns hold; values are read once.

    Args:
      batch: the rows.
      found: kind -> columns, as `find` gives them.
      first: number of the first row in its file, from 0.
    """

    def __init__(self, batch: pa.RecordBatch, found: Mapping[str, Sequence[str]], first: int):
        self.batch, self.first, self.found = batch, first, found
        self._texts: dict[str, pa.Array] = {}
        self._measured: dict[Callable, Any] = {}

    def __len__(self) -> int:
        return self.batch.num_rows

    def numbers(self, kind: str) -> list[np.ndarray]:
        """Floats [rows] of each column, NaN where there is no value; those of 32 bits stay so, for
        a bound that is compared with them is rounded likewise.

        Raises:
          ValueError: a value is no number.
        """
        return [_numbers(name, self._column(name)) for name in self.found[kind]]

    def text(self, kind: str) -> pa.Array:
        """Large strings [rows] of the one column, without white space at the ends; null where
        nothing is left, or bytes that are no UTF-8.

        Raises:
          ValueError: the column holds no strings.
        """
        if kind not in self._texts:
            [name] = self.found[kind]
            self._texts[kind] = _text(name, self._column(name))
        return self._texts[kind]

    def caption(self, measure: Callable[[pa.Array], Any]) -> Any:
        """What a function says of the captions; it is asked once."""
        if measure not in self._measured:
            self._measured[measure] = measure(self.text("caption"))
        return self._measured[measure]

    def _column(self, name: str) -> pa.Array:
        column = self.batch.column(name)
        return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _numbers(name: str, column: pa.Array) -> np.ndarray:
    if _is_string(column.type):
        column = _text(name, column)
    kind = column.type if pa.types.is_floating(column.type) else pa.float64()
    try:
        values = pc.cast(column, kind, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"column {name!r} holds no numbers: {error}") from None
    return values.to_numpy(zero_copy_only=False)


def _text(name: str, column: pa.Array) -> pa.Array:
    if pa.types.is_integer(column.type):  # ids
        column = column.cast(pa.string())
    if not (_is_string(column.type) or pa.types.is_null(column.type)):
        raise ValueError(f"column {name!r} holds {column.type} where strings are expected")
    column = column.cast(pa.large_binary()).cast(pa.large_string(), safe=False)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        column = pa.array(map(_decoded, column.cast(pa.large_binary())), pa.large_string())
    column = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(pc.binary_length(column), 0), None, column)


def _decoded(value: pa.Scalar) -> str | None:
    try:
        return None if value.as_py() is None else value.as_py().decode()
    except UnicodeDecodeError:
        return None


def _is_string(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )
