import hashlib
import io
import json
import re
import tarfile

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from input_pipeline import records
from input_pipeline.doctor import command as doctor
from input_pipeline.doctor.survey import Sample, Survey, examine, histograms
from input_pipeline.prepare import command as prepare


def image(seed=0, width=20, height=10):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def record(key, captions=("a cat",), data=None):
    captions = {"text": list(captions)} if isinstance(captions, tuple) else captions
    seed = int.from_bytes(key.encode(), "little")
    return {"id": key, "image": image(seed) if data is None else data, "captions": captions}


def write_prepared(folder, examples):
    """A data set as prepare writes it, of any records, a shard each."""
    folder.mkdir()
    shards = []
    for number, example in enumerate(examples):
        file = folder / f"{number:02d}.array_record"
        writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        writer.write(records.encode(example))
        writer.close()
        data = file.read_bytes()
        shards.append({"file": file.name, "records": 1, "bytes": len(data)})
        shards[-1]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "dataset.json").write_text(json.dumps({"version": 1, "shards": shards}))
    return folder


def write_tar(path, members):
    """members: name -> bytes, or anything else to be written as JSON."""
    with tarfile.open(path, "w") as tar:
        for name, value in members.items():
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command; returns its exit code and its lines."""

    def call(path, *arguments):
        code = doctor.main([str(path), "--output", str(tmp_path / "report.png"), *arguments])
        return code, capsys.readouterr().out.splitlines()

    return call


def value(lines, row):
    """The value in a row of the table."""
    return next(m[1].strip() for line in lines if (m := re.match(rf"│ {row} +│ (.*) │", line)))


def test_a_sound_data_set(tmp_path, run):
    pairs = [("a", ("one two", "three")), ("b", ("one two three four",)), ("c", ("five",))]
    folder = write_prepared(tmp_path / "data", [record(key, texts) for key, texts in pairs])
    code, lines = run(folder)
    assert code == 0 and lines[-1] == "Sound."
    assert not any(line.startswith(("WRONG", "note")) for line in lines)
    assert value(lines, "records") == "3"
    assert value(lines, "image width") == "20 to 20, median 20 px"
    assert value(lines, "width / height") == "2 to 2, median 2"
    assert value(lines, "captions per record") == "1 to 2, median 1"
    assert value(lines, "caption length") == "1 to 4, median 1.5 words"
    assert value(lines, "method.text_groups") == "((1.0, 8),): 10% of 77 tokens"
    assert value(lines, "fields") == "id (3), captions (3), image (3)"
    assert value(lines, "checksums") == "3 of 3 shards are as they were written"
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (1100, 770) and len(np.unique(picture)) > 10


@pytest.mark.parametrize(
    ("bad", "row", "message"),
    [
        (record("x", data=image()[:-99]), "unreadable", r"1 images .* unreadable: x \(cannot dec"),
        (record("x", {"text": "a cat"}), "one string, no list", "one string instead of a list"),
        (record("x", ()), "records without any", "1 records have no caption: x"),
        (record("x", ("a cat", " ")), "empty captions", "1 captions are empty"),
    ],
)
def test_what_is_wrong_is_counted_and_decides_the_exit_code(tmp_path, run, bad, row, message):
    folder = write_prepared(tmp_path / "data", [record("a"), bad, record("c")])
    code, lines = run(folder)
    assert code == 1 and lines[-1] == "Not sound: 1 problem, see above."
    wrong = [line for line in lines if line.startswith("WRONG")]
    assert len(wrong) == 1 and re.search(message, wrong[0])
    assert value(lines, row) in ("1", "text (1)")


@pytest.mark.parametrize("captions", [{"text": ["a cat", 3]}, {"text": 3}, ["a cat", None]])
def test_captions_that_are_no_text_are_wrong(tmp_path, run, captions):
    folder = write_prepared(tmp_path / "data", [record("a"), record("b", captions)])
    code, lines = run(folder)
    assert code == 1
    assert any("neither text nor lists of text: " in line and "(1)" in line for line in lines)


def test_only_the_first_ids_of_many_are_shown(tmp_path, run):
    bad = [record(f"x{i}", data=b"no image") for i in range(7)]
    code, lines = run(write_prepared(tmp_path / "data", [record("a"), *bad]))
    (wrong,) = (line for line in lines if line.startswith("WRONG"))
    assert code == 1 and wrong.startswith("WRONG 7 images")
    assert "x4 (" in wrong and "x5 (" not in wrong and "and 2 more" in wrong


def test_a_changed_shard_is_told_from_its_checksum(tmp_path, run):
    folder = write_prepared(tmp_path / "data", [record(key) for key in "abc"])
    file = folder / "01.array_record"
    data = bytearray(file.read_bytes())
    at = data.index(b"a cat")
    data[at : at + 5] = b"a dog"
    file.write_bytes(data)
    code, lines = run(folder)
    assert code == 1
    assert any(re.search(r"WRONG Shard .*01.array_record was changed", line) for line in lines)
    assert value(lines, "checksums") == "2 of 3 shards are as they were written"


def test_a_record_that_cannot_be_read_is_reported_and_the_others_still_looked_at(tmp_path, run):
    folder = write_prepared(tmp_path / "data", [record(key) for key in "abc"])
    file = folder / "01.array_record"
    data = bytearray(file.read_bytes())
    at = data.index(b'[{"id"')
    data[at] ^= 0xFF
    file.write_bytes(data)
    code, lines = run(folder)
    assert code == 1 and value(lines, "unreadable") == "1"
    assert any("record 1 (Record 1 cannot be read: shard" in line for line in lines)
    assert value(lines, "image width") == "20 to 20, median 20 px"


def test_a_sample_is_spread_evenly_and_leaves_the_checksums(tmp_path, run):
    examples = [record(f"r{i}", (" ".join("w" * (i + 1)),)) for i in range(9)]
    folder = write_prepared(tmp_path / "data", examples)
    code, lines = run(folder, "--records", "3")
    assert code == 0
    assert value(lines, "records") == "9, 3 of them looked at"
    assert value(lines, "caption length") == "1 to 9, median 5 words"
    assert value(lines, "checksums") == "not compared: --records is given"


def test_copies_and_long_captions_are_worth_a_note(tmp_path, run):
    long = " ".join(["word"] * 76)  # 78 tokens with both ends
    examples = [record("a"), record("b", data=record("a")["image"]), record("c", (long,))]
    examples.append(record("d", (long[:-5],)))
    code, lines = run(write_prepared(tmp_path / "data", examples))
    notes = [line for line in lines if line.startswith("note")]
    assert code == 0 and len(notes) == 2
    assert "1 images occur earlier, byte for byte: b = a." in notes[0]
    assert "25.0% of the captions are cut at CLIP's 77 tokens" in notes[1]
    assert value(lines, "cut at 77 tokens") == "25.0%"
    assert value(lines, "same image twice") == "1"


@pytest.fixture
def tars(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    meta = {"url": "http://a/b.jpg", "status": "success", "width": 20}
    for name in "ab":
        members = {}
        for i in range(3):
            members[f"{i}.jpg"] = image(ord(name) + i)
            members[f"{i}.json"] = {**meta, "title": "a cat", "tags": ["x", "y"]}
        write_tar(folder / f"{name}.tar", members)
    return folder


def test_tars_by_pattern_and_by_index(tars, tmp_path, run):
    code, lines = run(f"{tars}/*.tar")
    assert code == 0 and lines[-1] == "Sound."
    assert value(lines, "data set") == "2 tars"
    assert value(lines, "captions") == "18"
    assert value(lines, "one string, no list") == "title (6)"
    assert any(line.startswith("note  Captions are one string in title (6)") for line in lines)
    code, lines = run(f"{tars}/*.tar", "--records", "2")
    assert code == 0 and value(lines, "records") == "6, 2 of them looked at"
    index = ["index", "--input", f"{tars}/*.tar", "--output", str(tmp_path / "index")]
    assert prepare.main([*index, "--workers", "1"]) == 0
    code, lines = run(tmp_path / "index", "--captions", "tags")
    assert code == 0 and value(lines, "data set") == "index of 2 tars"
    assert value(lines, "captions") == "12"
    assert value(lines, "one string, no list") == "0"
    code, lines = run(tmp_path / "index", "--captions", "tags,titel")
    assert code == 1 and "No sample has the caption fields ['titel']. Available: url" in lines[-3]
    (tars / "b.tar").rename(tars / "c.tar")
    code, lines = run(tmp_path / "index")
    assert code == 1 and re.search(r"WRONG .*b\.tar", "".join(lines))


def test_damaged_tars_and_samples_are_wrong_and_the_others_still_looked_at(tars, run):
    write_tar(
        tars / "c.tar",
        {
            "cut.jpg": image()[:-99],
            "cut.json": {"title": "t"},
            "two.jpg": image(1),
            "two.png": image(2),
            "two.txt": b"text",
            "bad.jpg": image(3),
            "bad.json": b"{",
            "none.txt": b"text",
        },
    )
    whole = (tars / "b.tar").read_bytes()
    (tars / "b.tar").write_bytes(whole[: len(whole) // 2])
    code, lines = run(f"{tars}/*.tar")
    assert code == 1 and lines[-1] == "Not sound: 2 problems, see above."
    wrong = [line for line in lines if line.startswith("WRONG")]
    assert re.search(r"b\.tar: not a complete", wrong[0])
    for text in ("c/cut (cannot", "c/two (2 images", "c/bad (its captions", "c/none (no image"):
        assert text in wrong[1]
    assert value(lines, "records") == "7"


def test_images_beyond_the_limits_and_without_a_range_are_unreadable(tmp_path, run):
    whole = image()
    frame = whole.index(b"\xff\xc0")
    giant = whole[: frame + 5] + (65_500).to_bytes(2, "big") * 2 + whole[frame + 9 :]
    file = io.BytesIO()
    Image.fromarray(np.ones((9, 9), np.float32)).save(file, "TIFF")
    examples = [record("a"), record("big", data=giant), record("float", data=file.getvalue())]
    code, lines = run(write_prepared(tmp_path / "data", examples))
    assert code == 1 and value(lines, "unreadable") == "2"
    text = next(line for line in lines if line.startswith("WRONG"))
    assert "big (cannot decode" in text and "65500x65500 pixels" in text
    assert "float (cannot decode" in text and "cannot be shown truthfully" in text


def test_what_is_no_data_set_is_one_clear_error(tmp_path, run):
    code, lines = run(tmp_path)
    assert code == 1 and "is no data set" in lines[0] and lines[-1].startswith("Not sound")
    folder = write_prepared(tmp_path / "data", [record("a"), record("b")])
    (folder / "01.array_record").unlink()
    code, lines = run(folder)
    assert code == 1 and re.search(r"WRONG Shard .*01.array_record is missing", lines[0])


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--records", "'0': give 1 or more"), ("--sample", "it is called --records now")],
)
def test_a_wrong_flag_is_one_clear_error(flag, message, capsys):
    with pytest.raises(SystemExit):
        doctor.main(["data", flag, "0"])
    assert message in capsys.readouterr().err


def test_data_without_captions_is_sound(tmp_path, run):
    example = {"id": "a", "image": image(), "label": 3}
    code, lines = run(write_prepared(tmp_path / "data", [example]))
    assert code == 0 and "note  There are no captions at all." in lines


def test_records_without_an_image_and_with_several(tmp_path, run):
    sound = [
        {"id": "text", "captions": {}, "images": []},
        {"id": "two", "captions": {}, "images": [image(1), image(2, 30, 40)]},
        {"id": "pack+1", "captions": {}, "examples": [{"id": "a"}, {"id": "b"}], "images": []},
    ]
    code, lines = run(write_prepared(tmp_path / "data", sound))
    assert code == 0 and lines[-1] == "Sound."
    assert value(lines, "image height") == "10 to 40, median 25 px"
    cut = {"id": "cut", "captions": {}, "images": [image(1), image(2)[:-99]]}
    none = {"id": "none", "captions": {}}
    code, lines = run(write_prepared(tmp_path / "broken", [*sound, cut, none]))
    assert code == 1 and any("unreadable: cut (cannot" in line for line in lines)
    assert any("none (no image)" in line for line in lines)
    assert value(lines, "same image twice") == "1"


def test_tokens_are_counted_with_both_ends():
    texts = ["a cat", "a", "zebra " * 600, "half \ud83d"]
    finding = examine(Sample("a", (image(),), {"text": texts}, ()))
    assert finding.tokens == [4, 3, 512, 4] and finding.words == [2, 1, 600, 2]
    assert finding.error.startswith("captions[3]: the text 'half ")


def test_histograms_can_be_drawn_of_next_to_nothing(tmp_path):
    survey = Survey()
    survey.add(examine(Sample("a", (), {}, (), "no image")))
    (tmp_path / "empty.png").write_bytes(histograms(survey))
    survey.add(examine(Sample("b", (image(1, 1000, 3),), {"text": ["a cat"]}, ("id",))))
    (tmp_path / "one.png").write_bytes(histograms(survey))
    for name in ("empty", "one"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == (1100, 770)
