"""`prepare` on Apache Beam: the same bytes as on one machine, whatever fails on the way."""

import asyncio
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from input_pipeline.files import copies, outages
from input_pipeline.prepare import command as prepare
from input_pipeline.words import command as words
from tests.bucket_server import directory_of
from tests.input_pipeline.prepare.prepare_data import (
    contents,
    image,
    run,
    run_source,
    write_tar,
    write_tars,
)
from tests.input_pipeline.prepare.test_command_labels import vocabulary

pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")

ROOT = Path(__file__).parents[3]
DIRECT = ("--runner", "Direct", "--direct_num_workers", "1")
TWO = ("--runner", "DirectRunner", "--direct_running_mode", "multi_processing")
TWO += ("--direct_num_workers", "2")
RULES = ("--drop-duplicates", "--min-side", "12", "--max-caption-words", "3", "--resize", "14")


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """With copies, small images, long captions, words of a vocabulary, and broken images."""
    folder = write_tars(tmp_path_factory.mktemp("input") / "tars", count=4, samples=3)
    samples = {
        "copy": (image(101), {"title": "a dog", "tags": ["a cat", "far too many words here"]}),
        "small": (image(5, (9, 30)), {"title": "a bird", "tags": []}),
    }
    write_tar(folder / "train-9.tar", samples)
    return folder


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    file = vocabulary(tmp_path_factory.mktemp("words") / "animals.tsv", ["dog", "bird", "cat"])
    return (*RULES, "--labels", str(file))


@pytest.fixture(scope="module")
def prepared(tars, rules, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "data"
    assert run(tars, output, *rules) == 0
    return output


def test_shards_are_the_same(tars, rules, prepared, tmp_path, capsys):
    assert run(tars, tmp_path / "out", *rules, *DIRECT) == 0
    assert contents(tmp_path / "out") == contents(prepared)
    said = capsys.readouterr().out
    assert "train-9.array_record: 0 records, 2 dropped, e.g. 'copy': duplicate image" in said
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.array*")}
    assert run(tars, tmp_path / "out", *rules, *DIRECT) == 0
    assert "5 of 5 shards are finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_shards_of_a_source_and_indices_are_the_same(tars, tmp_path):
    scenes = ("scenes", "split=val", "size=5", "image_size=32", "--records-per-shard", "2")
    for name, more in (("here", ()), ("beam", DIRECT)):
        assert run_source(tmp_path / name, *scenes, *more) == 0
        command = ["index", "--input", f"{tars}/*.tar", "--output", str(tmp_path / f"{name}_tars")]
        assert prepare.main([*command, *(more or ("--workers", "1"))]) == 0
    assert contents(tmp_path / "here") == contents(tmp_path / "beam")
    assert contents(tmp_path / "here_tars") == contents(tmp_path / "beam_tars")


def test_a_table_joined_to_tars_is_the_same(tmp_path, capsys):
    urls = {str(number): f"http://a.b/{number}.jpg" for number in range(4)}
    samples = {key: (image(int(key)), {"url": url}) for key, url in urls.items()}
    write_tar(tmp_path / "train-0.tar", samples)
    lines = [f"{url}\ta cat {key}" for key, url in urls.items()]
    (tmp_path / "a.tsv").write_text("\n".join(["url\ttext", *lines, "http://a.b/x\tnone"]))
    index = ["index", "--input", f"{tmp_path}/*.tar", "--output", str(tmp_path / "index")]
    assert prepare.main([*index, "--workers", "1"]) == 0
    source = ["table", f"path={tmp_path}/a.tsv", 'captions=["text"]', "url_column=url"]
    source += [f"downloads={tmp_path}/index", "--records-per-shard", "2"]
    for name, more in (("here", ()), ("beam", DIRECT)):
        assert run_source(tmp_path / name, *source, *more) == 0
    assert contents(tmp_path / "here") == contents(tmp_path / "beam")
    assert len(contents(tmp_path / "here")) == 5
    capsys.readouterr()
    assert run_source("gs://bucket/a", *source, "--runner", "Dataflow") == 1
    said = capsys.readouterr().err
    assert said == (
        "error: --runner Dataflow: its workers see no disk of this machine, where "
        f"{tmp_path}/a.tsv is: give one in a bucket (gs://...).\n"
    )


def test_what_a_local_disk_alone_has_is_refused_for_dataflow(tars, capsys):
    vocabulary_of = [
        "--threshold",
        "0",
        "--runner",
        "Dataflow",
        "--input",
        "scenes:split=val,size=8",
    ]
    vocabulary_of += ["--input", str(tars.parent), "--output", "gs://bucket/a.tsv"]
    index = ["index", "--input", f"{tars}/*.tar", "--runner", "Dataflow", "--output", "gs://b/a"]
    for command, place in (
        (lambda: run(tars, "gs://bucket/a", "--runner", "Dataflow"), f"{tars}/train-*.tar"),
        (lambda: words.main(vocabulary_of), str(tars.parent)),
        (lambda: prepare.main(index), f"{tars}/*.tar"),
    ):
        assert command() == 1
        assert f"no disk of this machine, where {place} is" in capsys.readouterr().err


def test_a_bundle_that_is_tried_again_changes_nothing(tars, rules, prepared, tmp_path):
    repeated = (*rules, *DIRECT, "--direct_runner_bundle_repeat", "1")
    assert run(tars, tmp_path / "out", *repeated) == 0
    assert contents(tmp_path / "out") == contents(prepared)


def test_a_damaged_tar_among_50_fails_alone(tmp_path, capsys):
    tars = write_tars(tmp_path / "tars", count=50, samples=1)
    whole = (tars / "train-31.tar").read_bytes()
    (tars / "train-31.tar").write_bytes(whole[:1500])
    assert run(tars, tmp_path / "out", *DIRECT) == 1
    said = capsys.readouterr()
    [line] = re.findall("FAILED.*", said.out)
    assert "train-31.tar" in line
    assert "1 of 50 shards failed (see above); 49 are finished" in said.err
    assert said.err.count("error: ") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"train-{i}.array_record{end}" for i in range(50) if i != 31 for end in ("", ".json")
    }
    (tars / "train-31.tar").write_bytes(whole)
    assert run(tars, tmp_path / "out", *DIRECT) == 0
    assert "49 of 50 shards are finished already" in capsys.readouterr().out
    assert run(tars, tmp_path / "here") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "here")


def test_an_option_of_nobody_is_refused_before_anything_is_written(tars, tmp_path, capsys):
    for given, word in (
        (["--min-sides", "3"], "--min-sides"),
        (["--region", "here", "b.tar"], "b.tar"),
        (["b.tar"], "b.tar"),
    ):
        assert run(tars, tmp_path / "out", *DIRECT, *given) == 1
        assert f"error: neither this command nor Beam has {word}" in capsys.readouterr().err
    assert run(tars, tmp_path / "out", *DIRECT, "--streaming=maybe") == 1
    assert capsys.readouterr().err.startswith("error: argument --streaming: ")
    with pytest.raises(SystemExit):
        run(tars, tmp_path / "out", "--min-sides", "3")
    assert "unrecognized arguments: --min-sides 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bucket_that_does_not_answer_for_a_while(
    tars, rules, prepared, bucket, bucket_server, monkeypatch, capsys
):
    async def at_once(_):
        return None

    monkeypatch.setattr(asyncio, "sleep", at_once)
    monkeypatch.setattr(outages, "_WAITS", (0, 0))
    count, refused = itertools.count(), []

    def spoil(number, method, path):
        """The first two shards: longer than a request is tried again for."""
        if method == "POST" and "/upload/" in path and 14 <= next(count) < 30:
            refused.append(path)
            return 503
        return None

    with bucket_server.faults.spoiling(spoil):
        assert run(tars, bucket, *rules, *DIRECT) == 0
    assert len(refused) == 16
    assert contents(bucket) == contents(prepared)
    assert "FAILED" not in capsys.readouterr().out


def test_tars_and_shards_in_a_bucket_of_s3(tars, rules, prepared, start_bucket_server, request):
    start_bucket_server("s3")
    bucket = directory_of("s3", request)
    for tar in tars.iterdir():
        copies.upload(tar, bucket / "tars" / tar.name)
    assert run(os.fspath(bucket / "tars"), bucket / "out", *rules, *DIRECT) == 0
    assert contents(bucket / "out") == contents(prepared)


@pytest.mark.slow
def test_a_full_disk_fails_what_does_not_fit(tmp_path):
    """A limit of the size of files, which a write meets as it meets the end of a disk."""
    tars = tmp_path / "tars"
    tars.mkdir()
    for name, size in (("a", 40), ("b", 900), ("c", 50)):
        write_tar(tars / f"train-{name}.tar", {"x": (image(1, size), {"title": name})})
    arguments = ["--input", f"{tars}/train-*.tar", "--captions", "title"]
    arguments += ["--output", str(tmp_path / "out")]
    program = f"{sys.executable} -m input_pipeline.prepare webdataset"
    for limit, more in itertools.product(("ulimit -f 200; ", ""), (DIRECT, ("--workers", "1"))):
        words = shlex.join([*arguments, *more])
        done = subprocess.run(
            ["bash", "-c", f"{limit}exec {program} {words}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        files = {path.name for path in (tmp_path / "out").iterdir()}
        if limit:
            assert done.returncode == 1
            [line] = re.findall("FAILED.*", done.stdout)
            assert "train-b.tar: " in line and "too large" in line
            assert files == {f"train-{n}.array_record{end}" for n in "ac" for end in ("", ".json")}
        else:
            assert done.returncode == 0, done.stderr
    assert run(tars, tmp_path / "here", captions="title") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "here")


@pytest.mark.slow
def test_two_workers_write_the_same(tars, rules, prepared, tmp_path, monkeypatch):
    assert run(tars, tmp_path / "out", *rules, *TWO) == 0
    assert contents(tmp_path / "out") == contents(prepared)
    monkeypatch.setattr(words.count, "_RECORDS_PER_PART", 3)
    for name, more in (("here", ("--workers", "1")), ("beam", DIRECT), ("two", TWO)):
        (tmp_path / name).mkdir()
        command = ["--input", "scenes:split=val,size=8,image_size=32", "--threshold", "0", *more]
        assert words.main([*command, "--output", str(tmp_path / name / "words.tsv")]) == 0
    for name in ("beam", "two"):
        assert contents(tmp_path / name) == contents(tmp_path / "here")


@pytest.mark.slow
def test_a_killed_command_continues(tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    large = image(size=900)  # slow to decode, so that the kill hits the middle of the work
    for i in range(6):
        write_tar(tars / f"train-{i}.tar", {str(j): (large, {"title": "t"}) for j in range(15)})
    output = tmp_path / "out"
    command = [sys.executable, "-m", "input_pipeline.prepare", "webdataset", "--captions", "title"]
    command += ["--input", f"{tars}/train-*.tar", "--output", str(output), *TWO]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(output.glob("*.array_record.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "dataset.json").exists() and (output / ".beam").exists()
    # Its workers may still be at it, and end once they see that this command took over.
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "shards are finished already" in again.stdout
    assert run(tars, tmp_path / "here", captions="title") == 0
    expected = contents(tmp_path / "here")
    deadline = time.monotonic() + 60
    while set(os.listdir(output)) != expected.keys():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert contents(output) == expected
