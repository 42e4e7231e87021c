"""The command `corpus filter`: the same files by any workers and attempts, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from input_pipeline.corpus import copies, jobs, runs
from input_pipeline.corpus.command import main
from input_pipeline.files import outages, ranges, tables
from input_pipeline.sources import make_source
from tests.input_pipeline.corpus import corpus_data as data
from tests.input_pipeline.corpus.test_rules import here
from tests.input_pipeline.prepare.prepare_data import contents, image

ROOT = Path(__file__).parents[3]
HASH = np.dtype("<u8")
SIDES = ["--max-aspect-ratio", "6"]


def filtered(tables, output, *rules, workers=1):
    words = ["filter", "--input", str(tables), "--output", str(output), *rules]
    return main([*words, "--workers", str(workers)])


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr("input_pipeline.command_line.in_processes", lambda workers: here)


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    sizes = [2000] * 5 + [40_000]  # the last leaves time to kill
    data.write(folder / "meta", [data.metadata(size, 10, i) for i, size in enumerate(sizes)])
    return folder


def test_workers_kills_and_attempts_change_no_byte(meta, tmp_path, capsys):
    """Of two commands one loses a worker in the middle, and is given again."""
    tables, rules = meta / "meta" / "*.parquet", data.arguments(meta)
    assert filtered(tables, tmp_path / "two", *rules, workers=2) == 0
    command = [sys.executable, "-m", "input_pipeline.corpus", "filter", "--input", str(tables)]
    command += ["--output", str(tmp_path / "killed"), *rules, "--workers", "1"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("[1/6] ") for line in lines)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:  # the worker, and what watches over its semaphores
            os.kill(int(child), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    done = len(list((tmp_path / "killed").glob("*.parquet.json")))
    assert process.returncode == 1 and "A worker process was killed" in errors
    assert not (tmp_path / "killed" / jobs.REPORT).exists() and 1 <= done < 6
    (tmp_path / "killed" / ".work" / ".part-003.parquet.0.tmp").write_bytes(b"half")
    capsys.readouterr()
    assert filtered(tables, tmp_path / "killed", *rules) == 0
    said = capsys.readouterr().out
    assert f"{done} of 6 files are finished already" in said and f"[1/{6 - done}]" in said
    assert "Reading captions" not in said  # these were counted before
    assert contents(tmp_path / "killed") == contents(tmp_path / "two")
    assert not [path for path in (tmp_path / "two").iterdir() if path.name.startswith(".")]


def test_what_is_finished_is_not_done_again(meta, tmp_path, capsys, in_this_process):
    tables, output = meta / "meta" / "part-00[01].parquet", tmp_path / "out"
    rules = [*SIDES, "--max-caption-copies", "3"]
    assert filtered(tables, output, *rules) == 0
    before, times = contents(output), times_of(output)
    capsys.readouterr()
    assert filtered(tables, output, *rules) == 0
    assert "All 2 files are finished already" in capsys.readouterr().out
    assert contents(output) == before and times_of(output) == times
    assert filtered(tables, output, "--max-aspect-ratio", "5") == 1
    assert "made with other options" in capsys.readouterr().err
    assert filtered(meta / "meta" / "part-000.parquet", output, *rules) == 1
    assert "was not made of these tables" in capsys.readouterr().err


def times_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}


def test_a_table_that_changed_changes_what_is_too_often(tmp_path, in_this_process):
    """Also in the others."""
    tables = [pa.table({"TEXT": ["a", "b", "c"]}), pa.table({"TEXT": ["a", "d"]})]
    [first, _] = data.write(tmp_path / "meta", tables)
    output = tmp_path / "out"
    kept = []
    for texts in (["a", "b", "c"], ["b", "c", "d"]):
        pa.parquet.write_table(pa.table({"TEXT": texts}), first)
        os.utime(first, ns=(len(kept), len(kept)))
        assert filtered(f"{tmp_path}/meta/*", output, "--max-caption-copies", "1") == 0
        found = [pa.parquet.read_table(p)["TEXT"].to_pylist() for p in output.glob("*.parquet")]
        kept.append(sorted(text for texts in found for text in texts))
    assert kept == [["b", "c", "d"], ["a", "b", "c"]]


def test_a_corrupt_table_among_50_is_one_line(tmp_path, capsys, in_this_process):
    paths = data.write(tmp_path / "meta", [data.metadata(50, 1, i) for i in range(50)])
    whole = paths[7].read_bytes()
    middle = len(whole) // 2
    damages = (whole[:-50], whole[:20] + bytes(400) + whole[420:], b"", whole[:middle])
    for number, damaged in enumerate(damages):
        paths[7].write_bytes(damaged)
        output = tmp_path / f"out{number}"
        assert filtered(tmp_path / "meta" / "*.parquet", output, *SIDES) == 1
        said = capsys.readouterr()
        [line] = re.findall(r"FAILED.*", said.out)
        assert "part-007.parquet cannot be read: " in line
        assert said.err.count("\n") == 1 and "1 of 50 files failed" in said.err
        assert len(list(output.glob("*.parquet"))) == 49
    paths[7].write_bytes(whole)
    assert filtered(tmp_path / "meta" / "*.parquet", output, *SIDES) == 0
    assert "49 of 50 files are finished already" in capsys.readouterr().out
    report = json.loads((output / jobs.REPORT).read_bytes())
    assert report["rows"] == 2500 and len(list(output.glob("*.parquet"))) == 50


def test_a_corrupt_table_is_one_line_also_where_all_are_read_first(
    tmp_path, capsys, in_this_process
):
    """No table is filtered then, but none is read for its captions again."""
    paths = data.write(tmp_path / "meta", [data.metadata(50, 1, i) for i in range(5)])
    whole = paths[2].read_bytes()
    paths[2].write_bytes(whole[:-50])
    words = f"{tmp_path}/meta/*", tmp_path / "out", *SIDES, "--max-caption-copies", "3"
    assert filtered(*words) == 1
    said = capsys.readouterr()
    [line] = re.findall(r"FAILED.*", said.out)
    assert "part-002.parquet cannot be read: " in line
    assert said.err.count("\n") == 1 and "All must be read before any can be filtered" in said.err
    assert not list((tmp_path / "out").glob("*.parquet"))
    paths[2].write_bytes(whole)
    assert filtered(*words) == 0
    assert "to count their copies (1 of 5 to do)" in capsys.readouterr().out


def test_an_outage_is_outlasted_and_no_damaged_table(
    tmp_path, bucket, monkeypatch, capsys, in_this_process
):
    [path] = data.write(tmp_path / "meta", [data.metadata(20_000, 10)])
    table = bucket / "meta" / path.name
    table.write_bytes(path.read_bytes())
    opened = []

    def fail_once(path):
        """At the second time that the table is opened, behind its description."""
        file, reads = ranges.open_file(path), []
        opened.append(file)
        if len(opened) == 2:
            read = file.read

            def reading(*size):
                reads.append(size)
                if len(reads) > 2:
                    raise outages.Unreachable("503: come again")
                return read(*size)

            file.read = reading
        return file

    monkeypatch.setattr(tables, "open_file", fail_once)
    for waits, status in (((0,), 0), ((), 1)):
        opened.clear()
        monkeypatch.setattr(outages, "_WAITS", waits)
        assert filtered(table, tmp_path / f"out{status}", *SIDES) == status
        said = capsys.readouterr().out
        assert len(opened) == 3 - status and "cannot be read" not in said
        assert ("FAILED" in said) == ("503: come again" in said) == bool(status)


def test_what_another_command_removed_is_one_error(meta, tmp_path, capsys, monkeypatch):
    def run(function, tasks, unit, console):
        yield from here(function, tasks, unit, console)
        jobs.clear(tmp_path / "out")  # as one that has ended does

    monkeypatch.setattr("input_pipeline.command_line.in_processes", lambda workers: run)
    words = "--max-caption-copies", "3"
    assert filtered(meta / "meta" / "part-000.parquet", tmp_path / "out", *words) == 1
    errors = capsys.readouterr().err
    assert "another command with this --output has ended" in errors and errors.count("\n") == 1


def test_results_of_tasks_are_counts_alone(meta, tmp_path, monkeypatch):
    """The samples of all tables would fill the memory of the command."""
    results = []

    def run(*arguments):
        for label, result in here(*arguments):
            results.append(result)
            yield label, result

    monkeypatch.setattr("input_pipeline.command_line.in_processes", lambda workers: run)
    assert filtered(meta / "meta" / "part-000.parquet", tmp_path / "out", "--min-side", "300") == 0
    [result] = results
    assert len(json.dumps(result)) < 1000 and result["rules"][0]["dropped"] > 20
    assert len((tmp_path / "out" / jobs.DROPPED).read_text().splitlines()) == 21


def test_tables_of_other_kinds(tmp_path, in_this_process):
    table = data.metadata(20_000, 100).select(["URL", "TEXT", "WIDTH", "HEIGHT"])
    (tmp_path / "meta").mkdir()

    def write_arrow(table, path):
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=7000)

    write = {
        "a.arrow": write_arrow,
        "b.csv": pa.csv.write_csv,
        "c.parquet": pa.parquet.write_table,
    }
    for name, to in write.items():
        to(table, tmp_path / "meta" / name)
    assert filtered(f"{tmp_path}/meta/*", tmp_path / "out", *SIDES) == 0
    found = [pa.parquet.read_table(tmp_path / "out" / f"{name}.parquet") for name in "abc"]
    assert found[0].equals(found[2]) and 19_000 < len(found[0]) < 20_000
    assert found[1].equals(found[0].cast(found[1].schema))  # text, as a .csv has it


def test_hashes_and_counts_do_not_depend_on_how_they_are_cut(tmp_path, monkeypatch):
    texts = [f"{i % 700}" for i in range(3000)] + ["x"] * 5
    paths = data.write(tmp_path, [pa.table({"TEXT": texts[i::2]}) for i in range(2)])
    planned = jobs.plan(f"{tmp_path}/*.parquet")
    assert [job.table for job in planned] == paths

    def frequent(output):
        files, _ = copies.find_frequent(planned, tmp_path / output, {}, 4, here, Silent())
        return copies.load(files).tolist()

    whole = frequent("whole")
    monkeypatch.setattr(runs, "RUN", 64)
    monkeypatch.setattr(copies, "_PART", 500)
    assert frequent("parts") == whole and len(whole) == 200 + 1


def test_one_caption_in_all_rows_is_counted_in_every_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUN", 64)
    runs.write(tmp_path / "a", iter([np.full(300, 7, "<u8"), np.arange(200, dtype="<u8")]), HASH)
    held, concatenate = [], np.concatenate

    def watched(parts):
        held.append(sum(map(len, parts)))
        return concatenate(parts)

    for most, expected in ((300, [7]), (301, [])):
        with monkeypatch.context() as patch:
            patch.setattr(copies.np, "concatenate", watched)
            assert copies.count(tmp_path / "out", [tmp_path / "a"], 0, 100, most) == ""
        assert np.fromfile(tmp_path / "out", HASH).tolist() == expected
    assert max(held) < 120  # each of the runs has it once


class Silent:
    def print(self, *text, **options):
        pass


def test_prepare_reads_what_is_kept(tmp_path, in_this_process):
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(image(name))
    table = pa.table({"file": ["a.jpg", "b.jpg"], "TEXT": ["a cat", "cat"]})
    data.write(tmp_path / "meta", [table])
    rules = ["--min-caption-words", "2"]
    assert filtered(f"{tmp_path}/meta/*", tmp_path / "out", *rules) == 0
    arguments = {"image_column": "file", "image_root": tmp_path, "captions": ["TEXT"]}
    source = make_source("table", path=f"{tmp_path}/out/*.parquet", **arguments)
    assert [source[i]["captions"] for i in range(len(source))] == [{"TEXT": ["a cat"]}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No rule is given"),
        (["--max-nsfw", "0.5", "--column", "nsfw=x"], r"part-000.parquet: it has no column 'x'"),
        (["--min-side", "64", "--column", "side=x"], "--column 'side=x': give KIND=NAME"),
        (["--min-side", "64", "--column", "width=a", "--column", "width=b"], "one column, not a"),
        (["--drop-words", "nowhere.txt"], "nowhere.txt"),
        (["--max-aspect-ratio", "1", "--min-side", "9999"], "No row is left"),
    ],
)
def test_what_is_refused_is_one_line(meta, tmp_path, words, message, capsys, in_this_process):
    assert filtered(meta / "meta" / "part-00[01].parquet", tmp_path / "out", *words) == 1
    errors = capsys.readouterr().err
    assert re.search(message, errors) and errors.count("\n") == 1


def test_tables_are_not_written_over(tmp_path, capsys, in_this_process):
    [path] = data.write(tmp_path / "meta", [data.metadata(100, 1)])
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "meta")
    for output in ("meta", "link"):
        assert filtered(path, tmp_path / output, *SIDES) == 1
        assert "would be overwritten: use another --output" in capsys.readouterr().err
    assert path.read_bytes() == before and len(list((tmp_path / "meta").iterdir())) == 1


def test_tables_in_a_bucket_are_not_written_over(tmp_path, bucket, capsys, in_this_process):
    [path] = data.write(tmp_path / "meta", [data.metadata(100, 1)])
    table = bucket / "meta" / path.name
    table.write_bytes(path.read_bytes())
    assert filtered(table, bucket / "meta", *SIDES) == 1
    assert "would be overwritten: use another --output" in capsys.readouterr().err
    assert table.read_bytes() == path.read_bytes()
    words = *SIDES, "--max-caption-copies", "3"
    assert filtered(table, bucket / "out", *words) == filtered(path, tmp_path / "out", *words) == 0
    one, other = (folder / "out" / path.name for folder in (bucket, tmp_path))
    assert one.read_bytes() == other.read_bytes()
    assert not list((bucket / "out").glob(".work/*"))


def test_no_column_of_a_rule_is_told_with_those_there_are(tmp_path, capsys, in_this_process):
    data.write(tmp_path / "meta", [pa.table({"a": [1], "b": ["x"]})])
    assert filtered(f"{tmp_path}/meta/*", tmp_path / "out", "--max-watermark", "0.5") == 1
    assert (
        "no column is known to hold the watermark (such as pwatermark, watermark_score); it "
        in (capsys.readouterr().err)
    )
    assert not (tmp_path / "out").exists()
