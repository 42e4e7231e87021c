"""The command `prepare webdataset`: what it writes, what it keeps, what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import input_pipeline
from input_pipeline.sources import make_source
from tests.input_pipeline.prepare.prepare_data import (
    contents,
    ids,
    image,
    run,
    write_tar,
    write_tars,
)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("input") / "tars")


@pytest.fixture(scope="module")
def prepared(tars, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "data"
    assert run(tars, output) == 0
    return output


def test_records_are_the_good_samples(tars, prepared):
    source = make_source("prepared", path=prepared)
    assert len(source) == 12
    expected = [
        {
            "id": f"train-{i}/{j:03d}",
            "image": image(100 * i + j),
            "captions": {"title": [f"Tar {i}. Item {j}"], "tags": ["x", f"t{j}"]},
        }
        for i in range(3)
        for j in range(4)
    ]
    assert [source[i] for i in range(len(source))] == expected


def test_description_counts_everything_and_names_no_directory(tars, prepared):
    text = (prepared / "dataset.json").read_text()
    description = json.loads(text)
    assert description["num_samples"] == 18
    assert description["num_records"] == 12
    assert description["dropped"] == {"broken image": 3, "no caption": 3}
    assert description["captions"] == {"title": 12, "tags": 24}
    assert description["missing_captions"] == {"title": 0, "tags": 0}
    assert description["images"]["formats"] == {"jpeg": 12}
    assert description["images"]["width"] == {"min": 16, "max": 16, "mean": 16.0}
    assert description["fields"]["captions"] == ["title", "tags"]
    assert [shard["source"]["file"] for shard in description["shards"]] == [
        f"train-{i}.tar" for i in range(3)
    ]
    assert description["made_by"]["arguments"] == (
        ["webdataset", "--input", "train-*.tar", "--captions", "title,tags"]
    )
    assert str(tars) not in text and str(prepared) not in text


def test_shard_json_lists_the_dropped_samples(prepared):
    shard = json.loads((prepared / "train-1.array_record.json").read_text())
    assert [(d["key"], d["reason"]) for d in shard["dropped"]] == [
        ("broken", "broken image"),
        ("empty", "no caption"),
    ]
    assert "cannot decode" in shard["dropped"][0]["detail"]


def test_split_sentences(tars, tmp_path):
    assert run(tars, tmp_path / "out", "--split-sentences") == 0
    source = make_source("prepared", path=tmp_path / "out")
    assert source[0]["captions"] == {"title": ["Tar 0", "Item 0"], "tags": ["x", "t0"]}
    arguments = json.loads((tmp_path / "out/dataset.json").read_text())["made_by"]["arguments"]
    assert arguments[-1] == "--split-sentences"


def test_output_does_not_depend_on_workers_or_place(tars, prepared, tmp_path):
    assert run(tars, tmp_path / "out", workers=3) == 0
    assert contents(tmp_path / "out") == contents(prepared)


def test_a_second_run_writes_nothing(tars, tmp_path, prepared):
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in prepared.glob("*.a*")}
    assert run(tars, prepared) == 0
    assert len(before) == 6
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before}


def test_killed_run_continues_where_it_stopped(tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    large = image(size=900)  # Slow to decode, so that the kill hits the middle of the work.
    for i in range(6):
        write_tar(tars / f"train-{i}.tar", {str(j): (large, {"title": "t"}) for j in range(15)})
    output = tmp_path / "out"
    command = [sys.executable, "-m", "input_pipeline.prepare", "webdataset", "--captions", "title"]
    command += ["--input", f"{tars}/train-*.tar", "--output", str(output), "--workers", "2"]
    environment = dict(os.environ, PYTHONPATH=str(Path(input_pipeline.__file__).parents[2]))
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 60
    while not (finished := list(output.glob("*.array_record.json"))):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    # The workers hold the other end of the pipe: this returns once they are gone as well.
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    finished = list(output.glob("*.array_record.json"))
    assert 0 < len(finished) < 6
    assert not (output / "dataset.json").exists()
    with pytest.raises(FileNotFoundError, match="has not finished"):
        make_source("prepared", path=output)

    (output / ".train-5.array_record.1.tmp").write_bytes(b"half a shard")
    shards = [Path(str(path).removesuffix(".json")) for path in finished]
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards + finished}
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{len(finished)} of 6 shards are finished already" in again.stdout
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before}

    assert run(tars, tmp_path / "undisturbed", captions="title") == 0
    assert contents(output) == contents(tmp_path / "undisturbed")


def test_truncated_tar_fails_alone_and_can_be_repaired(tmp_path, capsys, prepared):
    tars = write_tars(tmp_path / "tars")
    whole = (tars / "train-1.tar").read_bytes()
    (tars / "train-1.tar").write_bytes(whole[: len(whole) // 2])
    output = tmp_path / "out"
    assert run(tars, output) == 1
    text = capsys.readouterr().out
    assert re.search(r"FAILED .*train-1\.tar: .*Readable are [\d,]+ of [\d,]+ bytes", text)
    assert sorted(path.name for path in output.iterdir()) == [
        f"train-{i}.array_record{suffix}" for i in (0, 2) for suffix in ("", ".json")
    ]
    (tars / "train-1.tar").write_bytes(whole)
    assert run(tars, output) == 0
    assert "2 of 3 shards are finished" in capsys.readouterr().out
    assert contents(output) == contents(prepared)


def test_damaged_and_outdated_shards_are_made_again(tmp_path, prepared):
    tars = write_tars(tmp_path / "tars", count=2)
    output = tmp_path / "out"
    assert run(tars, output) == 0
    whole = contents(output)
    (output / "train-0.array_record").write_bytes(whole["train-0.array_record"][:-1000])
    (output / "train-1.array_record.json").write_bytes(b"{")
    assert run(tars, output) == 0
    assert contents(output) == whole
    # Damage that leaves the size: seen by the time of the file, told by its checksum.
    damaged = bytearray(whole["train-0.array_record"])
    damaged[500] ^= 1
    (output / "train-0.array_record").write_bytes(damaged)
    os.utime(output / "train-1.array_record", (9e9, 9e9))  # as a copy has it
    before = (output / "train-1.array_record").stat().st_ino
    assert run(tars, output) == 0
    assert contents(output) == whole
    assert (output / "train-1.array_record").stat().st_ino == before
    # A tar that was replaced, and one that came later.
    write_tar(tars / "train-1.tar", {"new": (image(), {"title": "new", "tags": []})})
    write_tar(tars / "train-2.tar", {"new": (image(), {"title": "new", "tags": []})})
    assert run(tars, output) == 0
    source = make_source("prepared", path=output)
    ids = [source[i]["id"] for i in range(len(source))]
    assert ids == [*(f"train-0/00{i}" for i in range(4)), "train-1/new", "train-2/new"]
    # While a shard is out of date, the directory is no data set.
    (tars / "train-2.tar").write_bytes(b"not a tar")
    assert run(tars, output) == 1
    assert not (output / "dataset.json").exists()


@pytest.mark.parametrize(
    ("captions", "extra"),
    [("tags,title", ()), ("title", ()), ("title,tags", ["--split-sentences"])],
)
def test_other_options_for_the_same_output_are_an_error(tars, prepared, captions, extra, capsys):
    before = contents(prepared)
    assert run(tars, prepared, *extra, captions=captions) == 1
    assert "other options" in capsys.readouterr().err
    assert contents(prepared) == before


def test_unusable_inputs_and_outputs_are_one_clear_error(tars, prepared, tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "out") == 1
    assert "Nothing matches --input" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert run(tars, tmp_path / "mine") == 1
    assert "thesis.tex does not belong" in capsys.readouterr().err
    write_tar(tmp_path / "train-9.tar", {"a": (image(), {"title": "a"})})
    assert run(tmp_path, prepared) == 1
    assert "--input does not match" in capsys.readouterr().err
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "train-0.tar", {"a": (image(), {"title": "a"})})
    assert run(tmp_path / "[ab]", tmp_path / "out") == 1
    assert "same shard name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tars, tmp_path / "out", captions="title,,tags")


def test_a_field_of_wrong_type_or_name_fails_the_run(tmp_path, capsys):
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(tars / "train-0.tar", {"a": (image(), {"title": 3})})
    write_tar(tars / "train-1.tar", {"a": (image(), {"titel": "a"})})
    assert run(tars, tmp_path / "out", captions="title") == 1
    text = capsys.readouterr().out
    assert re.search(r"FAILED .*train-0\.tar: key 'a', field 'title': a number", text)
    assert run(tars, tmp_path / "other", captions="titles,title,x") == 1
    text = capsys.readouterr().err
    assert "the 2 tars has the caption field 'titles', 'x'. Available: titel, title." in text


def test_corrected_captions_in_a_tar_of_equal_size_are_prepared_again(tmp_path, capsys):
    tars = tmp_path / "tars"
    tars.mkdir()
    for caption in ("a cat", "a very different and longer caption"):
        write_tar(tars / "train-0.tar", {"a": (image(), {"title": caption})})
        os.utime(tars / "train-0.tar", ns=(0, len(caption)))  # older than the shard
        assert run(tars, tmp_path / "out", captions="title") == 0
        [record] = make_source("prepared", path=tmp_path / "out")
        assert record["captions"] == {"title": [caption]}
    assert "1 shards are made again: their input has changed." in capsys.readouterr().out
    assert run(tars, tmp_path / "out", captions="title") == 0
    assert "1 of 1 shards are finished already (their input and" in capsys.readouterr().out


def test_text_that_is_not_unicode_is_dropped_listed_and_printed_anywhere(tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(
        tars / "train-0.tar",
        {"café": (image(), {"title": "half \ud800"}), "b": (image(), {"title": "é"})},
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(input_pipeline.__file__).parents[2]))
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "input_pipeline.prepare", "webdataset", "--captions", "title"]
    command += ["--input", f"{tars}/*.tar", "--output", str(tmp_path / "out"), "--workers", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert r"1 dropped, e.g. 'caf\xe9': unreadable captions (the .json" in done.stdout
    assert r"'half \ud800' is not valid Unicode" in done.stdout
    assert ids(tmp_path / "out") == ["train-0/b"]


def test_a_data_set_without_records_is_an_error_but_an_empty_shard_is_not(tmp_path, capsys):
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(tars / "train-0.tar", {"a": (b"not an image", {"title": "a"})})
    assert run(tars, tmp_path / "out", captions="title") == 1
    assert "No record is left" in capsys.readouterr().err
    write_tar(tars / "train-1.tar", {"a": (image(), {"title": "a"})})
    assert run(tars, tmp_path / "out", captions="title") == 0
    source = make_source("prepared", path=tmp_path / "out")
    assert len(source) == 1 and source[0]["id"] == "train-1/a"
