"""Filtering metadata: rows per second and core, and memory, for tables of growing length.

Each table is one parquet file of one group of rows, as LAION-2B has columns (a caption of seven
words). A row is the work of one process on one core, from the start of a table to its files: with
the rules on numbers and tags alone, with all but the copies of captions, and with these, too, which
reads captions twice; and the filter by similarity, with embeddings of all rows. Memory is the most
that the process ever held, with what it imports.
"""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from rich.console import Console

from input_pipeline.corpus import command, copies, jobs, rules, similarity
from tests.benchmarks.common import one_core
from tests.input_pipeline.corpus import corpus_data

NUMBERS = {
    "max_aspect_ratio": 6.0,
    "min_side": 64,
    "max_nsfw": 0.5,
    "nsfw_tags": ("UNLIKELY",),
    "max_watermark": 0.8,
    "min_similarity": 0.28,
    "languages": ("en",),
}
CAPTIONS = {
    "min_caption_words": 3,
    "max_caption_words": 60,
    "min_caption_characters": 5,
    "max_caption_characters": 500,
    "min_letters": 0.5,
    "max_repeated_words": 0.5,
}


def measure(rows: int = 1_000_000) -> list[dict]:
    """Args: rows of the longest table; the others have a tenth and a hundredth."""
    found = []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus_data.arguments(folder)
        lists = {
            "drop_words": rules.Listed.of(f"{folder}/words.txt"),
            "drop_domains": rules.Listed.of(f"{folder}/domains.txt"),
        }
        cases = {
            "numbers": NUMBERS,
            "and captions": NUMBERS | CAPTIONS | lists,
            "and copies": NUMBERS | CAPTIONS | lists | {"max_caption_copies": 3},
        }
        for size in (rows // 100, rows // 10, rows):
            table = corpus_data.write(
                folder / f"{size}", [corpus_data.metadata(size, size // 1000)], size
            )[0]
            for case, limits in cases.items():
                arguments = table, folder / f"{size} {case}", limits
                with ProcessPoolExecutor(1, mp_context=spawn) as process:
                    result = process.submit(filtered, *arguments).result()
                found.append({"case": f"{size:,} rows, {case}", **result})
            arguments = table, write_embeddings(table, size), folder / f"{size} similarity"
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                result = process.submit(compared, *arguments).result()
            found.append({"case": f"{size:,} rows, similarity", **result})
    return found


def filtered(table: Path, output: Path, limits: dict) -> dict:
    """What one process needs to filter a table."""
    output.mkdir()
    [job] = jobs.plan(str(table))
    chosen, frequent = rules.Rules(**limits), ()
    about = {"options": {}, "given": {}}
    with one_core():
        started = time.perf_counter()
        if chosen.max_caption_copies is not None:
            console = Console(quiet=True)
            frequent, _ = copies.find_frequent([job], output, {}, 3, in_this_process, console)
        info = command.filter_table(job, output, about, chosen, frequent, {}, False)
        seconds = time.perf_counter() - started
    return {"rows_per_s": info["rows"] / seconds, "peak_mib": peak(), "kept": info["kept"]}


def compared(table: Path, embeddings: Path, output: Path) -> dict:
    """What one process needs to filter a table by similarity."""
    planned, found = jobs.plan(str(table)), similarity.find_embeddings(str(embeddings))
    about = {"options": {}, "given": {}}
    output.mkdir()
    with one_core():
        started = time.perf_counter()
        console = Console(quiet=True)
        files = similarity.match(planned, found, output, {}, in_this_process, console)
        cut, [ties] = similarity.choose(similarity.Mapped(files), 0.3)
        info = similarity.sift_best(planned[0], output, about, files[0], cut, ties)
        seconds = time.perf_counter() - started
    return {"rows_per_s": info["rows"] / seconds, "peak_mib": peak(), "kept": info["kept"]}


def write_embeddings(table: Path, rows: int) -> Path:
    """As `big_vlp.embed` does, of all rows and random; in parts, as it has them."""
    path, rng = table.with_suffix(".emb.parquet"), np.random.default_rng(0)
    texts = pa.parquet.read_table(table, columns=["TEXT"])["TEXT"].combine_chunks()
    writer = None
    for first in range(0, rows, 1024):
        part = texts[first : first + 1024]
        ends = pa.array(np.arange(len(part) + 1, dtype=np.int32))
        image, text = (
            pa.FixedSizeListArray.from_arrays(
                pa.array(rng.normal(size=len(part) * 64).astype(np.float32)), 64
            )
            for _ in range(2)
        )
        columns = {
            "id": pa.array([f"{table.stem}/{first + i}" for i in range(len(part))]),
            "image": image,
            "captions": pa.ListArray.from_arrays(ends, part),
            "text": pa.ListArray.from_arrays(ends, text),
        }
        batch = pa.table(columns)
        writer = writer or pa.parquet.ParquetWriter(path, batch.schema)
        writer.write_table(batch)
    writer.close()
    return path


def in_this_process(function, tasks, unit, console):
    for label, arguments in tasks:
        yield label, function(*arguments)


def peak() -> float:
    """MiB, of this process since it began."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")
