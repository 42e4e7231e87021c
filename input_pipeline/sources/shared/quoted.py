"""Tables of text as pandas writes them: quoted, with line ends in fields."""

import csv
from collections.abc import Iterable


def rows(lines: Iterable[str], delimiter: str) -> list[dict[str, str]]:
    """The rows by the names in the first line; fields that a row lacks are "".

    Args:
      lines: a file that was opened with newline="", or the like: line ends are part of fields.

    Raises:
      ValueError: a quote is not closed, or a row has more fields than the first line.
    """
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True, restval="")
    try:
        found = list(reader)
    except csv.Error as error:
        raise ValueError(f"behind line {reader.line_num}: {error}") from None
    if any(None in row for row in found):
        raise ValueError("a row has more fields than the first line")
    return found
