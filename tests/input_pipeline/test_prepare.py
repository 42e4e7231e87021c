import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

import input_pipeline
from input_pipeline import prepare, records
from input_pipeline.sources import make_source


def image(seed=0, size=16):
    """JPEG of noise; `seed` a number or a letter, `size` (height, width) or both in one."""
    seed = ord(seed) if isinstance(seed, str) else seed
    height, width = size if isinstance(size, tuple) else (size, size)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, samples):
    """samples: key -> (image bytes, contents of the .json)."""
    with tarfile.open(path, "w") as tar:
        for key, (data, values) in samples.items():
            members = ((f"{key}.jpg", data), (f"{key}.json", json.dumps(values).encode()))
            for name, contents in members:
                info = tarfile.TarInfo(name)
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))


def write_tars(folder, count=3, samples=4):
    """Tars with a string and a list per sample, and one corrupt and one empty sample per tar."""
    folder.mkdir()
    for i in range(count):
        contents = {
            f"{j:03d}": (
                image(100 * i + j),
                {"title": f"Tar {i}. Item {j}", "tags": ["x", f"t{j}"]},
            )
            for j in range(samples)
        }
        contents["broken"] = (image()[:200], {"title": "broken", "tags": []})
        contents["empty"] = (image(), {"title": "", "tags": [""]})
        write_tar(folder / f"train-{i}.tar", contents)
    return folder


def run(tars, output, *arguments, captions="title,tags", workers=1):
    """Exit code of the command, run in this process."""
    command = ["webdataset", "--input", f"{tars}/train-*.tar", "--output", str(output)]
    command += ["--captions", captions, "--workers", str(workers)]
    return prepare.main([*command, *arguments])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    environment = dict(os.environ, PYTHONPATH=str(Path(input_pipeline.__file__).parents[1]))
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
    # A tar that was replaced, recognised by its size, and one that came later.
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
    assert re.search(r"FAILED .*train-1\.tar: no sample has .*'title'.*Available: titel", text)


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


FILTERS = ["--min-side", "12", "--max-aspect-ratio", "2.5", "--min-caption-words", "2"]
FILTERS += ["--drop-duplicates", "--resize", "16"]


def write_mixed_tars(folder, names=("b", "c")):
    """Tars with a sample for every rule; `names`: their letters, a prefix of the captions."""
    folder.mkdir(exist_ok=True)
    for name in names:
        write_tar(
            folder / f"train-{name}.tar",
            {
                "wordless": (image(1), {"title": "one"}),  # not the first of its copies
                "copy": (image(1), {"title": f"{name} the same everywhere"}),
                "small": (image(2, size=11), {"title": "a small one"}),
                "wide": (image(3, size=(12, 31)), {"title": "a wide one"}),
                "large": (image(name, size=(32, 40)), {"title": f"{name} large"}),
                "twin": (image(name, size=(32, 40)), {"title": f"{name} again"}),
            },
        )
    return folder


def ids(folder):
    source = make_source("prepared", path=folder)
    return [source[i]["id"] for i in range(len(source))]


@pytest.fixture(scope="module")
def mixed_tars(tmp_path_factory):
    return write_mixed_tars(tmp_path_factory.mktemp("mixed") / "tars")


@pytest.fixture(scope="module")
def filtered(mixed_tars, tmp_path_factory):
    output = tmp_path_factory.mktemp("filtered") / "data"
    assert run(mixed_tars, output, *FILTERS, captions="title") == 0
    return output


def test_filters_count_what_they_drop(filtered):
    assert ids(filtered) == ["train-b/copy", "train-b/large", "train-c/large"]
    description = json.loads((filtered / "dataset.json").read_text())
    assert description["dropped"] == {
        "no caption of allowed length": 2,
        "small image": 2,
        "extreme aspect ratio": 2,
        "duplicate image": 3,
    }
    assert description["removed_captions"] == {"fewer than 2 words": 2}
    assert description["resized"]["images"] == 2
    assert description["images"]["width"] == {"min": 16, "max": 20, "mean": 18.67}
    assert description["made_by"]["arguments"][-len(FILTERS) :] == [
        *["--max-aspect-ratio", "2.5", "--min-side", "12", "--min-caption-words", "2"],
        *["--drop-duplicates", "--resize", "16"],
    ]
    source = make_source("prepared", path=filtered)
    assert source[0]["image"] == image(1) and source[1]["image"] != image("b", size=(32, 40))


def test_the_table_says_what_was_filtered_and_resized(mixed_tars, tmp_path, capsys):
    assert run(mixed_tars, tmp_path / "out", *FILTERS, captions="title") == 0
    text = capsys.readouterr().out
    for row, value in (
        ("dropped: duplicate image", "3"),
        ("captions removed: fewer than 2 words", "2"),
        ("resized", r"2, [\d.]+ -> [\d.]+ MB"),
    ):
        assert re.search(rf"{row}\W+{value}\s", text)


def test_filtered_output_does_not_depend_on_workers(mixed_tars, filtered, tmp_path):
    assert run(mixed_tars, tmp_path / "out", *FILTERS, captions="title", workers=3) == 0
    assert contents(tmp_path / "out") == contents(filtered)


def test_a_second_run_with_filters_does_not_read_the_input(mixed_tars, filtered, capsys):
    before = {path: path.stat().st_ino for path in filtered.iterdir() if path.suffix != ".json"}
    assert run(mixed_tars, filtered, *FILTERS, captions="title") == 0
    assert "Looking for duplicates" not in capsys.readouterr().out
    assert before == {path: path.stat().st_ino for path in before}


def test_other_filters_for_the_same_output_are_an_error(mixed_tars, filtered, capsys):
    before = contents(filtered)
    assert run(mixed_tars, filtered, *FILTERS[:-2], captions="title") == 1
    assert "other options" in capsys.readouterr().err
    assert contents(filtered) == before


def test_an_earlier_tar_that_comes_later_takes_over_the_duplicates(tmp_path):
    tars = write_mixed_tars(tmp_path / "tars")
    assert run(tars, tmp_path / "out", *FILTERS, captions="title") == 0
    write_mixed_tars(tars, "a")
    assert run(tars, tmp_path / "out", *FILTERS, captions="title") == 0
    assert ids(tmp_path / "out") == ["train-a/copy", *(f"train-{name}/large" for name in "abc")]
    assert run(tars, tmp_path / "fresh", *FILTERS, captions="title") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_the_search_for_duplicates_continues_where_it_stopped(tmp_path, filtered, capsys):
    tars = write_mixed_tars(tmp_path / "tars")
    whole = (tars / "train-c.tar").read_bytes()
    (tars / "train-c.tar").write_bytes(whole[: len(whole) // 2])
    output = tmp_path / "out"
    assert run(tars, output, *FILTERS, captions="title") == 1
    captured = capsys.readouterr()
    assert re.search(r"FAILED .*train-c\.tar: not a complete", captured.out)
    assert "Duplicates can be told once all input is readable" in captured.err
    assert [path.suffix for path in output.iterdir()] == [".digests"]
    (tars / "train-c.tar").write_bytes(whole)
    assert run(tars, output, *FILTERS, captions="title") == 0
    assert "reading the images of 1 shards" in capsys.readouterr().out
    assert contents(output) == contents(filtered)


def run_source(output, *arguments, workers=1):
    return prepare.main(["source", *arguments, "--output", str(output), "--workers", str(workers)])


SCENES = ["scenes", "split=val", "size=7", "image_size=40", "--records-per-shard", "3"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    output = tmp_path_factory.mktemp("scenes") / "data"
    assert run_source(output, *SCENES) == 0
    return output


def test_all_fields_of_a_source_are_kept_in_its_order(scenes):
    source = make_source("scenes", split="val", size=7, image_size=40)
    stored = make_source("prepared", path=scenes)
    assert len(stored) == 7
    for i in range(7):
        expected, record = source[i], stored[i]
        assert record.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(record[name], value)
    description = json.loads((scenes / "dataset.json").read_text())
    assert [shard["records"] for shard in description["shards"]] == [3, 3, 1]
    assert description["fields"]["captions"] == ["caption", "sentences"]
    assert description["fields"]["boxes"] == "array of float32, 2 axes"
    assert description["class_names"] == source.class_names == stored.class_names
    assert description["made_by"]["arguments"] == ["source", *SCENES]


def test_a_prepared_source_does_not_depend_on_workers_or_attempts(scenes, tmp_path, capsys):
    output = tmp_path / "out"
    assert run_source(output, *SCENES, workers=2) == 0
    assert contents(output) == contents(scenes)
    (output / "dataset.json").unlink()
    (output / "scenes-00001.array_record").write_bytes(b"half a shard")
    assert run_source(output, *SCENES) == 0
    assert "2 of 3 shards are finished" in capsys.readouterr().out
    assert contents(output) == contents(scenes)


@pytest.mark.parametrize(
    "arguments",
    [
        [*SCENES[:2], "size=9", *SCENES[3:]],
        [*SCENES[:-1], "4"],
        [*SCENES, "--min-side", "3"],
    ],
)
def test_other_arguments_for_the_same_output_are_an_error(scenes, arguments, capsys):
    before = contents(scenes)
    assert run_source(scenes, *arguments) == 1
    assert "other options" in capsys.readouterr().err
    assert contents(scenes) == before


def test_a_source_whose_data_changed_is_made_again(tmp_path):
    small, large = tmp_path / "small", tmp_path / "data"
    command = ["--records-per-shard", "2"]
    assert run_source(small, "scenes", "size=3", "image_size=32") == 0
    assert run_source(large, "scenes", "size=4", "image_size=32") == 0
    (tmp_path / "in").symlink_to(small)
    arguments = ["prepared", f"path={tmp_path / 'in'}", *command]
    assert run_source(tmp_path / "out", *arguments) == 0
    assert str(tmp_path) not in (tmp_path / "out" / "dataset.json").read_text()
    (tmp_path / "in").unlink()
    (tmp_path / "in").symlink_to(large)
    assert run_source(tmp_path / "out", *arguments) == 0
    assert ids(tmp_path / "out") == ids(large)


def write_prepared(folder, examples):
    """A data set as prepare writes it, of any records."""
    folder.mkdir()
    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1,uncompressed")
    for example in examples:
        writer.write(records.encode(example))
    writer.close()
    data = (folder / "a.array_record").read_bytes()
    shard = {"file": "a.array_record", "records": len(examples), "bytes": len(data)}
    shard["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "dataset.json").write_text(json.dumps({"version": 1, "shards": [shard]}))
    return folder


def test_duplicates_and_broken_images_of_a_source_are_dropped_and_listed(tmp_path):
    images = {"a": image(1), "cut": image(1)[:200], "b": image(1), "c": image(2), "d": image(2)}
    examples = [{"id": key, "image": data, "label": 1} for key, data in images.items()]
    folder = write_prepared(tmp_path / "in", examples)
    arguments = ["prepared", f"path={folder}", "--records-per-shard", "2", "--drop-duplicates"]
    assert run_source(tmp_path / "out", *arguments, workers=2) == 0
    assert ids(tmp_path / "out") == ["a", "c"]
    dropped = []
    for path in sorted((tmp_path / "out").glob("*.array_record.json")):
        dropped += [(d["key"], d["reason"]) for d in json.loads(path.read_text())["dropped"]]
    assert dropped == [
        ("cut", "broken image"),
        ("b", "duplicate image"),
        ("d", "duplicate image"),
    ]


def test_captions_that_are_one_string_fail_the_run(tmp_path, capsys):
    example = {"id": "x", "image": image(1), "captions": {"text": "one string"}}
    folder = write_prepared(tmp_path / "in", [example])
    assert run_source(tmp_path / "out", "prepared", f"path={folder}") == 1
    assert "FAILED prepared, records 0 to 0: record 'x': captions must" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "Unknown data source 'nowhere'"),
        (["scenes", "zise=3"], "source scenes: got an unexpected keyword argument 'zise'"),
        (["scenes", "size=-1"], "scenes: size is -1"),
        (["scenes", "size=3", "size=4"], "given twice"),
        (["prepared", "path=/nowhere"], "is not a prepared data set"),
        (["scenes", "--min-side", "0"], "--min-side must be at least 1"),
        (["mixture", 'sources=[{"name": "scenes", "weight": 2}]'], "Shards keep no weights"),
    ],
)
def test_unusable_arguments_of_a_source_are_one_clear_error(arguments, message, tmp_path, capsys):
    assert run_source(tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["scenes", "3"], ["scenes", "--records-per-shard", "0"]])
def test_words_that_are_no_arguments_are_refused(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_source(tmp_path / "out", *arguments)
    assert re.search("'3' is not KEY=VALUE|'0' is not a number from 1", capsys.readouterr().err)
