"""Text as data sets hold it: what is valid, and how it is read from bytes.

Text is Unicode. Bytes that are no UTF-8, and the half of a surrogate pair that a JSON escape can
smuggle in, stand for no character, so no tokenizer can take them: they are an error that names the
record, and `prepare` drops and lists such a record; nothing is replaced. Names of files and of tar
members need not be text: in ids they are written with escapes, see `escaped`.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_valid(text: str) -> bool:
    """Whether every character of a string is one: none is half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check(value: Any, name: str = "") -> None:
    """Checks all strings within a plain value, keys included; `name` is what it is called.

    Raises:
      ValueError: one is not valid Unicode, with the way to it: "captions.caption[2]".
    """
    if isinstance(value, str):
        if not is_valid(value):
            where = f"{name}: " if name else ""
            raise ValueError(f"{where}the text {value!r} is not valid Unicode")
    elif isinstance(value, dict):
        for key, item in value.items():
            check(key, name)
            check(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            check(item, f"{name}[{number}]")


def decode(data: bytes) -> str:
    """UTF-8, with or without a byte order mark.

    Raises:
      ValueError: it is something else.
    """
    return data.decode("utf-8-sig")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8.

    Raises:
      ValueError: it is something else.
    """
    try:
        return decode(path.read_bytes()).splitlines()
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None


def parse_json(data: bytes) -> Any:
    """The value of a JSON file, in any UTF; NaN and infinities, which pandas writes, are null.

    Raises:
      ValueError: it is no JSON, or a string in it is not valid Unicode.
    """
    # json.loads would let halves of surrogate pairs pass that the bytes spell out.
    content = data.decode(json.detect_encoding(data))
    try:
        value = json.loads(content, parse_constant=lambda _: None)
        if _ESCAPED_SURROGATE.search(content):
            check(value)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None
    return value


def escaped(name: str) -> str:
    r"""A file's name as text: bytes that are no UTF-8, which Python reads as halves of surrogate
    pairs, are written as "\xe9"."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def escape_output() -> None:
    """Lets the standard streams print any string: what their encoding lacks, with escapes."""
    for stream in (sys.stdout, sys.stderr):
        # Tests and notebooks put other objects there.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
