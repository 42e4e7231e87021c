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
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from input_pipeline.checks import unicode
from input_pipeline.files import listing

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
        return pa.csv.read_csv(file, **_options(file, columns, pa.large_string()))
    except pa.ArrowInvalid as error:
        raise ValueError(_first_fault(file) or str(error)) from None


def open_rows(file: Path) -> Any:
    """Arrow's reader of all columns, as large strings, a block of the file after the other.

    Raises:
      ValueError: as `load`; of later blocks when they are read, in Arrow's words.
    """
    _check_quotes(file)
    return pa.csv.open_csv(file, **_options(file, column_names(file), pa.large_string()))


def check_rows(file: Path, key: str) -> None:
    """Reads all of a .csv for fields of several lines, one of which is a row of the table itself:
    two stray quotes, far apart, enclose all that lies between them.

    A line counts as a row if it has as many fields, and in the place of column `key` a URL, a file
    name of the same ending as the row's own or of another image, or a number like it.

    Raises:
      ValueError: names the row.
    """
    if DELIMITERS[file.suffix] != ",":
        return
    names, first = column_names(file), 0
    options = _options(file, names, pa.large_binary())  # other columns may hold anything
    options["convert_options"].include_columns = []  # all, also those of equal names
    with pa.csv.open_csv(file, **options) as reader:
        for batch in reader:
            keys = batch.column(names.index(key))
            for place, column in enumerate(batch.columns):
                suspects = pc.match_substring_regex(column, "[\n\r](?s:.*),|,(?s:.*)[\n\r]")
                for row in np.flatnonzero(suspects.to_numpy(zero_copy_only=False)).tolist():
                    field, own = (v[row].as_py().decode(errors="replace") for v in (column, keys))
                    lines = re.split("\r\n|\n|\r", field)
                    line = _find_row(lines, place, names, key, own)
                    if line is not None:
                        raise ValueError(
                            f"row {first + row} (counted from 0, as in ids), column "
                            f"{names[place]!r}: the field goes over {len(lines)} lines, of which "
                            f"{line!r} looks like a row of the table. {_REMEDY}"
                        )
            first += batch.num_rows


def _find_row(
    lines: Sequence[str], place: int, names: Sequence[str], key: str, own: str
) -> str | None:
    """The first line of a field in column `place` that seems to be, or to be part of, a row."""
    width, last = len(names), len(lines) - 1
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
    ending = Path(key).suffix.lower()
    if not ending:
        return key.strip().isdecimal() and value.strip().isdecimal()
    found = Path(value).suffix.lower()
    return found == ending or {found[1:], ending[1:]} <= set(listing.IMAGE_EXTENSIONS)


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


def _options(file: Path, columns: Sequence[str], kind: pa.DataType) -> dict[str, Any]:
    quoted = DELIMITERS[file.suffix] == ","
    return {
        "read_options": pa.csv.ReadOptions(block_size=_BLOCK_BYTES),
        "parse_options": pa.csv.ParseOptions(
            delimiter=DELIMITERS[file.suffix],
            quote_char='"' if quoted else False,
            double_quote=quoted,
            newlines_in_values=quoted,
        ),
        "convert_options": pa.csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, kind),
            strings_can_be_null=False,
        ),
    }


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
