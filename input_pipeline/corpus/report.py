"""What a filter did: a JSON, a drawing, a sample of what each rule dropped, and a table."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from input_pipeline.corpus.jobs import DROPPED, PLOT, REPORT
from input_pipeline.corpus.sift import SAMPLED
from input_pipeline.figures import new_figure, png
from input_pipeline.files.whole import write_json, write_whole
from input_pipeline.workers import say

_AT_ONCE = 32  # JSONs that are read
_LISTED = 2  # samples of a rule, on the console
_LISTED_CHARACTERS = 100


def write(
    infos: Sequence[dict[str, Any]],
    options: dict[str, Any],
    output: Path | epath.Path,
    console: Console,
    similarities: np.ndarray | None = None,
) -> None:
    """Writes and prints the report.

    Args:
      infos: what is kept of the JSON of every file, in order.
      similarities: i64[bins] over [-1, 1], where these were compared.
    """
    found = describe(infos, options)
    samples = draw_samples([output / f"{info['file']}.json" for info in infos])
    if similarities is not None:
        found["similarities"] = {"from": -1, "to": 1, "rows": similarities.tolist()}
    write_whole(output / DROPPED, listing(samples).encode())
    write_whole(output / PLOT, draw(found))
    console.print(_table(found))
    for rule, rows in samples.items():
        for row in rows[:_LISTED]:
            text = row.get("caption") or row.get("url", "")
            value = "no value" if row["value"] is None else f"{row['value']:.4g}"
            line = f"{rule}: {row['file']}/{row['row']} ({value}) {text}"
            say(console, line[:_LISTED_CHARACTERS])
    write_json(output / REPORT, found)  # last: it says that all is there
    say(console, f"Wrote {output / REPORT}, {PLOT} and {DROPPED}: look at what each rule drops.")


def describe(infos: Sequence[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    """What the JSON says: rows in all and kept, and of each rule how many it dropped first, of
    these without a value, how many it would drop alone, and the share that is left after it."""
    total, kept = (sum(info[name] for info in infos) for name in ("rows", "kept"))
    rules, left = [], total
    for same in zip(*(info["rules"] for info in infos)):
        rule = {"rule": same[0]["rule"]}
        for name in ("dropped", "no_value", "alone"):
            rule[name] = sum(one[name] for one in same)
        left -= rule["dropped"]
        rules.append(rule | {"share_left": round(left / total, 6) if total else 0.0})
    names = ("file", "rows", "kept", "bytes", "sha256", "source")
    return {
        "options": options,
        "rows": total,
        "kept": kept,
        "rules": rules,
        "files": [{name: info[name] for name in names} for info in infos],
    }


def draw_samples(files: Sequence[Path | epath.Path]) -> dict[str, list[dict[str, Any]]]:
    """Rule -> a random sample of what it dropped, the same for the same input; of the JSONs, which
    are read a few at a time."""
    samples: dict[str, list[dict[str, Any]]] = {}
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for first in range(0, len(files), _AT_ONCE):
            chosen = files[first : first + _AT_ONCE]
            for data in threads.map(lambda file: file.read_bytes(), chosen):
                info = json.loads(data)
                for rule in info["rules"]:
                    rows = samples.setdefault(rule["rule"], [])
                    rows += ({"file": info["source"]["file"], **row} for row in rule["samples"])
                    rows.sort(key=_draw)
                    del rows[SAMPLED:]
    return samples


def _draw(row: dict[str, Any]) -> tuple:
    return row["key"], row["file"], row["row"]


def listing(samples: dict[str, list[dict[str, Any]]]) -> str:
    """The samples as a .tsv."""
    names = ("file", "row", "value", "url", "caption")
    lines = ["\t".join(("rule", *names))]
    for rule, rows in samples.items():
        for row in rows:
            cells = (row.get(name) for name in names)
            lines.append("\t".join([rule, *("" if cell is None else f"{cell}" for cell in cells)]))
    return "\n".join(lines) + "\n"


def _table(found: dict[str, Any]) -> Table:
    table = Table()
    table.add_column("rule")
    for name in ("dropped", "no value", "alone", "left"):
        table.add_column(name, justify="right")
    table.add_row("rows", "", "", "", f"{found['rows']:,}")
    left = found["rows"]
    for rule in found["rules"]:
        left -= rule["dropped"]
        counts = (f"{rule[name]:,}" for name in ("dropped", "no_value", "alone"))
        table.add_row(rule["rule"], *counts, f"{left:,} ({rule['share_left']:.1%})")
    return table


def draw(found: dict[str, Any]) -> bytes:
    """What is left after each rule, what each drops, and the similarities if there are any, as a
    PNG."""
    rules, total = found["rules"], max(found["rows"], 1)
    places = range(len(rules))
    with_scores = "similarities" in found
    height = 1.4 + 0.32 * max(len(rules), 3) + 2.6 * with_scores
    figure = new_figure(11, height)
    ratios = [max(len(rules), 3), 8][: 1 + with_scores]
    grid = figure.add_gridspec(len(ratios), 2, height_ratios=ratios)
    left, drops = (figure.add_subplot(grid[0, i]) for i in (0, 1))
    figure.suptitle(
        f"{found['kept']:,} of {found['rows']:,} rows kept ({found['kept'] / total:.1%})",
        fontsize=11,
    )

    shares = [100 * rule["share_left"] for rule in rules]
    left.barh(places, shares, color="tab:blue")
    for place, share in zip(places, shares):
        left.annotate(
            f"{share:.1f}", (share, place), (3, 0), textcoords="offset points", va="center"
        )
    left.set_xlim(0, 112)
    left.set_xlabel("rows left after it, %")
    left.set_yticks(places, [rule["rule"] for rule in rules])

    alone, first = ([rule[name] for rule in rules] for name in ("alone", "dropped"))
    drops.barh(places, alone, color="0.82", label="alone")
    drops.barh(places, first, height=0.5, color="tab:red", label="after those above")
    most = max(alone, default=0) or 1
    for place, own, number in zip(places, alone, first):
        text = f"{number:,} of {own:,}"
        drops.annotate(text, (own, place), (3, 0), textcoords="offset points", va="center")
    drops.set_xlim(0, 1.45 * most)
    drops.set_xlabel("rows that it drops")
    drops.set_yticks(places, [])
    drops.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=9)
    for axis in (left, drops):
        axis.set_ylim(len(rules) - 0.4, -0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    if with_scores:
        _draw_similarities(figure.add_subplot(grid[1, :]), found)
    return png(figure)


def _draw_similarities(axis, found: dict[str, Any]) -> None:
    counts = np.array(found["similarities"]["rows"])
    edges = np.linspace(-1, 1, len(counts) + 1)
    some = np.flatnonzero(counts)
    axis.stairs(counts, edges, fill=True, color="tab:blue")
    cut = found["options"]["cut"]
    axis.axvline(cut, color="black", linewidth=1, linestyle="--")
    place = {"xycoords": axis.get_xaxis_transform(), "textcoords": "offset points"}
    axis.annotate(f"kept from {cut:.4g}", (cut, 0.97), (4, 0), va="top", **place)
    ends = edges[some[0]], edges[some[-1] + 1]
    axis.set_xlim(min(ends[0], cut) - 0.02, max(ends[1], cut) + 0.02)
    axis.set_xlabel("similarity of image and caption")
    axis.set_ylabel("rows")
    axis.spines[["top", "right"]].set_visible(False)
