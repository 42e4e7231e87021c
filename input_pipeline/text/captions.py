"""Caption sampling: which strings of a record's caption pool one training example sees.

A record's `captions` maps field name -> list of strings. The modes and their draw order are those
of COSMOS (arXiv 2412.01814) and its reference implementation: a given `random.Random` yields the
same captions there and here.
"""

import random
import re
from collections.abc import Mapping
from typing import Any

# Field order of the DreamLIP re-captioned sets (InstructBLIP, ShareGPT4V, LLaVA-1.5).
DREAMLIP_FIELDS = (
    "raw_caption",
    "shortIB_captions",
    "shortSV_captions",
    "shortLLA_captions",
    "longIB_captions",
    "longSV_captions",
    "longLLA_captions",
)
MODES = (
    "raw",
    "raw_pixelprose",
    "random",
    "random_pixelprose",
    "short",
    "long",
    "textcrop",
    "textcrop_pixelprose",
)
MAX_SENTENCES_PER_GLOBAL = 5

_SENTENCE_END = re.compile(r"\n|</s>|\.")


def split_sentences(text: str) -> list[str]:
    """Splits at newlines, `</s>` and every full stop (also the one in "3.5"); drops what is blank.

    COSMOS and DreamLIP captions are split by this rule when the data is prepared; it is not a
    linguistic sentence splitter.
    """
    if not isinstance(text, str):
        raise TypeError(f"split_sentences takes one string, got {type(text).__name__}.")
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def check_mode(mode: str, k: int) -> None:
    """Raises ValueError unless `mode` is known and can give `k` captions per image."""
    if mode not in MODES:
        raise ValueError(f"Unknown caption mode {mode!r}; use one of {', '.join(MODES)}.")
    if mode.startswith("raw") and k != 1:
        raise ValueError(f"Caption mode {mode!r} gives exactly one caption per image, not {k}.")
    if mode.startswith("textcrop") and k < 2:
        raise ValueError(f"Caption mode {mode!r} starts with two global captions: {k} are too few.")
    if k < 1:
        raise ValueError(f"The number of captions must be at least 1, got {k}.")


def caption_pool(captions: dict[str, list[str]], mode: str) -> list[str]:
    """The strings that `mode` draws from, in the order that makes draws reproducible.

    - raw: the field `raw_caption`; raw_pixelprose: the field `original_caption`;
    - random, textcrop: the seven DreamLIP fields in their published order if all are there,
      otherwise every field in record order;
    - short, long: those of the same fields whose names start with raw or short, or with long;
    - random_pixelprose, textcrop_pixelprose: `original_caption`, then the sentences of `caption`.

    Raises:
      ValueError: the mode is unknown, needs a field that is missing, or finds no caption at all; or
        a field is not a list of strings.
    """
    if mode == "raw":
        pool = _field(captions, "raw_caption", mode)
    elif mode == "raw_pixelprose":
        pool = _field(captions, "original_caption", mode)
    elif mode in ("random_pixelprose", "textcrop_pixelprose"):
        pool = list(_field(captions, "original_caption", mode))
        for text in _field(captions, "caption", mode):
            pool += split_sentences(text)
    elif mode in ("random", "textcrop", "short", "long"):
        names = _fields_in_order(captions)
        prefixes = {"short": ("raw", "short"), "long": ("long",)}.get(mode)
        if prefixes:
            names = [name for name in names if name.startswith(prefixes)]
            if not names:
                raise ValueError(
                    f"Caption mode {mode!r} needs fields whose names start with "
                    f"{' or '.join(prefixes)}; the record has {_names(captions)}."
                )
        pool = [text for name in names for text in _field(captions, name, mode)]
    else:
        raise ValueError(f"Unknown caption mode {mode!r}; use one of {', '.join(MODES)}.")
    if not pool:
        raise ValueError(
            f"Caption mode {mode!r} found no caption in the fields {_names(captions)}: "
            "drop records without captions when preparing the data, or choose another mode."
        )
    return pool


def sample(pool: list[str], m: int, rng: random.Random) -> list[str]:
    """`m` strings of `pool`: without replacement if it is large enough; otherwise the whole pool
    floor(m / len) times, in order, followed by a random remainder without replacement."""
    repeats, remainder = (0, m) if len(pool) >= m else divmod(m, len(pool))
    return pool * repeats + rng.sample(pool, remainder)


def sample_captions(
    captions: dict[str, list[str]], mode: str, k: int, rng: random.Random
) -> list[str]:
    """Draws `k` captions.

    textcrop modes: two global captions, each 1 to 5 sentences joined by ". " in random order,
    followed by k-2 local captions of one sentence. Other modes: k strings of the pool.

    Raises: see `check_mode` and `caption_pool`.
    """
    check_mode(mode, k)
    pool = caption_pool(captions, mode)
    if not mode.startswith("textcrop"):
        return sample(pool, k, rng)
    # Both lengths are drawn before either caption: the reference's order.
    lengths = [rng.randint(1, MAX_SENTENCES_PER_GLOBAL) for _ in range(2)]
    global_captions = [". ".join(sample(pool, length, rng)) for length in lengths]
    return global_captions + sample(pool, k - 2, rng)


def _fields_in_order(captions: dict[str, list[str]]) -> list[str]:
    if all(name in captions for name in DREAMLIP_FIELDS):
        return list(DREAMLIP_FIELDS)
    return list(captions)


def _field(captions: dict[str, list[str]], name: str, mode: str) -> list[str]:
    if name not in captions:
        raise ValueError(
            f"Caption mode {mode!r} needs the caption field {name!r}; "
            f"the record has {_names(captions)}."
        )
    return texts_of(captions, name)


def texts_of(captions: Mapping[str, Any], name: str) -> list[str]:
    """The captions in one field of a record.

    Raises:
      ValueError: they are not a list of strings.
    """
    texts = captions[name]
    # A string is a sequence of characters, so sampling it would train on single letters, silently.
    if isinstance(texts, str):
        raise ValueError(
            f"Caption field {name!r} is a plain string; sampling from it would give single "
            "characters. Store a list of strings, e.g. [text] or split_sentences(text)."
        )
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"Caption field {name!r} must hold strings only.")
    return list(texts)


def _names(captions: dict[str, list[str]]) -> str:
    return ", ".join(map(repr, captions)) or "no caption fields"
