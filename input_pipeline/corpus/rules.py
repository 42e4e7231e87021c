"""What the filter over metadata drops: rules, each a measure of the rows and its bounds.

All are off until they are set. Their order is that of the fields below; a row is counted at the
first that drops it.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipeline.checks import unicode
from input_pipeline.corpus import captions
from input_pipeline.corpus.columns import Rows
from input_pipeline.files.listing import fingerprint
from input_pipeline.files.ranges import source_path

_HOST = r"^(?:[a-zA-Z][a-zA-Z0-9+.-]*:)?//(?:[^/?#]*@)?(?P<host>[^/?#:@]+)"


class Listed(NamedTuple):
    """A text file with one entry a line; lines that begin with # are comments.

    Attributes:
      path: of the file.
      digest: of its contents.
    """

    path: str
    digest: str

    @classmethod
    def of(cls, path: str) -> "Listed":
        """Raises OSError or ValueError: it cannot be read, or has no entry."""
        listed = cls(path, fingerprint(source_path(path).read_bytes()))
        if not listed.entries():
            raise ValueError(f"{path} has no entry: write one on each line.")
        return listed

    def entries(self) -> list[str]:
        """Raises ValueError: it is not what it was."""
        if fingerprint(source_path(self.path).read_bytes()) != self.digest:
            raise ValueError(f"{self.path} was changed meanwhile: give the command again")
        lines = (line.strip() for line in unicode.read_lines(source_path(self.path)))
        return [line for line in lines if line and not line.startswith("#")]


class Check(NamedTuple):
    """A rule as it is applied to rows.

    Attributes:
      name: what is wrong with the rows that it drops.
      kinds: of the columns that it needs.
      measure: f[rows] of some rows, NaN where there is no value; or several, which must all pass.
      low, high: the values that pass.
    """

    name: str
    kinds: tuple[str, ...]
    measure: Callable[[Rows], np.ndarray | list[np.ndarray]]
    low: float = -np.inf
    high: float = np.inf

    def __call__(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """(the measure, of several the worst; bool[rows]: it is out of bounds).

        Where one of several is missing there is no value, unless another is out of bounds.
        """
        values = self.measure(rows)
        if not isinstance(values, list):
            return values, self._fails(values)
        # Each on its own: in a type that holds both, a 0.1 of 32 bits is above that of 64.
        fails = functools.reduce(np.logical_or, map(self._fails, values))
        missing = functools.reduce(np.logical_or, map(np.isnan, values))
        worst = np.fmin if self.low > -np.inf else np.fmax
        return np.where(missing & ~fails, np.nan, functools.reduce(worst, values)), fails

    def _fails(self, values: np.ndarray) -> np.ndarray:
        return (values < self.low) | (values > self.high)


@dataclass(frozen=True)
class Rules:
    """Limits; None is no limit. They have the names of the flags.

    Attributes:
      max_aspect_ratio: of the longer to the shorter side.
      min_side, max_side: of the shorter and of the longer one, in pixels.
      max_nsfw, max_watermark, min_similarity: of scores; with several columns, of each.
      nsfw_tags, languages: those that are kept; letter case does not matter.
      min_caption_words, max_caption_words: fields between white space.
      min_caption_characters, max_caption_characters: code points.
      min_letters: share of letters in what is no white space.
      max_repeated_words: share of words that were there before in the caption.
      max_caption_copies: rows of all the input with the same caption.
      drop_words: a list of words, or of phrases.
      drop_domains: a list of domains; each stands for all below it, too.
    """

    max_aspect_ratio: float | None = None
    min_side: int | None = None
    max_side: int | None = None
    max_nsfw: float | None = None
    nsfw_tags: tuple[str, ...] | None = None
    max_watermark: float | None = None
    min_similarity: float | None = None
    languages: tuple[str, ...] | None = None
    min_caption_words: int | None = None
    max_caption_words: int | None = None
    min_caption_characters: int | None = None
    max_caption_characters: int | None = None
    min_letters: float | None = None
    max_repeated_words: float | None = None
    max_caption_copies: int | None = None
    drop_words: Listed | None = None
    drop_domains: Listed | None = None

    def __post_init__(self):
        if not self.options():
            raise ValueError("No rule is given: nothing would be dropped; see --help.")
        for what in ("side", "caption_words", "caption_characters"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if None not in (low, high) and low > high:
                flag = what.replace("_", "-")
                raise ValueError(f"--min-{flag} {low} and --max-{flag} {high} leave nothing.")

    def options(self) -> dict[str, object]:
        """The rules that are set, as JSON has them; of a list, what its contents are told by."""
        options = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                value = value.digest if isinstance(value, Listed) else value
                options[field.name] = list(value) if isinstance(value, tuple) else value
        return options

    def checks(self, frequent: np.ndarray | None = None) -> list[Check]:
        """The rules that are set.

        Args:
          frequent: ascending hashes of the captions that are there too often; None: those checks
            are only listed.
        """
        sides, caption = ("width", "height"), ("caption",)
        nsfw, watermark = ("nsfw",), ("watermark",)
        words, characters, letters = map(
            _caption, (captions.fields, captions.characters, captions.letters)
        )
        all_checks = (
            _bound("aspect ratio", sides, _aspect_ratio, high=self.max_aspect_ratio),
            _bound("shorter side", sides, _shorter, low=self.min_side),
            _bound("longer side", sides, _longer, high=self.max_side),
            _bound("NSFW score", nsfw, _scores("nsfw"), high=self.max_nsfw),
            _none_of("NSFW tag", "nsfw_tag", self.nsfw_tags),
            _bound("watermark score", watermark, _scores("watermark"), high=self.max_watermark),
            _bound("similarity", ("similarity",), _scores("similarity"), low=self.min_similarity),
            _none_of("language", "language", self.languages),
            _bound("caption words", caption, words, low=self.min_caption_words),
            _bound("caption words", caption, words, high=self.max_caption_words),
            _bound("caption characters", caption, characters, low=self.min_caption_characters),
            _bound("caption characters", caption, characters, high=self.max_caption_characters),
            _bound("share of letters", caption, letters, low=self.min_letters),
            _bound("share of repeated words", caption, _repeated, high=self.max_repeated_words),
            self.max_caption_copies
            and _any(
                f"caption copies above {self.max_caption_copies}", caption, _frequent, frequent
            ),
            self.drop_words and _any("listed words", caption, _words, self.drop_words),
            self.drop_domains and _any("listed domain", ("url",), _domain, self.drop_domains),
        )
        return [check for check in all_checks if check]


def _bound(name, kinds, measure, low: float | None = None, high: float | None = None):
    if low is not None:
        return Check(f"{name} below {low:g}", kinds, measure, low=low)
    return None if high is None else Check(f"{name} above {high:g}", kinds, measure, high=high)


def _none_of(name: str, kind: str, kept: tuple[str, ...] | None):
    return kept and _any(f"{name} not {' or '.join(kept)}", (kind,), _other, kind, kept)


def _any(name: str, kinds: tuple[str, ...], measure, *arguments) -> Check:
    """Drops what measures more than 0; `measure` takes the rows last."""
    return Check(name, kinds, functools.partial(measure, *arguments), high=0)


def _sides(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The shorter and the longer one; no side is 0 pixels long."""
    [width], [height] = (rows.numbers(kind) for kind in ("width", "height"))
    known = (width > 0) & (height > 0)
    return tuple(np.where(known, both(width, height), np.nan) for both in (np.minimum, np.maximum))


def _aspect_ratio(rows: Rows) -> np.ndarray:
    shorter, longer = _sides(rows)
    return longer / shorter


def _shorter(rows: Rows) -> np.ndarray:
    return _sides(rows)[0]


def _longer(rows: Rows) -> np.ndarray:
    return _sides(rows)[1]


def _scores(kind: str) -> Callable[[Rows], list[np.ndarray]]:
    return lambda rows: rows.numbers(kind)


def _caption(measure: Callable[[pa.Array], np.ndarray]) -> Callable[[Rows], np.ndarray]:
    return lambda rows: rows.caption(measure)


def _other(kind: str, names: tuple[str, ...], rows: Rows) -> np.ndarray:
    """1 where the text is none of the names."""
    text = pc.utf8_lower(rows.text(kind))
    known = pa.array([name.lower() for name in names], text.type)
    return _where_known(text, ~pc.is_in(text, known).to_numpy(zero_copy_only=False))


def _repeated(rows: Rows) -> np.ndarray:
    return rows.caption(captions.Words).repeated()


def _frequent(frequent: np.ndarray, rows: Rows) -> np.ndarray:
    found = rows.caption(captions.hashes)
    places = np.searchsorted(frequent, found)
    known = places < len(frequent)
    known[known] = frequent[places[known]] == found[known]
    return _where_known(rows.text("caption"), known)


def _words(listed: Listed, rows: Rows) -> np.ndarray:
    return rows.caption(captions.Words).listed(_phrases(listed))


def _domain(listed: Listed, rows: Rows) -> np.ndarray:
    hosts = pc.struct_field(pc.extract_regex(rows.text("url"), _HOST), "host")
    hosts = pc.utf8_lower(hosts).dictionary_encode()
    domains = _domains(listed)
    hits = [any(part in domains for part in _upwards(h)) for h in hosts.dictionary.to_pylist()]
    found = pa.array(hits, pa.float64()).take(hosts.indices)
    return found.to_numpy(zero_copy_only=False).astype(float)


def _upwards(host: str) -> list[str]:
    """A host and the domains above it: a.b.c, b.c, c."""
    labels = _ascii(host).strip(".").split(".")
    return [".".join(labels[i:]) for i in range(len(labels))]


def _ascii(host: str) -> str:
    """As the name system has it: "bücher.de" is "xn--bcher-kva.de"."""
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host


@functools.cache
def _phrases(listed: Listed) -> dict[int, pa.Array]:
    return captions.by_length(listed.entries())


@functools.cache
def _domains(listed: Listed) -> frozenset[str]:
    return frozenset(_ascii(re.sub(r"^\*?\.", "", e.lower())).strip(".") for e in listed.entries())


def _where_known(text: pa.Array, values: np.ndarray) -> np.ndarray:
    return np.where(pc.is_null(text).to_numpy(zero_copy_only=False), np.nan, values)
