"""Commands about corpora on Apache Beam: the same bytes as on this machine."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from input_pipeline.corpus.command import main as corpus
from input_pipeline.duplicates.command import main as duplicates
from input_pipeline.grounding.command import main as grounding
from input_pipeline.sources import make_source
from tests.input_pipeline.prepare.prepare_data import contents

pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")
SCENES = "scenes:split=val,size=7,image_size=32"


def tables(folder):
    for part in range(2):
        rows = {
            "URL": [f"http://a.b/{part}/{row}" for row in range(30)],
            "TEXT": [f"a picture of {row % 7} things" for row in range(30)],
            "width": [10 * row for row in range(30)],
            "height": [100] * 30,
        }
        pa.parquet.write_table(pa.table(rows), folder / f"{part}.parquet")
    rules = "--min-side", "80", "--max-caption-copies", "8"
    return ["filter", "--input", f"{folder}/*.parquet", *rules]


def boxes(folder):
    source, found = make_source("scenes", split="val", size=7, image_size=32), {}
    for record in (source[row] for row in range(7)):
        pairs = zip(record["phrases"], record["boxes"].tolist())
        found[record["id"]] = [{"label": phrase, "box": box} for phrase, box in pairs]
    (folder / "boxes.json").write_text(json.dumps(found))
    return ["--input", SCENES, "--boxes", str(folder / "boxes.json"), "--records-per-shard", "3"]


CASES = {
    "corpus": (corpus, tables),
    "duplicates": (duplicates, lambda folder: ["hash", "--input", SCENES]),
    "grounding": (grounding, boxes),
}


@pytest.mark.parametrize("name", CASES)
def test_files_are_those_of_this_machine(name, tmp_path):
    (tmp_path / "in").mkdir()
    (main, words), found = CASES[name], []
    arguments = words(tmp_path / "in")
    for runner in (["--workers", "1"], ["--runner", "Direct"]):
        output = tmp_path / f"out{len(found)}" / "made"
        assert main([*arguments, "--output", str(output), *runner]) == 0
        found.append(contents(output))
    assert found[0] == found[1] and len(found[0]) > 2
    assert not any(file.startswith(".") for file in found[0])


def test_copies_are_those_of_this_machine(tmp_path):
    assert duplicates(["hash", "--input", SCENES, "--output", str(tmp_path / "hashes")]) == 0
    lists = []
    for runner in (["--workers", "1"], ["--runner", "Direct"]):
        lists.append(tmp_path / f"{len(lists)}.parquet")
        arguments = ["--hashes", str(tmp_path / "hashes"), "--output", str(lists[-1])]
        assert duplicates(["find", *arguments, *runner]) == 0
    assert lists[0].read_bytes() == lists[1].read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"hashes", "0.parquet", "1.parquet"}


@pytest.mark.parametrize("name", CASES)
def test_what_a_local_disk_alone_has_is_refused_for_dataflow(name, tmp_path, capsys):
    if name == "duplicates":
        arguments = ["hash", "--input", f"{tmp_path}/*.tar"]
        (tmp_path / "a.tar").write_bytes(b"")
    else:
        arguments = CASES[name][1](tmp_path)
    dataflow = ["--runner", "Dataflow", "--temp_location", "gs://bucket/temp"]
    assert CASES[name][0]([*arguments, "--output", "gs://bucket/out", *dataflow]) == 1
    assert capsys.readouterr().err.count("error: ") == 1
