"""The hashes of a data set: what is in them, broken images, and runs that are given again."""

import json
import os

import pyarrow.parquet as parquet
import pytest

from input_pipeline.duplicates import command, hashing, signatures
from tests.input_pipeline.duplicates.duplicates_data import encoded, picture
from tests.input_pipeline.prepare.prepare_data import write_prepared, write_tar

IMAGES = {f"{n:03d}": encoded(picture(n, (40 + n, 50))) for n in range(6)}


def write_tars(folder, count=3, broken=b"no image"):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        samples = {key: (data, {}) for key, data in IMAGES.items()}
        samples["bad"] = (broken, {})
        write_tar(folder / f"t{number}.tar", samples)
    return folder


def run(source, output, workers=1):
    words = ["hash", "--input", str(source), "--output", str(output), "--workers", str(workers)]
    return command.main(words)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("hashing") / "tars")


def test_rows_say_what_an_image_is_and_where(tars, tmp_path, capsys):
    assert run(f"{tars}/*.tar", tmp_path / "h") == 0
    rows = parquet.read_table(tmp_path / "h" / "t1.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"t1/{key}" for key in IMAGES]
    for row, (key, data) in zip(rows, IMAGES.items()):
        assert (row["file"], row["width"], row["height"]) == ("t1.tar", 50, 40 + int(key))
        assert (row["bytes"], row["digest"]) == (len(data), signatures.digest(data))
        assert len(row["thumbnail"]) == 192
        assert row["hash"] != row["mirrored_hash"]
    described = json.loads((tmp_path / "h" / "hashes.json").read_text())
    assert (described["images"], described["broken"]) == (18, 3)
    assert "left out: 't0/bad': cannot decode 8 bytes" in capsys.readouterr().out


def test_workers_change_nothing(tars, tmp_path):
    assert run(f"{tars}/*.tar", tmp_path / "one") == run(f"{tars}/*.tar", tmp_path / "two", 2) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_prepared_shards_have_the_hashes_of_their_tar(tars, tmp_path):
    assert run(f"{tars}/t0.tar", tmp_path / "tars") == 0
    records = [{"id": f"t0/{key}", "image": data} for key, data in IMAGES.items()]
    assert run(write_prepared(tmp_path / "data", records), tmp_path / "prepared") == 0
    found = [
        parquet.read_table(path).drop_columns("file").to_pylist()
        for path in (tmp_path / "tars/t0.parquet", tmp_path / "prepared/prepared-00000.parquet")
    ]
    assert found[0] == found[1]


def test_one_colour_has_no_hash(tmp_path):
    blank = picture(0) * 0 + 200
    write_tar(tmp_path / "a.tar", {"blank": (encoded(blank), {}), "other": (IMAGES["001"], {})})
    assert run(f"{tmp_path}/a.tar", tmp_path / "h") == 0
    rows = parquet.read_table(tmp_path / "h" / "a.parquet").to_pylist()
    assert [row["hash"] is None for row in rows] == [True, False]


def test_given_again_it_hashes_what_is_missing_or_changed(tmp_path, capsys, monkeypatch):
    tars = write_tars(tmp_path / "tars")
    assert run(f"{tars}/*.tar", tmp_path / "h") == 0
    before = contents(tmp_path / "h")
    # As a kill leaves them: a part without its JSON, half of a file, no description.
    (tmp_path / "h" / "hashes.json").unlink()
    (tmp_path / "h" / "t0.parquet.json").unlink()
    (tmp_path / "h" / "t1.parquet").write_bytes(b"half")
    (tmp_path / "h" / ".t2.parquet.0.tmp").write_bytes(b"half")
    capsys.readouterr()
    assert run(f"{tars}/*.tar", tmp_path / "h") == 0
    assert "1 of 3 parts are hashed already" in capsys.readouterr().out
    assert contents(tmp_path / "h") == before
    write_tar(tars / "t1.tar", {"new": (IMAGES["000"], {})})
    os.utime(tars / "t1.tar", ns=(0, 0))
    assert run(f"{tars}/*.tar", tmp_path / "h") == 0
    assert "2 of 3 parts are hashed already" in capsys.readouterr().out
    ids = parquet.read_table(tmp_path / "h" / "t1.parquet")["id"].to_pylist()
    assert ids == ["t1/new"]


def test_a_damaged_tar_fails_alone_and_is_named(tmp_path, capsys):
    tars = write_tars(tmp_path / "tars")
    whole = (tars / "t1.tar").read_bytes()
    (tars / "t1.tar").write_bytes(whole[: len(whole) // 2])
    assert run(f"{tars}/*.tar", tmp_path / "h") == 1
    told = capsys.readouterr()
    assert "FAILED" in told.out and "t1.tar" in told.out
    assert "1 of 3 parts failed (see above); 2 are hashed" in told.err
    assert not (tmp_path / "h" / "hashes.json").exists()
    (tars / "t1.tar").write_bytes(whole)
    assert run(f"{tars}/*.tar", tmp_path / "h") == 0


def test_errors_are_one_line(tars, tmp_path, capsys):
    def error(source, output="h"):
        assert run(source, tmp_path / output) == 1
        [line] = capsys.readouterr().err.splitlines()
        return line

    assert "Nothing matches" in error(f"{tmp_path}/no/*.tar")
    assert "neither a directory" in error(f"{tmp_path}/nothing")
    write_tar(tmp_path / "bad.tar", {"a": (b"x", {})})
    assert "no image that decodes" in error(f"{tmp_path}/bad.tar", "none")
    assert run(f"{tars}/t0.tar", tmp_path / "h") == 0
    capsys.readouterr()
    assert "does not belong to the hashes of this --input" in error(f"{tars}/t1.tar")


def test_storage_that_does_not_answer_is_no_broken_image():
    def read():
        yield "a", IMAGES["000"]
        yield "b", ConnectionError("it does not answer")

    part = hashing.Part("somewhere", "a.parquet", {}, 1, read)
    with pytest.raises(ConnectionError):
        hashing._rows(part)
