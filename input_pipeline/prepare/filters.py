"""What `prepare` keeps of the samples it reads: rules on images and captions, and the smaller copy.

Images that do not decode are always dropped. All other rules are off until they are set.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import simplejpeg

from input_pipeline.checks import unicode
from input_pipeline.images import crops
from input_pipeline.records import images_of

_JPEG_QUALITY = 95
_MAX_JPEG_SIDE = 65_500  # of libjpeg


@dataclass(frozen=True)
class Rules:
    """Limits; None is no limit.

    Attributes:
      max_aspect_ratio: of the longer to the shorter side.
      min_side: of the shorter side, pixels, before `resize`.
      min_caption_words, max_caption_words: a caption outside is removed; a record that loses all
        its captions is dropped. Words are what white space separates.
      drop_duplicates: drop a record whose image has the same bytes as an earlier one's.
      resize: side in pixels that the shorter side of larger images is reduced to; not of an image
        that would still be too long for a JPEG.

    Raises:
      ValueError: a limit that nothing or everything passes.
    """

    max_aspect_ratio: float | None = None
    min_side: int | None = None
    min_caption_words: int | None = None
    max_caption_words: int | None = None
    drop_duplicates: bool = False
    resize: int | None = None

    def __post_init__(self):
        for name, value in self.options().items():
            if not 1 <= value < math.inf:
                raise ValueError(f"{flag(name)} must be at least 1, got {value}.")
        low, high = self.min_caption_words, self.max_caption_words
        if low and high and low > high:
            raise ValueError(f"No caption has at least {low} and at most {high} words.")

    def options(self) -> dict[str, Any]:
        """The rules that are set."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value is not None and value is not False
        }

    def arguments(self) -> list[str]:
        """The rules that are set, as words of a command line."""
        words = []
        for name, value in self.options().items():
            words.append(flag(name))
            if value is not True:
                words.append(f"{value:g}" if isinstance(value, float) else str(value))
        return words


def flag(name: str) -> str:
    """The command line's name of a rule."""
    return "--" + name.replace("_", "-")


@dataclass
class Tally:
    """What was met on the way from the samples of one shard to its records.

    Attributes:
      samples: number of them.
      dropped: one {key, reason, detail} per sample that gave no record.
      missing_captions: field -> number of samples without it.
      removed_captions: rule -> number of strings taken out of records or of dropped samples.
      captions: field -> number of strings in the records.
      formats: of the records' images -> number.
      widths, heights: of the records' images, in pixels.
      resized: `images`, and their `bytes_before` and `bytes_after`.
      fields: name -> type of every field met in a record; of captions, the names.
      counts: what else whoever gives the samples has counted -> number.
    """

    samples: int = 0
    dropped: list[dict[str, str]] = field(default_factory=list)
    missing_captions: dict[str, int] = field(default_factory=dict)
    removed_captions: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    resized: Counter[str] = field(default_factory=Counter)
    fields: dict[str, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def drop(self, key: str, reason: str, detail: str = "") -> None:
        self.dropped.append({"key": key, "reason": reason, "detail": detail})

    def add(self, record: dict[str, Any], sizes: Iterable[tuple[int, int]]) -> None:
        """Counts a record that is kept; its images have these widths and heights in pixels."""
        captions = record.get("captions", {})
        self.captions.update({name: len(texts) for name, texts in captions.items()})
        self.formats.update(map(image_format, images_of(record)))
        for width, height in sizes:
            self.widths.append(width)
            self.heights.append(height)
        for name, value in record.items():
            if name == "captions":
                # Strings in lists; the names are in the order of their first appearance.
                known = self.fields.setdefault(name, [])
                known += [caption for caption in value if caption not in known]
            elif isinstance(value, np.ndarray):
                self.fields[name] = f"array of {value.dtype}, {value.ndim} axes"
            elif value is not None or name not in self.fields:
                self.fields[name] = type(value).__name__


def reason_of(dropped: dict[str, str]) -> str:
    """One entry of `Tally.dropped`, in words."""
    detail = f" ({dropped['detail']})" if dropped["detail"] else ""
    return f"{dropped['key']!r}: {dropped['reason']}{detail}"


Samples = Iterable[tuple[str, dict[str, Any]]]


def passing(
    samples: Samples, rules: Rules, tally: Tally, duplicates: Collection[int] = ()
) -> Iterator[dict[str, Any]]:
    """Yields the records that pass all rules, resized, and counts everything in `tally`.

    Args:
      samples: (key, record) pairs; the image has not been looked at.
      duplicates: which of the samples that `with_captions` gives, counted from 0, have the image of
        an earlier one.

    Raises:
      ValueError: as `with_captions`.
    """
    for number, (key, record) in enumerate(with_captions(samples, rules, tally)):
        try:
            decoded = [crops.decode(image) for image in images_of(record)]
        except (MemoryError, ValueError) as error:
            tally.drop(key, "broken image", str(error) or "there is no memory to decode it")
            continue
        sizes = [(pixels.shape[1], pixels.shape[0]) for pixels in decoded]
        small = [size for size in sizes if rules.min_side and min(size) < rules.min_side]
        extreme = [
            size
            for size in sizes
            if rules.max_aspect_ratio and max(size) > rules.max_aspect_ratio * min(size)
        ]
        if small:
            tally.drop(key, "small image", "{}x{}".format(*small[0]))
        elif extreme:
            tally.drop(key, "extreme aspect ratio", "{}x{}".format(*extreme[0]))
        elif number in duplicates:
            # Last: the earlier one passed the rules above as well, so an image is never lost.
            tally.drop(key, "duplicate image")
        else:
            if any(_shrinks(min(size), max(size), rules.resize) for size in sizes):
                record, sizes = _resized(record, decoded, rules.resize, tally)
            tally.add(record, sizes)
            yield record


def with_captions(samples: Samples, rules: Rules, tally: Tally) -> Iterator[tuple[str, dict]]:
    """Yields the samples without the captions that are too short or too long; drops those that
    have none left, or text that is not valid Unicode. Records of data without captions pass.

    Raises:
      ValueError: a caption field is not a list of strings, or there is no image.
    """
    limited = rules.min_caption_words or rules.max_caption_words
    for key, record in samples:
        captions = record.get("captions", {})
        _check(key, record, captions)
        try:
            unicode.check(record)
        except ValueError as error:
            tally.drop(key, "unreadable text", str(error))
            continue
        if captions and not any(captions.values()):
            tally.drop(key, "no caption")
            continue
        if captions and limited:
            captions = {
                name: [caption for caption in texts if _has_allowed_length(caption, rules, tally)]
                for name, texts in captions.items()
            }
            if not any(captions.values()):
                tally.drop(key, "no caption of allowed length")
                continue
            record = {**record, "captions": captions}
        yield key, record


def _has_allowed_length(text: str, rules: Rules, tally: Tally) -> bool:
    words = len(text.split())
    if rules.min_caption_words and words < rules.min_caption_words:
        tally.removed_captions[f"fewer than {rules.min_caption_words} words"] += 1
    elif rules.max_caption_words and words > rules.max_caption_words:
        tally.removed_captions[f"more than {rules.max_caption_words} words"] += 1
    else:
        return True
    return False


def _check(key: str, record: dict[str, Any], captions: Any) -> None:
    images = images_of(record)
    if not (images or "images" in record) or not all(isinstance(x, bytes) for x in images):
        raise ValueError(
            f"record {key!r} has no image: images are encoded bytes (and images=[] says that there "
            "is none)"
        )
    # A string would pass for a list: of its characters.
    if not isinstance(captions, dict) or not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        for texts in captions.values()
    ):
        raise ValueError(f"record {key!r}: captions must be lists of strings by field")


def _shrinks(short: int, long: int, side: int | None) -> bool:
    """Whether an image of these sides is to be reduced, and the result can be a JPEG."""
    return side is not None and short > side and long * side <= _MAX_JPEG_SIDE * short


def _resized(
    record: dict[str, Any], decoded: list[np.ndarray], side: int, tally: Tally
) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """The record with smaller images, and mask; their widths and heights. Boxes are relative."""
    images, sizes = images_of(record), []
    for number, pixels in enumerate(decoded):
        height, width, _ = pixels.shape
        if _shrinks(*sorted((width, height)), side):
            scale = side / min(width, height)
            width, height = max(side, round(width * scale)), max(side, round(height * scale))
            small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
            data = simplejpeg.encode_jpeg(
                small, quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
            )
            tally.resized["images"] += 1
            tally.resized["bytes_before"] += len(images[number])
            tally.resized["bytes_after"] += len(data)
            images[number] = data
        sizes.append((width, height))
    if "images" in record:
        return {**record, "images": images}, sizes
    record = {**record, "image": images[0]}
    if record.get("mask") is not None:
        mask = record["mask"]  # Classes: no value may be mixed from two.
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(int)
            for new, old in zip(sizes[0][::-1], mask.shape)
        )
        record["mask"] = mask[rows][:, columns]
    return record, sizes


def image_format(data: bytes) -> str:
    """Format by content; the extension may lie."""
    if data.startswith(b"\xff\xd8"):
        return "jpeg"
    if data.startswith(b"\x89PNG"):
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "other"
