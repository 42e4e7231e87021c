"""`prepare --drop`: the records that a list of duplicates names are left out, and counted."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from input_pipeline.duplicates import command as duplicates
from input_pipeline.duplicates import dropped, signatures
from tests.input_pipeline.duplicates.duplicates_data import copies, encoded, scene
from tests.input_pipeline.prepare.prepare_data import (
    contents,
    ids,
    run,
    run_source,
    write_prepared,
    write_tar,
)


@pytest.fixture
def tars(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pixels = scene(seed)
        samples = {"whole": encoded(pixels), **copies(pixels)}
        write_tar(
            folder / f"train-{name}.tar",
            {key: (data, {"title": f"{name} {key}"}) for key, data in samples.items()},
        )
    return folder


def listed(tars, output):
    pattern, hashes = f"{tars}/train-*.tar", str(output.with_name(f"{output.stem}-hashes"))
    assert duplicates.main(["hash", "--input", pattern, "--output", hashes, "--workers", "1"]) == 0
    words = ["find", "--hashes", hashes, "--output", str(output), "--workers", "1"]
    assert duplicates.main(words) == 0
    return output


def test_from_tars_to_shards_without_copies(tars, tmp_path, capsys):
    drop = listed(tars, tmp_path / "drop.parquet")
    output = tmp_path / "data"
    assert run(tars, output, "--drop", str(drop), captions="title") == 0
    assert ids(output) == ["train-a/whole", "train-c/whole"]
    description = json.loads((output / "dataset.json").read_text())
    counts = {"near duplicate": 12, "exact duplicate": 1}
    assert description["dropped"] == counts
    assert description["made_by"]["arguments"][-4:] == [
        *("--drop", "drop.parquet"),
        *("--drop-data", "drop-hashes"),
    ]
    assert "dropped: near duplicate" in capsys.readouterr().out
    assert run(tars, tmp_path / "two", "--drop", str(drop), captions="title", workers=2) == 0
    assert contents(output) == contents(tmp_path / "two")


def test_another_list_does_not_go_on_with_the_shards_of_the_first(tars, tmp_path, capsys):
    drop = listed(tars, tmp_path / "drop.parquet")
    assert run(tars, tmp_path / "data", "--drop", str(drop), captions="title") == 0
    before = contents(tmp_path / "data")
    same = tmp_path / "moved" / "drop.parquet"
    same.parent.mkdir()
    same.write_bytes(drop.read_bytes())
    assert run(tars, tmp_path / "data", "--drop", str(same), captions="title") == 0
    assert contents(tmp_path / "data") == before
    parquet.write_table(parquet.read_table(drop)[:3], drop)
    capsys.readouterr()
    assert run(tars, tmp_path / "data", "--drop", str(drop), captions="title") == 1
    assert "made with other options" in capsys.readouterr().err


def test_a_record_goes_with_any_of_its_images(tmp_path):
    """But not because its own images are like each other."""
    pictures = [encoded(scene(seed)) for seed in range(5)]
    alike = copies(scene(3))["resized"]
    images = {
        "a": [pictures[0]],
        "b": [pictures[1], pictures[0]],
        "c": [pictures[2]],
        "own": [pictures[3], alike],
        "text": [],
    }
    records = [{"id": id_, "captions": {}, "images": some} for id_, some in images.items()]
    records.append({"id": "one", "captions": {}, "image": pictures[4]})
    source = write_prepared(tmp_path / "mine", records)
    hashes, drop = tmp_path / "hashes", tmp_path / "drop.parquet"
    words = ["hash", "--input", str(source), "--output", str(hashes), "--workers", "1"]
    assert duplicates.main(words) == 0
    words = ["find", "--hashes", str(hashes), "--output", str(drop), "--workers", "1"]
    assert duplicates.main(words) == 0
    found = parquet.read_table(drop).to_pylist()
    assert [(row["id"], row["match"]) for row in found] == [("b", "a")]
    flags = ["--drop", str(drop)]
    assert run_source(tmp_path / "data", "prepared", f"path={source}", *flags) == 0
    assert ids(tmp_path / "data") == ["a", "c", "own", "text", "one"]


def test_an_id_of_another_image_is_another_record(tars, tmp_path, capsys):
    row = {"id": "train-a/whole", "data": "mine", "reason": dropped.NEAR}
    row["digest"] = signatures.digest(b"another")
    drop = tmp_path / "drop.parquet"
    parquet.write_table(pa.Table.from_pylist([row], dropped.SCHEMA), drop)
    assert run(tars, tmp_path / "data", "--drop", str(drop), captions="title") == 0
    assert len(ids(tmp_path / "data")) == 15
    assert "No record is on" in capsys.readouterr().out


def test_lists_of_another_form_are_an_error(tars, tmp_path, capsys):
    def error(path):
        assert run(tars, tmp_path / "data", "--drop", str(path), captions="title") == 1
        [line] = capsys.readouterr().err.splitlines()
        return line

    other = tmp_path / "other.parquet"
    parquet.write_table(pa.table({"id": ["a"], "reason": ["b"]}), other)
    assert "has no column 'digest'" in error(other)
    other.write_bytes(b"text")
    assert "cannot be read as parquet" in error(other)
    assert "absent.parquet" in error(tmp_path / "absent.parquet")


def test_what_is_on_a_list_is_found_by_data_set_id_and_bytes(tmp_path):
    images = [bytes([n]) for n in range(200)]
    rows = [
        {
            "id": f"{n}",
            "data": "mine" if n < 150 else "other",
            "digest": signatures.digest(data),
            "reason": dropped.REASONS[n % 3],
        }
        for n, data in enumerate(images)
    ]
    path = tmp_path / "drop.parquet"
    parquet.write_table(pa.Table.from_pylist(rows, dropped.SCHEMA), path)
    with dropped.sorted_for(path, "mine", tmp_path / "out") as place:
        found = dropped.Dropped(place)
        for n, data in enumerate(images):
            expected = dropped.REASONS[n % 3] if n < 150 else None
            assert found.reason({"id": f"{n}", "image": data}) == expected
            assert found.reason({"id": f"{n + 1}", "image": data}) is None
    assert not list((tmp_path / "out").iterdir())


def test_of_one_record_in_two_data_sets_one_stays(tars, tmp_path, capsys):
    """The same tars in two folders: ids and bytes are equal."""
    other = tmp_path / "other"
    shutil.copytree(tars, other)
    for folder, name in ((tars, "first"), (other, "second")):
        words = ["hash", "--input", f"{folder}/train-*.tar", "--output", str(tmp_path / name)]
        assert duplicates.main([*words, "--workers", "1"]) == 0
    drop = tmp_path / "drop.parquet"
    hashes = [str(tmp_path / "first"), str(tmp_path / "second")]
    assert duplicates.main(["find", "--hashes", *hashes, "--output", str(drop)]) == 0
    capsys.readouterr()
    assert run(tars, tmp_path / "data", "--drop", str(drop), captions="title") == 1
    assert "say with --drop-data which one this is: first, second" in capsys.readouterr().err
    words = "--drop", str(drop), "--drop-data"
    assert run(tars, tmp_path / "data", *words, "third", captions="title") == 1
    assert "is not of 'third'" in capsys.readouterr().err
    assert run(tars, tmp_path / "data", "--drop-data", "first", captions="title") == 1
    assert "give both" in capsys.readouterr().err
    assert run(tars, tmp_path / "data", *words, "first", captions="title") == 0
    assert ids(tmp_path / "data") == ["train-a/whole", "train-c/whole"]
    capsys.readouterr()
    assert run(other, tmp_path / "more", *words, "second", captions="title") == 1
    assert "every sample was dropped" in capsys.readouterr().err
