"""Reads WebDataset tars: finds the samples, checks their captions, yields records.

A sample is a run of consecutive members with the same key: the member's path up to the first dot of
its file name; the rest of the name is the member's extension. A tar is indexed first, by walking
its headers, so that a damaged one is found before any image is decoded.
"""

import glob
import itertools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from input_pipeline.captions import split_sentences
from input_pipeline.filters import Tally

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


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
    """The tars that match, in the order of their names.

    Raises:
      ValueError: there is none, or two have the same name.
    """
    tars = [Path(name) for name in glob.glob(os.path.expanduser(pattern), recursive=True)]
    if not tars:
        raise ValueError(
            f"Nothing matches --input {pattern!r}. Put the pattern in quotes, e.g. "
            "'/data/cc3m/train-*.tar'; patterns know *, ? and [0-9], not {0..9}."
        )
    tars.sort(key=lambda tar: tar.name)
    for one, other in itertools.pairwise(tars):
        if one.stem == other.stem:
            raise ValueError(
                f"{one} and {other} would give the same shard name and record ids. Rename one, or "
                "make two data sets of them."
            )
    return tars


def index(path: Path) -> list[Sample]:
    """All samples of an uncompressed tar, in order. Directories and hidden files are passed over.

    Raises:
      ValueError: the tar is compressed, corrupt, truncated (also between two members), holds no
        sample, links instead of files, a key in two places, or two files of the same name.
    """
    samples: list[Sample] = []
    keys = set()
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        position = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
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
            raise ValueError(
                f"{path}: not a complete, uncompressed tar of samples: {error}. Readable are "
                f"{position:,} of {size:,} bytes, {len(samples)} samples{last}. Repair, repack or "
                "download the tar again, then run the same command."
            ) from None
    if not samples:
        raise ValueError(f"{path}: the tar holds no samples.")
    return samples


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
      ValueError: the .json or .txt member cannot be parsed.
      TypeError: a field, or the JSON as a whole, is of a type that holds no captions.
    """
    values: Any = {}
    if "json" in sample.members:
        # pandas writes a missing string as NaN: the same as null.
        values = json.loads(sample.read(file, "json"), parse_constant=lambda _: None)
        if not isinstance(values, dict):
            raise TypeError(f"key {sample.key!r}: the .json is {_type(values)}, not an object")
        values.pop("txt", None)
    if "txt" in sample.members:
        values["txt"] = sample.read(file, "txt").decode("utf-8-sig")
    captions = {}
    for name in fields:
        value = values.get(name)
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if not (text is None or isinstance(text, str)):
                raise TypeError(
                    f"key {sample.key!r}, field {name!r}: {_type(text)} "
                    f"{'in the list ' if texts is value else ''}where text is expected (a string "
                    "or a list of strings)"
                )
        # JSON can smuggle in half a surrogate pair, which no tokenizer can take.
        texts = [text.encode("utf-8", "replace").decode().strip() for text in texts if text]
        if split:
            texts = [sentence for text in texts for sentence in split_sentences(text)]
        captions[name] = [text for text in texts if text]
    return captions, {name for name, value in values.items() if value is not None}


def read_records(
    path: Path, fields: tuple[str, ...], split: bool, tally: Tally
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (key, record {id, image, captions}) for the samples of a tar; counts them in `tally`.

    Ids are "<tar stem>/<key>", images the bytes as they are, not decoded, captions as in
    `read_captions`. A sample is dropped if it has no caption at all, no or several images, or a
    .json or .txt that cannot be parsed.

    Raises:
      ValueError: the tar is damaged (see `index`), or none of its samples has one of `fields`, or a
        field holds something that is no caption.
    """
    samples = index(path)
    tally.samples = len(samples)
    with open(path, "rb") as file:
        # All captions come before the first image, so that a misspelt field fails within seconds.
        for sample, captions in zip(
            samples, _read_all_captions(path, file, samples, fields, split, tally)
        ):
            extensions = image_extensions(sample)
            if isinstance(captions, str):
                tally.drop(sample.key, "unreadable captions", captions)
            elif not any(captions.values()):
                tally.drop(sample.key, "no caption")
            elif not extensions:
                tally.drop(sample.key, "no image")
            elif len(extensions) > 1:
                tally.drop(sample.key, "several images", ", ".join(extensions))
            else:
                data = sample.read(file, extensions[0])
                id_ = f"{path.stem}/{sample.key}"
                yield sample.key, {"id": id_, "image": data, "captions": captions}


def image_extensions(sample: Sample) -> list[str]:
    """Extensions of a sample's images: exactly one in a good sample."""
    return [name for name in sample.members if name in IMAGE_EXTENSIONS]


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
    available: Counter[str] = Counter()
    for sample in samples:
        try:
            texts, names = read_captions(file, sample, fields, split)
            available.update(names)
        except TypeError as error:
            raise ValueError(f"{path}: {error}.") from None
        except ValueError as error:
            texts = str(error)
        captions.append(texts)
    if all(isinstance(texts, str) for texts in captions):
        raise ValueError(f"{path}: the captions of no sample can be read ({captions[0]}).")
    for name in fields:
        if not available[name]:
            raise ValueError(
                f"{path}: no sample has the caption field {name!r}. Available: "
                f"{', '.join(sorted(available)) or 'none'}."
            )
        tally.missing_captions[name] = len(samples) - available[name]
    return captions


def _add(samples: list[Sample], keys: set[str], member: tarfile.TarInfo) -> None:
    """Puts `member` into the last sample, or into a new one if its key is new."""
    folder, slash, name = member.name.rpartition("/")
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
