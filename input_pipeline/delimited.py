"""CSV and TSV files, with the quoting that each has, and where in them a fault lies.

A .csv is RFC 4180's: a field may be quoted, and then hold commas, line ends and doubled quotes; a
quote within a field that does not begin with one is an ordinary character. A .tsv has no quoting,
as caption sets are published: what stands between two tabs is the field, quotes and backslashes
included. All fields are text, as written: "007", "NA" and "" stay what they are.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from input_pipeline import unicode

DELIMITERS = {".csv": ",", ".tsv": "\t"}

# A row must fit into one block, and fewer blocks make random access faster.
_BLOCK_BYTES = 64 * 2**20
_REMEDY = (
    "Double the quotes within fields and quote these, or write the table as .tsv, which takes "
    "fields as they are, or as .parquet"
)
_QUOTE, _LINE_ENDS, _MARK = ord('"'), (ord("\n"), ord("\r")), b"\xef\xbb\xbf"


def column_names(file: Path) -> list[str]:
    """The fields of the first line.

    Raises:
      ValueError: there is none, or it is no UTF-8.
    """
    for line, names in _rows(file):
        if not unicode.is_valid("".join(names)):
            raise ValueError(f"line {line}: invalid UTF8 data")
        return names
    raise ValueError("it is empty")


def load(file: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns, as large strings.

    Raises:
      ValueError: names the line of a row that has more or fewer fields than the first or is no
        UTF-8, or of a quote that is not closed.
    """
    _check_quotes(file)
    try:
        return pa.csv.read_csv(
            file,
            pa.csv.ReadOptions(block_size=_BLOCK_BYTES),
            _parse_options(file),
            pa.csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.large_string()),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(_first_fault(file) or str(error)) from None


def check_fields(file: Path, table: pa.Table, columns: Sequence[str], key: str) -> None:
    """Looks at fields of several lines for lines that are rows of a .csv themselves: two stray
    quotes, far apart, enclose all that lies between them.

    A line counts as a row if it has as many fields, and in the place of column `key` a URL, or a
    file name of the same ending as the row's own.

    Raises:
      ValueError: names the row.
    """
    if DELIMITERS[file.suffix] != ",":
        return
    names = column_names(file)
    for column in columns:
        suspects = pc.match_substring_regex(table[column], "[\n\r](?s:.*),|,(?s:.*)[\n\r]")
        for row in np.flatnonzero(suspects.to_numpy()).tolist():
            lines = re.split("\r\n|\n|\r", table[column][row].as_py())
            line = _find_row(lines, names, column, key, table[key][row].as_py())
            if line is not None:
                raise ValueError(
                    f"row {row} (counted from 0, as in ids), column {column!r}: the field goes "
                    f"over {len(lines)} lines, of which {line!r} looks like a row of the table. "
                    f"{_REMEDY}"
                )


def _find_row(
    lines: Sequence[str], names: Sequence[str], column: str, key: str, own: str
) -> str | None:
    """The first of a field's lines that seems to be, or to end or begin, another row."""
    place, width, last = names.index(column), len(names), len(lines) - 1
    for number, line in enumerate(lines):
        # The first line begins, and the last one ends, with the field itself.
        start, end = 0 if number else place, width if number < last else place + 1
        cells, index = line.split(","), names.index(key) - start
        if len(cells) == end - start and 0 <= index < len(cells) and _alike(cells[index], own):
            return line
    return None


def _alike(value: str, key: str) -> bool:
    """Whether a field might stand in the column of this URL or file name."""
    if " " in value.strip() and " " not in key:
        return False
    if "://" in key:
        return "://" in value
    return bool(Path(key).suffix) and Path(value).suffix.lower() == Path(key).suffix.lower()


def _check_quotes(file: Path) -> None:
    """Reads all of a .csv for quotes that are never closed, or are followed by something else than
    the next field: many rows would become one field.

    Raises:
      ValueError: names the line where the quoted field begins.
    """
    if DELIMITERS[file.suffix] == "," and file.stat().st_size:
        data = np.memmap(file, np.uint8, "r")
        if not _all_paired(data):
            _check_one_by_one(data)


def _parse_options(file: Path) -> pa.csv.ParseOptions:
    quoted = DELIMITERS[file.suffix] == ","
    return pa.csv.ParseOptions(
        delimiter=DELIMITERS[file.suffix],
        quote_char='"' if quoted else False,
        double_quote=quoted,
        newlines_in_values=quoted,
    )


def _first_fault(file: Path) -> str:
    """The line, and what is wrong with it, of the first row that is no row; "" if all are."""
    expected = 0
    for line, row in _rows(file):
        expected = expected or len(row)
        if len(row) != expected:
            hint = ""
            if DELIMITERS[file.suffix] == "\t":
                hint = (
                    ". A .tsv has no quoting: fields hold neither tabs nor line ends; write such a "
                    "table as .csv or .parquet"
                )
            return f"line {line}: Expected {expected} columns, got {len(row)}{hint}"
        if not unicode.is_valid("".join(row)):
            return f"line {line}: invalid UTF8 data"
    return ""


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of every row that is not empty."""
    quoting = csv.QUOTE_MINIMAL if DELIMITERS[file.suffix] == "," else csv.QUOTE_NONE
    csv.field_size_limit(2**31 - 1)
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter=DELIMITERS[file.suffix], quoting=quoting)
        first = 1
        for row in reader:
            if row:
                yield first, row
            first = reader.line_num + 1


def _all_paired(data: np.ndarray) -> bool:
    """Whether quotes open at the beginning of a field and close at the end of one, in turn.

    The two of a doubled quote close and open again.
    """
    count = 0
    for first in range(0, len(data), _BLOCK_BYTES):
        quotes = first + np.flatnonzero(data[first : first + _BLOCK_BYTES] == _QUOTE)
        opening = (np.arange(len(quotes)) + count) % 2 == 0
        count += len(quotes)
        neighbours = np.where(opening, quotes - 1, quotes + 1)
        inside = (neighbours >= 0) & (neighbours < len(data))
        values = np.where(inside, data[np.clip(neighbours, 0, len(data) - 1)], ord("\n"))
        if not np.isin(values, (_QUOTE, ord(","), *_LINE_ENDS)).all():
            return False
    return count % 2 == 0


def _check_one_by_one(data: np.ndarray) -> None:
    """As `_check_quotes`, where quotes are part of fields that are not quoted, too."""
    ends = (ord(","), *_LINE_ENDS)
    begin = len(_MARK) if data[: len(_MARK)].tobytes() == _MARK else 0
    opened, skip = -1, -1
    for first in range(0, len(data), _BLOCK_BYTES):
        quotes = first + np.flatnonzero(data[first : first + _BLOCK_BYTES] == _QUOTE)
        for place in quotes.tolist():
            after = data[place + 1] if place + 1 < len(data) else ends[-1]
            if place == skip:
                pass  # the second of a doubled one
            elif opened < 0:
                if place == begin or data[place - 1] in ends:
                    opened = place
            elif after == _QUOTE:
                skip = place + 1
            elif after in ends:
                opened = -1
            else:
                _fail(data, opened, f"closes before {chr(after)!r} in line {_line(data, place)}")
    if opened >= 0:
        _fail(data, opened, "is never closed")


def _fail(data: np.ndarray, opened: int, what: str) -> None:
    raise ValueError(f"line {_line(data, opened)}: the quote that begins a field {what}. {_REMEDY}")


def _line(data: np.ndarray, place: int) -> int:
    parts = range(0, place, _BLOCK_BYTES)
    return 1 + sum(np.count_nonzero(data[i : min(place, i + _BLOCK_BYTES)] == 10) for i in parts)
