"""Where the records lie in an ArrayRecord file that is read over a network.

ArrayRecord's own reader asks a bucket for all that follows a record, and breaks off. This one knows
the files that `prepare` writes alone: one record in a chunk, uncompressed. It takes the contents as
they are, without the hashes beside them: stores and connections have checksums of their own.

Such a file is Riegeli's: blocks of 64 KiB, each of which begins with a header of 24 bytes, wherever
that falls; and over the rest of them chunks, a header of 40 bytes and data. The data of a chunk are
its compression (0), the number of bytes of the sizes, the sizes of the values, and the values. The
last chunk but one holds where the others begin, and the last block where that one does.
"""

import struct

import numpy as np

_BLOCK, _BLOCK_HEADER = 2**16, 24
# hash, size of the data, hash of them, kind and number of values, size of the values
_CHUNK = struct.Struct("<QQQQQ")
_SIMPLE = ord("r")
_MAGIC = 0x71930E704FDAE05E
_OFFSET = 0x08  # how a number in field 1 of a message begins
_MAGIC_FIELD = 0x10
# The most that the place of a record takes in the file, and what stands around them.
_ENTRY_BYTES, _END_BYTES = 20, 4 * _BLOCK


def end_size(size: int, count: int) -> int:
    """Bytes at the end of a file of so many bytes and records that hold where these lie."""
    return min(size, _END_BYTES + _ENTRY_BYTES * count)


def places(end: bytes, size: int, count: int) -> np.ndarray:
    """i64[count + 1]: where each record's chunk begins in the file, and where the last one ends.

    Args:
      end: the last `end_size(size, count)` bytes of the file.
      size: of the file.
      count: of its records.

    Raises:
      ValueError: the file is damaged, or of another form.
    """
    start = size - len(end)
    last = (size - 1) // _BLOCK * _BLOCK  # of the last block
    footer, magic = _numbers(_values(end[last - start :], last)[0], (_OFFSET, _MAGIC_FIELD))
    if magic != _MAGIC or not start <= footer < last:
        raise ValueError("its end is no end of an ArrayRecord file")
    _, *entries = _values(end[footer - start :], footer)
    found = [_numbers(entry, (_OFFSET,))[0] for entry in entries]
    if len(found) != count or sorted(found) != found or (found and found[-1] >= footer):
        raise ValueError(f"it has the places of {len(found)} records instead of {count}")
    return np.array([*found, footer], np.int64)


def record(data: bytes, offset: int) -> bytes:
    """The record of the chunk that begins at `offset` of the file, whose bytes are `data`.

    Raises:
      ValueError: it is damaged, or of another form.
    """
    found = _values(data, offset)
    if len(found) != 1:
        raise ValueError(f"{len(found)} records where one is expected")
    return found[0]


def _values(data: bytes, offset: int) -> list[bytes]:
    """The values of the chunk at an offset of the file; `data` may go on behind it."""
    first = -offset % _BLOCK  # where the next block begins
    if first < len(data):
        parts, at = [data[:first]], first
        while at < len(data):
            parts.append(data[at + _BLOCK_HEADER : at + _BLOCK])
            at += _BLOCK
        data = b"".join(parts)
    if len(data) < _CHUNK.size:
        raise ValueError("a chunk is cut off")
    _, size, _, kind, total = _CHUNK.unpack_from(data)
    data = data[_CHUNK.size : _CHUNK.size + size]
    if kind & 0xFF != _SIMPLE or len(data) != size or data[:1] != b"\0":
        raise ValueError("a chunk is cut off or of another form")
    length, at = _varint(data, 1)
    ends, sizes = at + length, []
    while at < ends:
        value, at = _varint(data, at)
        sizes.append(value)
    if at != ends or len(sizes) != kind >> 8 or sum(sizes) != total or at + total != size:
        raise ValueError("the sizes in a chunk do not fit together")
    values = []
    for value in sizes:
        values.append(data[at : at + value])
        at += value
    return values


def _numbers(message: bytes, fields: tuple[int, ...]) -> list[int]:
    """The first fields of a message, which are numbers."""
    at, found = 0, []
    for field in fields:
        if message[at : at + 1] != bytes([field]):
            raise ValueError("an entry is of another form")
        value, at = _varint(message, at + 1)
        found.append(value)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
