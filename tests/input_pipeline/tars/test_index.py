"""The command `prepare index`: what it writes, what it keeps, what it refuses."""

import io
import json
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline.prepare import command as prepare
from input_pipeline.records import given
from input_pipeline.sources import make_source
from input_pipeline.tars import index, reader
from input_pipeline.tars.reader import TarReader, row_dtype, url_hash
from input_pipeline.workers import in_processes


def image(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, members):
    """members: name -> bytes, or anything else to be written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, value in members.items():
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    os.utime(path, (1e9, 1e9))  # two copies are the same input
    return path


def write_tars(folder):
    """Two tars of three samples, and in the first one samples that cannot be used."""
    for i in range(2):
        members = {}
        for j in range(3):
            number = 3 * i + j
            members[f"{j}.jpg"] = image(number)
            members[f"{j}.json"] = {"url": f"http://x/{number}", "title": f"t{number}", "n": 3}
            members[f"{j}.txt"] = f"text {number}".encode() if j else b" "
        if not i:
            members["alone.json"] = {"title": "no picture"}
            members["two.jpg"], members["two.png"] = image(), image()
            members["bad.jpg"], members["bad.json"] = image(), b"{"
            members["list.jpg"], members["list.json"] = image(), [1]
        write_tar(folder / f"{i:05d}.tar", members)


def run(folder, *arguments, workers=1):
    """Exit code of the command, run in this process."""
    command = ["index", "--input", f"{folder}/*.tar", "--output", str(folder / "index")]
    return prepare.main([*command, "--workers", str(workers), *arguments])


def image_in(reader, row):
    return given(reader.images([row])[0])


def captions_in(reader, row, fields, split):
    return given(reader.pairs([row], fields, split)[0])[1]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    write_tars(folder)
    assert run(folder) == 0
    return folder


@pytest.fixture
def tars(tmp_path):
    write_tars(tmp_path)
    return tmp_path


def test_every_sample_is_found_with_its_members(indexed):
    reader = TarReader(indexed / "index")
    assert len(reader) == 6
    for row in range(6):
        assert reader.id(row) == f"{row // 3:05d}/{row % 3}"
        assert image_in(reader, row) == image(row)
        text = [] if row % 3 == 0 else [f"text {row}"]
        found = captions_in(reader, row, ("title", "txt", "none"), False)
        assert found == {"title": [f"t{row}"], "txt": text, "none": []}
    expected = [url_hash(f"http://x/{row}") for row in range(6)]
    assert reader.url_hashes().tolist() == expected


def test_the_index_says_what_was_found_and_left_out(indexed, capsys):
    index = json.loads((indexed / "index" / "index.json").read_bytes())
    first, second = index["tars"]
    assert (first["samples"], second["samples"]) == (3, 3)
    assert [(d["key"], d["reason"]) for d in first["dropped"]] == [
        ("alone", "no image"),
        ("two", "several images"),
        ("bad", "unreadable captions"),
        ("list", "unreadable captions"),
    ]
    assert second["dropped"] == []
    assert first["texts"] == {"title": 3, "txt": 2, "url": 3}
    assert run(indexed) == 0
    printed = capsys.readouterr().out
    assert re.search(r"samples\W+6 ", printed)
    assert re.search(r"left out: unreadable captions\W+2 ", printed)
    assert re.search(r"text in txt\W+4 ", printed)
    assert "2 of 2 tars are indexed already (their sizes and modification times" in printed


def test_rows_with_text(indexed):
    reader = TarReader(indexed / "index")
    assert reader.rows_with_text(("title", "txt")) is None
    assert reader.rows_with_text(("txt",)).tolist() == [1, 2, 4, 5]
    assert reader.rows_with_text(("none",)).tolist() == []


@pytest.mark.parametrize("value", ["", " . ", "\n", [], ["", "..."], None, 3, {"a": "b"}, [3]])
def test_what_holds_no_text(value):
    assert not index._has_text(value)


def test_the_number_of_workers_changes_nothing(indexed, tars):
    assert run(tars, workers=2) == 0
    assert contents(tars / "index") == contents(indexed / "index")


def test_finished_tars_are_kept(tars, indexed):
    assert run(tars) == 0
    kept = tars / "index" / "00000.npy"
    before = kept.stat().st_mtime_ns
    # As a run leaves it that was killed in the second tar.
    (tars / "index" / "index.json").unlink()
    (tars / "index" / "00001.npy.json").unlink()
    (tars / "index" / ".00001.npy.99.tmp").write_bytes(b"half")
    assert run(tars) == 0
    assert kept.stat().st_mtime_ns == before
    assert contents(tars / "index") == contents(indexed / "index")


def test_a_changed_tar_of_equal_size_is_indexed_again(tars):
    before = digest_of(tars)
    size = (tars / "00001.tar").stat().st_size
    write_tar(
        tars / "00001.tar",
        {f"{j}.jpg": image(3 + j) for j in range(3)} | {"3.json": {"title": "corrected"}},
    )
    tar = tars / "00001.tar"
    tar.write_bytes(tar.read_bytes().ljust(size, b"\0"))  # now of another time, as well
    assert digest_of(tars) != before
    assert captions_in(TarReader(tars / "index"), 3, ("title",), False) == {"title": []}


def test_a_corrected_caption_of_equal_length_changes_the_digest(tars):
    before = digest_of(tars)
    tar = tars / "00001.tar"
    data = tar.read_bytes()
    assert data.count(b'"t4"') == 1
    tar.write_bytes(data.replace(b'"t4"', b'"T4"'))
    assert digest_of(tars) != before


@pytest.mark.parametrize("pattern", ["a", "b", "[ab]"])
def test_the_index_leaves_out_what_prepare_drops(tmp_path, pattern, capsys):
    """Broken text, names and images are judged by the same rules."""
    samples = {
        "a": {"1.gif": image(), "1.json": b'{"title": "\\ud83d"}', "2.gif": image(), "2.txt": b"t"},
        "b": {"1.jpg": image(), "1.json": b'{"txt": "no", "title": NaN}', "1.txt": b"\xff"},
    }
    samples["b"] |= {
        "2.heic": image(),
        "2.txt": b"t",
        "caf\udce9.jpg": image(),
        "caf\udce9.txt": b"t",
    }
    for name, members in samples.items():
        write_tar(tmp_path / f"{name}.tar", members)
    arguments = ["--input", f"{tmp_path}/{pattern}.tar", "--workers", "1"]
    assert prepare.main(["index", *arguments, "--output", str(tmp_path / "index")]) == 0
    arguments += ["--captions", "txt", "--output", str(tmp_path / "out")]
    assert prepare.main(["webdataset", *arguments]) == 0
    reader = TarReader(tmp_path / "index")
    shards = make_source("prepared", path=tmp_path / "out")
    assert [reader.id(row) for row in range(len(reader))] == [record["id"] for record in shards]
    for tar in json.loads((tmp_path / "index" / "index.json").read_bytes())["tars"]:
        shard = f"{tar['file'].removesuffix('.npy')}.array_record.json"
        assert json.loads((tmp_path / "out" / shard).read_bytes())["dropped"] == tar["dropped"]


def test_a_changed_tar_is_indexed_again(tars):
    assert run(tars) == 0
    write_tar(tars / "00001.tar", {"9.jpg": image(9), "9.json": {"title": "new"}})
    with pytest.raises(
        ValueError, match=r"00001.tar has 10,240 bytes instead of the .*index` again"
    ):
        TarReader(tars / "index")
    assert run(tars) == 0
    reader = TarReader(tars / "index")
    assert (len(reader), reader.id(3), image_in(reader, 3)) == (4, "00001/9", image(9))


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_part_of_the_index_is_made_again(tars, indexed, damage):
    assert run(tars) == 0
    part = tars / "index" / "00001.npy"
    part.unlink() if damage is None else part.write_bytes(damage)
    assert run(tars) == 0
    assert contents(tars / "index") == contents(indexed / "index")


def test_a_damaged_tar_is_named_and_the_others_are_kept(tars, capsys):
    data = (tars / "00000.tar").read_bytes()
    (tars / "00000.tar").write_bytes(data[:2000])
    assert run(tars) == 1
    output = capsys.readouterr()
    assert re.search(r"FAILED .*00000.tar: not a complete, uncompressed tar", output.out)
    assert "1 of 2 tars failed (see above); 1 are indexed and will be kept" in output.err
    assert not (tars / "index" / "index.json").exists()
    (tars / "00000.tar").write_bytes(data)
    assert run(tars) == 0
    assert "1 of 2 tars are indexed already" in capsys.readouterr().out


def test_tars_beside_the_index_move_with_it(indexed, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(indexed, moved)
    assert image_in(TarReader(moved / "index"), 4) == image(4)
    index = json.loads((moved / "index" / "index.json").read_bytes())
    assert [tar["path"] for tar in index["tars"]] == ["../00000.tar", "../00001.tar"]


def test_tars_elsewhere_are_stored_with_their_whole_path(tars, tmp_path):
    output = tmp_path / "other" / "deep" / "index"
    index.build(f"{tars}/*.tar", output, in_processes(1))
    [path, _] = [tar["path"] for tar in json.loads((output / "index.json").read_bytes())["tars"]]
    assert path == str(tars.resolve() / "00000.tar")
    assert TarReader(output).digest() == digest_of(tars)


def digest_of(folder):
    assert run(folder) == 0
    return TarReader(folder / "index").digest()


def test_the_digest_follows_the_contents(tars):
    before = digest_of(tars)
    write_tar(tars / "00001.tar", {"9.jpg": image(9), "9.json": {"title": "new"}})
    assert digest_of(tars) != before


def test_url_hashes():
    assert url_hash("http://x/1") == url_hash(" http://x/1\n") != url_hash("http://x/2")
    assert url_hash(None) == url_hash("") == url_hash(" ") == 0
    assert 0 < url_hash("half a pair \ud83d") < 2**64


def test_samples_without_json_or_url(tmp_path):
    write_tar(tmp_path / "a.tar", {"é.jpg": image(), "é.txt": b"t", "b.jpg": image(1)})
    assert run(tmp_path) == 0
    reader = TarReader(tmp_path / "index")
    assert reader.url_hashes().tolist() == [0, 0]
    assert [reader.id(row) for row in range(2)] == ["a/é", "a/b"]
    assert captions_in(reader, 0, ("txt",), False) == {"txt": ["t"]}
    assert captions_in(reader, 1, ("txt",), False) == {"txt": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "index" / "mine").touch(), "mine does not belong to an index"),
        (lambda folder: (folder / "00001.tar").unlink(), r"00001\.npy.* does not belong"),
    ],
)
def test_other_files_in_the_output_are_refused(tars, change, message, capsys):
    assert run(tars) == 0
    change(tars)
    assert run(tars) == 1
    assert re.search(message, capsys.readouterr().err)


def test_no_tar_at_all(tars, capsys):
    assert run(tars, "--input", "/nowhere/*.tar") == 1
    assert "Nothing matches --input '/nowhere/" in capsys.readouterr().err


def test_no_worker(tars, capsys):
    with pytest.raises(SystemExit):
        run(tars, "--workers", "0")
    assert "--workers: '0': give 1 or more" in capsys.readouterr().err


def test_tars_of_one_name(tars, capsys):
    write_tar(tars / "more" / "00000.tar", {"1.jpg": image()})
    assert run(tars, "--input", f"{tars}/**/*.tar") == 1
    assert "and record ids" in capsys.readouterr().err


def test_no_sample_at_all(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", {"1.json": {"title": "t"}})
    assert run(tmp_path) == 1
    assert "No sample of the tars" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: (f / "index" / "index.json").unlink(), FileNotFoundError, "is not an index"),
        (lambda f: (f / "index" / "index.json").write_text("{"), ValueError, "is damaged"),
        (lambda f: (f / "00000.tar").unlink(), FileNotFoundError, r"00000\.tar .* is missing"),
        (lambda f: (f / "index" / "00001.npy").unlink(), FileNotFoundError, r"01\.npy is missing"),
        (
            lambda f: (f / "index" / "index.json").write_text('{"version": 99, "tars": []}'),
            ValueError,
            f"format version 99; this code reads {reader.FORMAT_VERSION}",
        ),
    ],
)
def test_reading_what_is_not_all_there(tars, change, error, message):
    assert run(tars) == 0
    change(tars)
    with pytest.raises(error, match=message):
        TarReader(tars / "index")


@pytest.mark.parametrize("damage", [b"", b"garbage", "another"])
def test_a_damaged_part_is_an_error_when_it_is_read(tars, damage):
    assert run(tars) == 0
    reader = TarReader(tars / "index")
    if damage == "another":
        np.save(tars / "index" / "00000.npy", np.zeros(2, row_dtype(1, 1)))
    else:
        (tars / "index" / "00000.npy").write_bytes(damage)
    with pytest.raises(ValueError, match=r"00000\.npy (is damaged|does not belong).*delete it"):
        image_in(reader, 0)


def test_a_tar_that_is_cut_while_it_is_used(tars):
    assert run(tars) == 0
    reader = TarReader(tars / "index")
    os.truncate(tars / "00000.tar", 100)
    with pytest.raises(ValueError, match=r"00000\.tar was cut or changed"):
        image_in(reader, 0)
    with pytest.raises(ValueError, match=r"00000\.tar.*was cut or changed"):
        captions_in(reader, 0, ("title",), False)
