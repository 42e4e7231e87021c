"""Turns downloaded data into shards for training: `python -m input_pipeline.prepare webdataset`.

Every input tar becomes one ArrayRecord shard and a small JSON about it; `dataset.json` beside them
describes the whole and is written last. A shard is complete or absent, so the command can be killed
at any time and run again: finished shards are kept. The output depends on the input and the options
alone, not on the number of workers or of attempts. One run per output directory at a time.
"""

import argparse
import glob
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from big_vlp import __version__
from input_pipeline import records, webdataset

# One record per chunk makes random access cheap; encoded images do not compress any further.
WRITER_OPTIONS = "group_size:1,uncompressed"
SHARD_SUFFIX = ".array_record"
TEMPORARY_SUFFIX = ".tmp"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.prepare",
        description="Turns downloaded data into ArrayRecord shards for training.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "webdataset",
        help="WebDataset tars: image + .json and/or .txt",
        description="One shard per tar. Images are checked and stored as they are. "
        "An interrupted run continues where it stopped.",
    )
    command.add_argument(
        "--input", required=True, metavar="'DIR/*.tar'", help="pattern of the tars, in quotes"
    )
    command.add_argument("--output", required=True, type=Path, metavar="DIR")
    command.add_argument(
        "--captions",
        required=True,
        type=_field_list,
        metavar="FIELD,...",
        help="JSON fields that hold a caption or a list of captions; txt is the .txt file",
    )
    command.add_argument(
        "--split-sentences",
        action="store_true",
        help="split captions at full stops and line ends, as COSMOS expects",
    )
    command.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="processes (default: one per CPU); the output does not depend on it",
    )
    command.set_defaults(run=_run_webdataset)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _field_list(text: str) -> tuple[str, ...]:
    fields = tuple(field.strip() for field in text.split(","))
    if not all(fields) or len(set(fields)) < len(fields):
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma list of different fields")
    return fields


def _run_webdataset(args: argparse.Namespace) -> int:
    if args.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {args.workers}.")
    tars = _find_tars(args.input)
    options = {
        "command": args.command,
        "captions": list(args.captions),
        "split_sentences": args.split_sentences,
    }
    started = time.monotonic()
    shards = _finished_shards(args.output, tars, options)
    pending = [tar for tar in tars if _shard_file(tar) not in shards]
    dataset_file = args.output / records.DATASET_FILE
    if pending:
        # It would describe shards that are about to change.
        dataset_file.unlink(missing_ok=True)
    console = Console()
    if shards:
        _say(console, f"{len(shards)} of {len(tars)} shards are finished already.")
    failures = []
    try:
        for result in _prepare_all(pending, args.output, options, args.workers, console):
            if isinstance(result, str):
                failures.append(result)
            else:
                shards[result["file"]] = result
    except KeyboardInterrupt:
        _say(console, "Interrupted. Run the same command to continue.")
        return 130
    if failures:
        _say(
            console,
            f"{len(failures)} of {len(tars)} tars failed (see above); {len(shards)} shards are "
            "finished and will be kept. The data set is complete, and can be opened, once the same "
            "command has run without failures.",
        )
        return 1
    ordered = [shards[_shard_file(tar)] for tar in tars]
    if not any(shard["records"] for shard in ordered):
        reasons = _total(Counter(d["reason"] for d in shard["dropped"]) for shard in ordered)
        raise ValueError(f"No record is left: every sample was dropped ({reasons}).")
    description = _describe(ordered, options, Path(args.input).name)
    _write_json(dataset_file, description)
    _summary(console, description, time.monotonic() - started)
    _say(console, f"Wrote {dataset_file}")
    return 0


def _find_tars(pattern: str) -> list[Path]:
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
                "prepare them into two data sets."
            )
    return tars


def _shard_file(tar: Path) -> str:
    return tar.stem + SHARD_SUFFIX


def _finished_shards(
    output: Path, tars: list[Path], options: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """What earlier runs finished: shard file -> its JSON. Removes what they left half-written.

    Raises:
      ValueError: `output` holds other files, or shards made with other options or from other tars.
    """
    output.mkdir(parents=True, exist_ok=True)
    for path in output.glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
    sizes = {_shard_file(tar): tar.stat().st_size for tar in tars}
    finished = {}
    for path in sorted(output.iterdir()):
        file = path.name.removesuffix(".json")
        if path.name == records.DATASET_FILE or path.name.startswith("."):
            continue
        if not file.endswith(SHARD_SUFFIX):
            raise ValueError(f"{path} does not belong to a data set: use an empty --output.")
        if file not in sizes:
            raise ValueError(
                f"{path} was made from a tar that --input does not match: use another --output, or "
                "remove the file."
            )
        if path.name == file:
            continue  # Judged by its JSON, which is written after it.
        try:
            shard = json.loads(path.read_bytes())
        except ValueError:
            continue
        if shard["version"] != records.FORMAT_VERSION or shard["options"] != options:
            raise ValueError(
                f"{output} holds shards made with other options ({shard['options']}, format "
                f"version {shard['version']}; now {options}, {records.FORMAT_VERSION}): use "
                "another --output, or empty it."
            )
        complete = (output / file).is_file() and (output / file).stat().st_size == shard["bytes"]
        if complete and shard["source"]["bytes"] == sizes[file]:
            finished[file] = shard
    return finished


def _prepare_all(
    tars: list[Path], output: Path, options: dict[str, Any], workers: int, console: Console
) -> Iterator[dict[str, Any] | str]:
    """Yields for every tar, as they complete, its shard's JSON or the reason of its failure."""
    if not tars:
        return
    pool = ProcessPoolExecutor(
        min(workers, len(tars)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    progress = Progress(
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} MB"),
        BarColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with pool, progress:
        megabytes = {tar: tar.stat().st_size / 1e6 for tar in tars}
        bar = progress.add_task("", total=sum(megabytes.values()))
        futures = {pool.submit(_prepare_tar, tar, output, options): tar for tar in tars}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                result = future.result()
                if isinstance(result, str):
                    text = f"FAILED {result}"
                else:
                    text = f"{result['file']}: {result['records']:,} records"
                    if result["dropped"]:
                        text += f", {len(result['dropped']):,} dropped"
                _say(console, f"[{count}/{len(tars)}] {text}")
                progress.advance(bar, megabytes[futures[future]])
                yield result
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()  # Nothing is lost but half-written shards.
            raise
        except BrokenProcessPool:
            raise ValueError(
                "A worker process was killed (out of memory?). Run the same command, with fewer "
                "--workers, to continue."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A pool's workers outlive a parent that was killed, and would go on writing.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _prepare_tar(tar: Path, output: Path, options: dict[str, Any]) -> dict[str, Any] | str:
    """Writes the shard of one tar and its JSON. Returns the JSON, or the reason of the failure."""
    file = _shard_file(tar)
    temporary = output / f".{file}.{os.getpid()}{TEMPORARY_SUFFIX}"
    try:
        size = tar.stat().st_size
        tally = webdataset.Tally()
        fields, split = tuple(options["captions"]), options["split_sentences"]
        count = _write_records(temporary, webdataset.read_records(tar, fields, split, tally))
        with open(temporary, "rb") as shard:
            checksum = hashlib.file_digest(shard, "sha256").hexdigest()
            os.fsync(shard.fileno())
        info = {
            "version": records.FORMAT_VERSION,
            "options": options,
            "source": {"file": tar.name, "bytes": size},
            "file": file,
            "records": count,
            "bytes": temporary.stat().st_size,
            "sha256": checksum,
            "samples": tally.samples,
            "dropped": tally.dropped,
            "missing_captions": tally.missing_captions,
            "captions": tally.captions,
            "images": {
                "formats": dict(sorted(tally.formats.items())),
                "width": _range(tally.widths),
                "height": _range(tally.heights),
            },
        }
        # The JSON of a replaced shard must not vouch for its successor.
        (output / f"{file}.json").unlink(missing_ok=True)
        os.replace(temporary, output / file)
        _write_json(output / f"{file}.json", info)
        return info
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: the ArrayRecord writer's.
        temporary.unlink(missing_ok=True)
        text = str(error)
        return text if str(tar) in text else f"{tar}: {text}"


def _range(values: list[int]) -> dict[str, int]:
    return {"min": min(values, default=0), "max": max(values, default=0), "sum": sum(values)}


def _write_records(path: Path, examples: Iterable[dict[str, Any]]) -> int:
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    count = 0
    try:
        for example in examples:
            writer.write(records.encode(example))
            count += 1
    finally:
        writer.close()
    return count


def _describe(
    shards: list[dict[str, Any]], options: dict[str, Any], pattern: str
) -> dict[str, Any]:
    """Contents of dataset.json."""
    num_records = sum(shard["records"] for shard in shards)
    statistics: dict[str, Any] = {"formats": _total(shard["images"]["formats"] for shard in shards)}
    for side in ("width", "height"):
        ranges = [shard["images"][side] for shard in shards if shard["records"]]
        statistics[side] = {
            "min": min(r["min"] for r in ranges),
            "max": max(r["max"] for r in ranges),
            "mean": round(sum(r["sum"] for r in ranges) / num_records, 2),
        }
    captions = options["captions"]
    arguments = [options["command"], "--input", pattern, "--captions", ",".join(captions)]
    if options["split_sentences"]:
        arguments.append("--split-sentences")
    return {
        "version": records.FORMAT_VERSION,
        "made_by": {
            "tool": "input_pipeline.prepare",
            "version": __version__,
            "arguments": arguments,
        },
        "fields": {"id": "str", "image": "bytes", "captions": captions},
        "num_records": num_records,
        "num_samples": sum(shard["samples"] for shard in shards),
        "dropped": _total(Counter(d["reason"] for d in shard["dropped"]) for shard in shards),
        "captions": _total(shard["captions"] for shard in shards),
        "missing_captions": _total(shard["missing_captions"] for shard in shards),
        "images": statistics,
        "shards": [
            {key: shard[key] for key in ("file", "records", "bytes", "sha256", "source")}
            for shard in shards
        ],
    }


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _summary(console: Console, description: dict[str, Any], seconds: float) -> None:
    table = Table(show_header=False)
    shards, statistics = description["shards"], description["images"]
    size = sum(shard["bytes"] for shard in shards)
    table.add_row("records", f"{description['num_records']:,}")
    table.add_row("samples read", f"{description['num_samples']:,}")
    for reason, count in description["dropped"].items():
        table.add_row(f"dropped: {reason}", f"{count:,}")
    for field, count in description["captions"].items():
        missing = description["missing_captions"][field]
        note = f" (no such field in {missing:,} samples)" if missing else ""
        table.add_row(f"captions: {field}", f"{count:,}{note}")
    for name, count in statistics["formats"].items():
        table.add_row(f"images: {name}", f"{count:,}")
    for side in ("width", "height"):
        low, high, mean = (statistics[side][key] for key in ("min", "max", "mean"))
        table.add_row(f"image {side}", f"{low} to {high}, mean {mean} px")
    table.add_row("shards", f"{len(shards):,}, {size / 1e6:,.1f} MB")
    table.add_row("time", f"{seconds:.1f} s")
    console.print(table)


def _say(console: Console, text: str) -> None:
    # Plain text: brackets are no markup, and lines in a log are not wrapped.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with open(temporary, "w", encoding="ascii") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
