"""Metadata as LAION-2B has it, with known faults, and what each rule does written plainly."""

import collections
import re
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

ENTRIES = {"words.txt": "# names\nPÖRN\nDonald  Duck\n", "domains.txt": "bad.example\nbücher.de\n"}
_WORDS = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiouäö" for c in "klmnrs日"]
# Rule -> what a row that it drops, and no other rule, has instead; {} is a word of its own.
FAULTS = {
    "aspect ratio above 6": {"WIDTH": 701, "HEIGHT": 100},
    "shorter side below 64": {"WIDTH": 63, "HEIGHT": 100},
    "longer side above 4000": {"WIDTH": 3000, "HEIGHT": 4001},
    "NSFW score above 0.5": {"punsafe": 0.51},
    "NSFW tag not UNLIKELY or UNSURE": {"NSFW": "NSFW"},
    "watermark score above 0.8": {"pwatermark": 0.81},
    "similarity below 0.28": {"similarity": 0.27},
    "language not en or de": {"LANGUAGE": "fr"},
    "caption words below 3": {"TEXT": "photograph {}"},
    "caption words above 12": {"TEXT": "a b c d e f g h i j k l {}"},
    "caption characters below 9": {"TEXT": "a b c d"},
    "caption characters above 120": {"TEXT": f"{'x' * 60} {'y' * 60} {{}}"},
    "share of letters below 0.6": {"TEXT": "IMG 2024-11-29 1280x720 {}"},
    "share of repeated words above 0.5": {"TEXT": "sale Sale SALE! sale {}"},
    "caption copies above 3": {"TEXT": "stock photo of a mountain"},
    "listed words": {"TEXT": "the (donald)  duck, {}"},
    "listed domain": {"URL": "http://me@CDN.bad.example:80/{}.jpg"},
}
# Rule -> what makes it find no value.
MISSING = {
    "aspect ratio above 6": {"WIDTH": 0},
    "NSFW score above 0.5": {"punsafe": float("nan")},
    "NSFW tag not UNLIKELY or UNSURE": {"NSFW": None},
    "similarity below 0.28": {"similarity": None},
    "caption words below 3": {"TEXT": " \u3000"},
    "listed domain": {"URL": "{}.jpg"},
}
# On the edge, or nearly a fault: all are kept.
SOUND = [
    {"WIDTH": 600, "HEIGHT": 100},
    {"WIDTH": 64, "HEIGHT": 384},
    {"WIDTH": 4000, "HEIGHT": 3000},
    {"punsafe": 0.5, "pwatermark": 0.8, "similarity": 0.28},
    {"NSFW": "unsure", "LANGUAGE": "DE"},
    {"TEXT": "pörnographic donald of ducks {}"},
    {"TEXT": "duck goose duck goose quite {}"},
    {"URL": "https://notbad.example/bad.example?x=//bad.example"},
]


def arguments(folder: Path) -> list[str]:
    """The flags of all rules; writes the lists."""
    for name, text in ENTRIES.items():
        (folder / name).write_text(text)
    text = (
        "--max-aspect-ratio 6 --min-side 64 --max-side 4000 --max-nsfw 0.5 "
        "--nsfw-tags UNLIKELY,UNSURE --max-watermark 0.8 --min-similarity 0.28 --languages en,de "
        "--min-caption-words 3 --max-caption-words 12 --min-caption-characters 9 "
        "--max-caption-characters 120 --min-letters 0.6 --max-repeated-words 0.5 "
        f"--max-caption-copies 3 --drop-words {folder}/words.txt "
        f"--drop-domains {folder}/domains.txt"
    )
    return text.split()


def metadata(rows: int, planted: int, seed: int = 0) -> pa.Table:
    """So many rows, and of each fault, gap and edge `planted` among them, at random places."""
    rng = np.random.default_rng(seed)
    numbers = pa.array(np.arange(rows) + rows * seed).cast(pa.string())
    own = pc.replace_substring_regex(numbers, "^", "q")
    for digit, letter in enumerate("abcdefghij"):  # words of letters
        own = pc.replace_substring(own, str(digit), letter)
    words = pa.array(_WORDS)
    drawn = (words.take(pa.array(rng.integers(len(_WORDS), size=rows))) for _ in range(6))
    columns = {
        "SAMPLE_ID": pa.array(np.arange(rows)),
        "URL": pc.binary_join_element_wise("https://img.good.example/", own, ".jpg", ""),
        "TEXT": pc.binary_join_element_wise(*drawn, own, " "),
        "WIDTH": pa.array(rng.integers(200, 1000, rows).astype(np.int32)),
        "HEIGHT": pa.array(rng.integers(200, 1000, rows).astype(np.int32)),
        "NSFW": pa.array(["UNLIKELY"] * rows),
        "similarity": pa.array(rng.uniform(0.29, 0.5, rows)),
        "punsafe": pa.array(rng.uniform(0, 0.4, rows).astype(np.float32)),
        "pwatermark": pa.array(rng.uniform(0, 0.7, rows).astype(np.float32)),
        "LANGUAGE": pa.array(["en"] * rows),
    }
    plants = [*FAULTS.values(), *MISSING.values(), *SOUND]
    places = rng.permutation(rows)[: len(plants) * planted].reshape(len(plants), planted)
    changes = collections.defaultdict(dict)  # column -> place -> value
    for plant, chosen in zip(plants, places):
        for name, value in plant.items():
            for place in chosen.tolist():
                text = value.format(own[place].as_py()) if isinstance(value, str) else value
                changes[name][place] = text
    for name, values in changes.items():
        mask = np.zeros(rows, bool)
        mask[list(values)] = True
        kind = columns[name].type
        new = pa.array([values[place] for place in sorted(values)], kind)
        columns[name] = pc.replace_with_mask(columns[name], pa.array(mask), new)
    return pa.table(columns)


def write(folder: Path, tables: list[pa.Table], group: int = 5000) -> list[Path]:
    """part-0.parquet and so on."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"part-{i:03d}.parquet" for i in range(len(tables))]
    for path, table in zip(paths, tables):
        pa.parquet.write_table(table, path, row_group_size=group)
    return paths


def plainly(rows: list[dict], copies: collections.Counter) -> list[dict[str, bool | None]]:
    """For each row: rule -> whether it drops it; None where there is no value."""
    return [dict(zip(FAULTS, _judge(row, copies))) for row in rows]


def _judge(row: dict, copies: collections.Counter):
    width, height = row["WIDTH"], row["HEIGHT"]
    known = width > 0 and height > 0
    short, long = sorted((width, height))
    yield long > 6 * short if known else None
    yield short < 64 if known else None
    yield long > 4000 if known else None
    unsafe = row["punsafe"]
    yield None if np.isnan(unsafe) else unsafe > np.float32(0.5)
    yield None if row["NSFW"] is None else row["NSFW"].upper() not in ("UNLIKELY", "UNSURE")
    yield row["pwatermark"] > np.float32(0.8)
    yield None if row["similarity"] is None else row["similarity"] < 0.28
    yield row["LANGUAGE"].lower() not in ("en", "de")
    text = row["TEXT"].strip()
    if not text:
        yield from [None] * 8
    else:
        yield len(text.split()) < 3
        yield len(text.split()) > 12
        yield len(text) < 9
        yield len(text) > 120
        yield letters(text) < 0.6
        found = words(text)
        yield 1 - len(set(found)) / len(found) > 0.5
        yield copies[text] > 3
        listed = f" {' '.join(found)} "
        yield " pörn " in listed or " donald duck " in listed
    host = re.match("https?://(?:[^/@]*@)?([^/:]+)", row["URL"])
    yield host and bool(re.search(r"(^|\.)bad\.example$", host[1].lower()))


def letters(text: str) -> float:
    """Share of letters and marks in what is no white space."""
    inside = [c for c in text if not c.isspace()]
    return sum(unicodedata.category(c)[0] in "LM" for c in inside) / len(inside)


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits."""
    plain = (c.lower()[0] for c in unicodedata.normalize("NFKC", text))  # "İ" is an i
    return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in plain).split()
