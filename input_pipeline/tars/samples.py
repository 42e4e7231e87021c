"""Reads WebDataset tars: finds the samples, checks their captions, yields records.

A sample is a run of consecutive members with the same key: the member's path up to the first dot of
its file name; the rest of the name is the member's extension. A tar is indexed first, by walking
its headers, so that a damaged one is found before any image is decoded. All that read tars take a
sample's contents from `read_fields` and `image_problem`.
"""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from input_pipeline.checks import unicode
from input_pipeline.files import listing
from input_pipeline.files.ranges import open_file
from input_pipeline.prepare.filters import Tally
from input_pipeline.text.captions import split_sentences

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

_SHOWN = 5  # members of a sample, in a message


@dataclass(frozen=True)
class Sample:
    """Where a sample's members lie: extension in lower case -> (offset, size) in bytes."""

    key: str
    members: dict[str, tuple[int, int]]

    def read(self, file: BinaryIO, extension: str) -> bytes:
        """The contents of one member; `file` is the tar."""
        offset, size = self.members[extension]
        file.seek(offset)
        return file.read(size)


def find_tars(pattern: str) -> list[Path]:
    """The tars that match, in the order of their names, see `listing.find`.

    Raises:
      ValueError: there is none, two have the same name, or a name is not valid Unicode.
    """
    tars = listing.find(pattern)
    if not tars:
        raise ValueError(
            f"Nothing matches --input {pattern!r}. Put the pattern in quotes, e.g. "
            "'/data/cc3m/train-*.tar'; patterns know *, ? and [0-9], not {0..9}."
        )
    for tar in tars:
        unicode.check(tar.name, "Shards and records are named after their tar: rename this one")
    return tars


def check_fields(tars: Sequence[Path], fields: Sequence[str]) -> None:
    """Looks for the first value of each caption field, in one tar after the other.

    A tar, or many, may lack a field; a tar that cannot be read counts as one that may have it.

    Raises:
      ValueError: no tar has one of the fields.
    """
    missing, available, hint = set(fields), set(), ""
    for tar in tars:
        try:
            samples = index(tar)
        except (OSError, ValueError):
            return  # Named when its turn comes.
        with open_file(tar) as file:
            for sample in samples:
                try:
                    names = read_fields(file, sample).keys()
                except ValueError as error:
                    hint = f" {tar}, key {sample.key!r}: {error}."
                    continue
                available |= names
                missing -= names
                if not missing:
                    return
                if not names:
                    hint = f" {tar} has e.g. {_describe(sample)}."
    if available or hint:
        lacking = ", ".join(repr(name) for name in fields if name in missing)
        found = ", ".join(sorted(available)) or f"none.{hint}"
        raise ValueError(
            f"No sample of the {len(tars)} tars has the caption field {lacking}. Available: "
            f"{found.rstrip('.')}."
        )


def index(path: Path) -> list[Sample]:
    """All samples of an uncompressed tar, in order. Directories and hidden files are passed over.

    Names are read as UTF-8 whatever the locale; bytes that are none are escaped in keys.

    Raises:
      ValueError: the tar is compressed, corrupt, truncated (also between two members), holds links
        instead of files, a key in two places, or two files of the same name.
    """
    samples: list[Sample] = []
    keys = set()
    with open_file(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        position = 0
        try:
            with tarfile.open(
                fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
            ) as tar:
                for member in tar:
                    if tar.offset > size:
                        raise ValueError(f"member {member.name!r} is cut off")
                    _add(samples, keys, member)
                    position = tar.offset
            # tarfile takes a damaged header, and a file that ends between members, for the end.
            file.seek(position)
            if not (end := file.read(tarfile.BLOCKSIZE)):
                raise ValueError("the end-of-archive marker is missing")
            while end:
                if end.strip(b"\0"):
                    raise ValueError("bytes that are not a tar header")
                end = file.read(1 << 20)
        except (tarfile.TarError, OverflowError, ValueError) as error:
            last = f", the last with key {samples[-1].key!r}" if samples else ""
            reason = _packed(file) or error
            raise ValueError(
                f"{path}: not a complete, uncompressed tar of samples: {reason}. Readable are "
                f"{position:,} of {size:,} bytes, {len(samples)} samples{last}. Repair, repack or "
                "download the tar again, then run the same command."
            ) from None
    return samples


def _packed(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(8)
    kinds = [kind for magic, kind in _PACKED.items() if start.startswith(magic)]
    return f"it is compressed with {kinds[0]}, unpack it" if kinds else ""


def read_fields(file: BinaryIO, sample: Sample) -> dict[str, Any]:
    """What the .json and the .txt of a sample hold: field -> value, without those that are null.

    "txt" is the .txt member. `file` is the tar.

    Raises:
      ValueError: a member cannot be parsed, holds text that is not valid Unicode, or the .json is
        no object.
    """
    values: Any = {}
    if "json" in sample.members:
        try:
            values = unicode.parse_json(sample.read(file, "json"))
        except ValueError as error:
            raise ValueError(f"the .json cannot be read: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"the .json is {_type(values)}, not an object")
        values.pop("txt", None)
    if "txt" in sample.members:
        try:
            values["txt"] = unicode.decode(sample.read(file, "txt"))
        except ValueError as error:
            raise ValueError(f"the .txt cannot be read: {error}") from None
    return {name: value for name, value in values.items() if value is not None}


def read_captions(
    file: BinaryIO, sample: Sample, fields: tuple[str, ...], split: bool
) -> tuple[dict[str, list[str]], set[str]]:
    """Captions of one sample by field, and the names of all fields that the sample has.

    Args:
      file: the tar.
      sample: one of its samples.
      fields: names of JSON fields (a string or a list of strings each); "txt" is the .txt member.
      split: split every string into sentences.

    Returns:
      captions: has every field, in the given order; an absent field is an empty list. Strings are
        stripped, empty ones left out.
      names: the fields with a value.

    Raises:
      ValueError: as `read_fields`.
      TypeError: a field is of a type that holds no captions.
    """
    values = read_fields(file, sample)
    captions = {}
    for name in fields:
        value = values.get(name)
        texts = value if isinstance(value, list) else [value]
        for item in texts:
            if not (item is None or isinstance(item, str)):
                raise TypeError(
                    f"key {sample.key!r}, field {name!r}: {_type(item)} "
                    f"{'in the list ' if texts is value else ''}where text is expected (a string "
                    "or a list of strings)"
                )
        texts = [item.strip() for item in texts if item]
        if split:
            texts = [sentence for item in texts for sentence in split_sentences(item)]
        captions[name] = [item for item in texts if item]
    return captions, set(values)


def read_records(
    path: Path, fields: tuple[str, ...], split: bool, tally: Tally
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (key, record {id, image, captions}) for the samples of a tar; counts them in `tally`.

    Ids are "<tar stem>/<key>", images the bytes as they are, not decoded, captions as in
    `read_captions`. A sample is dropped if it has no caption at all, no or several images, or a
    .json or .txt that cannot be parsed.

    Raises:
      ValueError: the tar is damaged (see `index`), or a field holds something that is no caption.
    """
    samples = index(path)
    tally.samples = len(samples)
    with open_file(path) as file:
        # All captions come before the first image, so that a field of another type fails soon.
        all_captions = _read_all_captions(path, file, samples, fields, split, tally)
        for sample, captions in zip(samples, all_captions):
            if isinstance(captions, str):
                tally.drop(sample.key, "unreadable captions", captions)
            elif not any(captions.values()):
                tally.drop(sample.key, "no caption")
            elif problem := image_problem(sample):
                tally.drop(sample.key, *problem)
            else:
                data = sample.read(file, image_extensions(sample)[0])
                id_ = f"{path.stem}/{sample.key}"
                yield sample.key, {"id": id_, "image": data, "captions": captions}


def image_extensions(sample: Sample) -> list[str]:
    """Extensions of a sample's images: exactly one in a good sample."""
    return [name for name in sample.members if name in listing.IMAGE_EXTENSIONS]


def image_problem(sample: Sample) -> tuple[str, str] | None:
    """Reason and detail if a sample has no image, or several."""
    found = image_extensions(sample)
    if not found:
        known = ", ".join(f".{name}" for name in listing.IMAGE_EXTENSIONS)
        return "no image", f"{_describe(sample)}; images end in {known}"
    return ("several images", ", ".join(found)) if len(found) > 1 else None


def _read_all_captions(
    path: Path,
    file: BinaryIO,
    samples: list[Sample],
    fields: tuple[str, ...],
    split: bool,
    tally: Tally,
) -> list[dict[str, list[str]] | str]:
    """Captions by field of every sample, or why they cannot be read."""
    captions: list[dict[str, list[str]] | str] = []
    tally.missing_captions.update(dict.fromkeys(fields, len(samples)))
    for sample in samples:
        try:
            texts, names = read_captions(file, sample, fields, split)
            for name in names.intersection(fields):
                tally.missing_captions[name] -= 1
        except TypeError as error:
            raise ValueError(f"{path}: {error}.") from None
        except ValueError as error:
            texts = str(error)
        captions.append(texts)
    return captions


def _describe(sample: Sample) -> str:
    """Its members, and how the name of the first was understood."""
    first, *others = sample.members
    text = (
        f"{f'{sample.key}.{first}'!r} is key {sample.key!r} and extension {first!r} (a key ends at "
        "the first dot of a file's name)"
    )
    if others:
        more = f" and {len(others) - _SHOWN:,} more" if len(others) > _SHOWN else ""
        text += f", beside it {', '.join(f'.{name}' for name in others[:_SHOWN])}{more}"
    return text


def _add(samples: list[Sample], keys: set[str], member: tarfile.TarInfo) -> None:
    """Puts `member` into the last sample, or into a new one if its key is new."""
    folder, slash, name = unicode.escaped(member.name).rpartition("/")
    stem, dot, extension = name.partition(".")
    if member.isdir() or not (stem and dot and extension):
        return
    if not member.isreg() or member.issparse() or member.size < 0:
        raise ValueError(f"member {member.name!r} is not a plain file (a link?)")
    key, extension = folder + slash + stem, extension.lower()
    if not samples or samples[-1].key != key:
        if key in keys:
            raise ValueError(
                f"key {key!r} occurs in two places; the files of a sample must follow each other"
            )
        keys.add(key)
        samples.append(Sample(key, {}))
    if extension in samples[-1].members:
        raise ValueError(f"member {member.name!r} occurs twice")
    samples[-1].members[extension] = (member.offset_data, member.size)


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")
