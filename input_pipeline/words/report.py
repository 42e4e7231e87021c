"""Writes a vocabulary and what is to be known about it: the text file, JSON, a drawing, a table."""

from collections import Counter
from pathlib import Path
from typing import Any

from etils import epath
from rich.console import Console
from rich.table import Table

from input_pipeline.figures import new_figure, png
from input_pipeline.files.whole import write_json, write_whole
from input_pipeline.words import synsets
from input_pipeline.words.count import Job, Totals
from input_pipeline.words.vocabulary import Vocabulary
from input_pipeline.workers import say

_THRESHOLDS = (1, 10, 100, 500, 1000, 2500, 5000, 10_000)  # the paper's are among them
_SHOWN = 20


def write(
    totals: Totals, job: Job, threshold: int, size: int | None, output: Path | epath.Path
) -> None:
    """Writes `output` (.tsv), and beside it .json and .png; prints the table.

    Args:
      threshold: synsets that occur more often are kept.
      size: and of these the most frequent; None for all.

    Raises:
      ValueError: there is nothing to count, or nothing is left.
    """
    ranked = sorted(totals.labels.items(), key=lambda item: (-item[1], int(item[0][1:])))
    kept = [(key, count) for key, count in ranked if count > threshold][:size]
    _check(totals, job, ranked, kept, threshold)
    # Named one by one also where all count: with other data, all would be others.
    vocabulary = Vocabulary(*zip(*kept), sorted(totals.captions), job.mode)
    captions = totals.captions.total()
    settings = f"threshold: {threshold}" + (f"; size: {size}" if size else "")
    comments = [
        f"Synsets that occur more than {threshold} times in captions, the most frequent first.",
        f"WordNet: {synsets.VERSION}, table {synsets.load().checksum}",
        settings,
        f"captions: {captions}; with a label: {captions - totals.unlabelled_captions}",
    ]
    vocabulary.write(output, comments)
    report = describe(totals, job, vocabulary, threshold, size)
    write_json(output.with_suffix(".json"), report)
    write_whole(output.with_suffix(".png"), draw(ranked, threshold, len(vocabulary)))
    console = Console()
    console.print(_table(report))
    say(console, f"Wrote {output}, and beside it .json and .png")


def _check(totals: Totals, job: Job, ranked: list, kept: list, threshold: int) -> None:
    missing = [name for name in job.captions or () if name not in totals.captions]
    if missing:
        known = ", ".join(sorted(totals.captions | totals.skipped)) or "none"
        raise ValueError(f"No record has captions {missing[0]!r}. Available: {known}.")
    if not totals.captions.total():
        raise ValueError("There is no caption in the input.")
    if not ranked:
        raise ValueError(f"No caption of {totals.captions.total():,} names a synset.")
    if not kept:
        key, count = ranked[0]
        raise ValueError(
            f"No synset occurs more than {threshold} times; {synsets.load().name(key)}, the most "
            f"frequent, occurs {count} times: choose a lower --threshold."
        )


def describe(
    totals: Totals, job: Job, vocabulary: Vocabulary, threshold: int, size: int | None
) -> dict[str, Any]:
    """What the JSON says."""
    captions, labels = totals.captions.total(), totals.labels.total()
    counts = totals.labels.values()
    return {
        "wordnet": synsets.VERSION,
        "table": synsets.load().checksum,
        "mode": job.mode,
        "threshold": threshold,
        "size": size,
        "inputs": job.inputs,
        "classes": len(vocabulary),
        "fingerprint": vocabulary.fingerprint(),
        "records": totals.records,
        "records_without_label": totals.unlabelled_records,
        "captions": captions,
        "captions_by_field": dict(sorted(totals.captions.items())),
        "captions_without_label": totals.unlabelled_captions,
        "labels": labels,
        "labels_per_caption": round(labels / captions, 4),
        "synsets": len(totals.labels),
        "synsets_above": {str(n): sum(count > n for count in counts) for n in _THRESHOLDS},
        "labels_kept": round(sum(vocabulary.counts) / labels, 6),
        "coverage": {
            "of_captions": _coverage(totals.sampled_captions, vocabulary),
            "of_records": _coverage(totals.sampled_records, vocabulary),
        },
        "most_frequent": [
            {"name": name, "key": key, "count": count}
            for name, key, count in list(zip(vocabulary.names, vocabulary.keys, vocabulary.counts))[
                :_SHOWN
            ]
        ],
    }


def _coverage(sample: Counter[tuple[str, ...]], vocabulary: Vocabulary) -> dict[str, Any]:
    """Of the captions or records of the sample: how many have a class, and how many classes."""
    looked_at, covered, classes = sample.total(), 0, 0
    for keys, number in sample.items():
        found = len(vocabulary.labels(keys))
        covered += number * (found > 0)
        classes += number * found
    return {
        "looked_at": looked_at,
        "with_a_class": round(covered / looked_at, 6),
        "classes_each": round(classes / looked_at, 4),
    }


def _table(report: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    for name in ("records", "captions"):
        without = report[f"{name}_without_label"]
        table.add_row(name, f"{report[name]:,}, {without:,} without label")
    table.add_row("labels", f"{report['labels']:,}, {report['labels_per_caption']:.2f} a caption")
    table.add_row("synsets", f"{report['synsets']:,}")
    for threshold, number in report["synsets_above"].items():
        table.add_row(f"synsets above {int(threshold):,}", f"{number:,}")
    table.add_row("classes", f"{report['classes']:,}, {report['labels_kept']:.1%} of all labels")
    for name in ("captions", "records"):
        part = report["coverage"][f"of_{name}"]
        text = f"{part['with_a_class']:.1%}, {part['classes_each']:.2f} classes each"
        if part["looked_at"] < report[name]:
            text += f" (of {part['looked_at']:,} {name}, evenly spread)"
        table.add_row(f"{name} with a class", text)
    names = (f"{word['name']} {word['count']:,}" for word in report["most_frequent"])
    table.add_row("most frequent", "\n".join(names))
    return table


def draw(ranked: list[tuple[str, int]], threshold: int, size: int) -> bytes:
    """The counts of all synsets by rank, and where the vocabulary ends, as a PNG."""
    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    counts = [count for _, count in ranked]
    ranks = range(1, len(counts) + 1)
    axis.loglog(ranks, counts, linewidth=2)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.fill_between(ranks[:size], counts[:size], 0.7, alpha=0.2)
    if threshold:
        axis.axhline(threshold, color="black", linewidth=1, linestyle="--")
        place = {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points"}
        axis.annotate(f"threshold {threshold:,}", (0, threshold), (4, 4), **place)
    axis.set_ylim(bottom=0.7)
    axis.set_xlabel("rank")
    axis.set_ylabel("occurrences")
    axis.set_title(f"{len(counts):,} synsets, {size:,} of them classes", loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)
