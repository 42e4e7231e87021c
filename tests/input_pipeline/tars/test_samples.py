import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline.prepare import filters
from input_pipeline.tars import samples


def image(format="JPEG", width=20, height=10, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def write_tar(path, members):
    """members: list of (name, bytes, or anything else to be written as JSON)."""
    with tarfile.open(path, "w") as tar:
        for name, value in members:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(path, fields=("caption",), split=False):
    tally = filters.Tally()
    records = samples.read_records(path, fields, split, tally)
    return list(filters.passing(records, filters.Rules(), tally)), tally


def one_caption(tmp_path, value, split=False):
    path = write_tar(tmp_path / "a.tar", [("1.jpg", image()), ("1.json", {"caption": value})])
    records, tally = read(path, split=split)
    return records[0]["captions"]["caption"] if records else tally.dropped


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("A cat. It sits", ["A cat. It sits"]),
        (["A cat.", "", "  ", None, " It sits "], ["A cat.", "It sits"]),
        ("  padded\n", ["padded"]),
        ("a pair \U0001f600", ["a pair \U0001f600"]),
    ],
)
def test_strings_and_lists_of_strings(tmp_path, value, expected):
    assert one_caption(tmp_path, value) == expected


@pytest.mark.parametrize("value", ["One. Two\nThree</s>", ["One. Two", "Three."]])
def test_split_sentences_applies_to_every_string(tmp_path, value):
    assert one_caption(tmp_path, value, split=True) == ["One", "Two", "Three"]


@pytest.mark.parametrize("value", ["", " \n", [], ["", " "]])
def test_empty_captions_are_dropped_and_listed(tmp_path, value):
    assert one_caption(tmp_path, value) == [{"key": "1", "reason": "no caption", "detail": ""}]


@pytest.mark.parametrize("split", [True, False])
def test_a_text_of_full_stops_is_empty_only_when_split(tmp_path, split):
    result = one_caption(tmp_path, "...", split=split)
    assert result == ([{"key": "1", "reason": "no caption", "detail": ""}] if split else ["..."])


@pytest.mark.parametrize(
    ("value", "type_name"),
    [(3, "a number"), ({"a": 1}, "an object"), (["a", 2.5], "a number in"), (True, "a boolean")],
)
def test_other_types_are_an_error_that_names_tar_key_and_field(tmp_path, value, type_name):
    with pytest.raises(ValueError, match=f"a.tar.*'1'.*'caption'.*{type_name}"):
        one_caption(tmp_path, value)


def test_fields_keep_their_order_and_txt_is_the_member(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [("1.jpg", image()), ("1.json", {"a": "A", "b": ["B"], "txt": "no"}), ("1.txt", b"T\n")],
    )
    records, _ = read(path, ("txt", "b", "a"))
    assert list(records[0]["captions"].items()) == [("txt", ["T"]), ("b", ["B"]), ("a", ["A"])]


def test_a_field_missing_in_some_samples_is_counted(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            *[("1.jpg", image()), ("1.json", {"a": "A", "b": None})],
            *[("2.jpg", image()), ("2.json", {"a": "A", "b": "B"})],
            *[("3.jpg", image()), ("3.json", b'{"a": NaN}')],
        ],
    )
    records, tally = read(path, ("a", "b"))
    assert [r["captions"] for r in records] == [{"a": ["A"], "b": []}, {"a": ["A"], "b": ["B"]}]
    assert tally.missing_captions == {"a": 1, "b": 2}
    assert tally.captions == {"a": 2, "b": 1}
    assert tally.dropped == [{"key": "3", "reason": "no caption", "detail": ""}]


@pytest.mark.parametrize("field", ["captoin", "txt", "empty"])
def test_a_field_missing_everywhere_is_an_error_that_lists_the_others(tmp_path, field):
    sample = [("1.jpg", image()), ("1.json", {"caption": "A", "key": "1", "empty": None})]
    tars = [write_tar(tmp_path / name, sample) for name in ("a.tar", "b.tar")]
    with pytest.raises(ValueError, match=rf"the 2 tars .*'{field}'. Available: caption, key\.$"):
        samples.check_fields(tars, ("caption", field))
    samples.check_fields([*tars, write_tar(tmp_path / "c.tar", [("1.txt", b"t")])], ("txt",))
    (tmp_path / "b.tar").write_bytes(b"torn")  # might have it: named when it is read
    samples.check_fields(tars, ("caption", field))


@pytest.mark.parametrize("value", [None, "absent"])
def test_a_field_missing_in_a_whole_tar_is_counted(tmp_path, value):
    values = {"caption": "A"} | ({"alt": None} if value is None else {})
    path = write_tar(tmp_path / "a.tar", [("1.jpg", image()), ("1.json", values)])
    records, tally = read(path, ("caption", "alt"))
    assert [r["captions"] for r in records] == [{"caption": ["A"], "alt": []}]
    assert tally.missing_captions == {"caption": 0, "alt": 1}


def test_an_empty_tar_has_no_samples(tmp_path):
    assert read(write_tar(tmp_path / "a.tar", []))[0] == []
    (tmp_path / "b.tar").touch()
    with pytest.raises(ValueError, match=r"b\.tar: not a complete.*empty file"):
        samples.index(tmp_path / "b.tar")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("json", b'{"caption": "half \\ud83d"}', r"json.*caption: the text 'half .*not valid Unic"),
        ("json", b'{"a": {"b": ["x", "\\uDE00"]}, "caption": "A"}', r"a\.b\[1\]"),
        ("json", b'{"caption": "\xed\xa0\x80"}', "can't decode byte 0xed"),
        ("json", b'{"caption": "caf\xe9"}', "can't decode byte 0xe9"),
        ("json", b"[1]", "a list, not an object"),
        ("json", b"null", "null, not an object"),
        ("json", b"[" * 100_000, "nested too deeply"),
        ("json", b'["\\ud83d\\ude00", ' + b"[" * 5000 + b"]" * 5001, "nested too deeply"),
        ("json", b'{"n": ' + b"1" * 5000 + b"}", "digits"),
        ("txt", b"caf\xe9", "the .txt cannot be read.*0xe9"),
    ],
)
def test_a_sample_that_cannot_be_read_is_dropped_and_listed(tmp_path, name, data, message):
    good = [("2.jpg", image()), ("2.json", {"caption": "A"}), ("2.txt", b"t")]
    other = {"json": [("1.txt", b"t")], "txt": [("1.json", {"caption": "A"})]}[name]
    members = [("1.jpg", image()), *other, (f"1.{name}", data), *good]
    records, tally = read(write_tar(tmp_path / "a.tar", members), ("caption", "txt"))
    assert [r["id"] for r in records] == ["a/2"]
    [dropped] = tally.dropped
    assert (dropped["key"], dropped["reason"]) == ("1", "unreadable captions")
    assert re.search(message, dropped["detail"])


@pytest.mark.parametrize("data", [b'\xef\xbb\xbf{"caption": "\\ud83d\\ude00", "n": Infinity}'])
def test_a_byte_order_mark_and_pairs_of_surrogates_are_read(tmp_path, data):
    path = write_tar(tmp_path / "a.tar", [("1.jpg", image()), ("1.json", data)])
    assert read(path)[0][0]["captions"]["caption"] == ["\U0001f600"]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_of_other_encodings_are_escaped_in_ids(tmp_path, format):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", encoding="latin-1", format=format) as tar:
        for name, data in (("caf\xe9.jpg", image()), ("caf\xe9.txt", b"t"), ("b.jpg", image())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    records, _ = read(path, ("txt",))
    assert [r["id"] for r in records] == ["a/caf\\xe9"]


def test_what_is_no_image_is_described(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("img.v1.0.jpg", image()), ("img.txt", b"t")])
    _, tally = read(path, ("txt",))
    assert tally.dropped[0]["reason"] == "no image"
    assert re.search(
        r"'img\.v1\.0\.jpg' is key 'img' and extension 'v1\.0\.jpg' .*, beside it \.txt; .*\.gif",
        tally.dropped[0]["detail"],
    )
    with pytest.raises(ValueError, match=r"Available: none\. .*'img' and extension 'v1\.0\.jpg'"):
        samples.check_fields([write_tar(tmp_path / "b.tar", [("img.v1.0.jpg", b"")])], ("txt",))


@pytest.mark.parametrize(
    ("extension", "format"),
    [
        *[("gif", "GIF"), ("AVIF", "AVIF"), ("jfif", "JPEG"), ("JPE", "JPEG")],
        *[("bmp", "BMP"), ("tif", "TIFF"), ("Tiff", "TIFF")],
    ],
)
def test_images_of_every_known_ending(tmp_path, extension, format):
    members = [(f"1.{extension}", image(format)), ("1.TXT", b"\xef\xbb\xbftext\r\n")]
    records, _ = read(write_tar(tmp_path / "a.tar", members), ("txt",))
    assert [(r["image"], r["captions"]) for r in records] == [(image(format), {"txt": ["text"]})]


@pytest.mark.parametrize("folder", ["data[1]", "what?", "a*"])
def test_folders_named_like_patterns(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / "data1").mkdir()
    write_tar(tmp_path / "data1" / "x9.tar", [])
    tars = [write_tar(tmp_path / folder / f"x[{i}].tar", []) for i in range(2)]
    assert samples.find_tars(str(tmp_path / folder / "x*.tar")) == tars
    assert samples.find_tars(str(tars[1])) == [tars[1]]
    assert len(samples.find_tars(f"{tmp_path}/*/x[[]?].tar")) == 2


def test_names_of_tars(tmp_path):
    for name in ("x.tar", "x.b.tar", "x.old"):  # not neighbours in the order of their names
        write_tar(tmp_path / name, [])
    with pytest.raises(ValueError, match=r"x\.\w+ and .*x\.\w+ would give the same shard name"):
        samples.find_tars(f"{tmp_path}/x*")
    write_tar(tmp_path / "caf\udce9.tar", [])
    with pytest.raises(ValueError, match=r"rename this one: .*not valid Unicode"):
        samples.find_tars(f"{tmp_path}/caf*")


def test_images_are_checked_and_stored_untouched(tmp_path):
    good = {"jpg": image(), "jpeg": image(seed=1), "png": image("PNG", 7), "webp": image("WEBP")}
    members = []
    for extension, data in good.items():
        members += [(f"{extension}.{extension.upper()}", data), (f"{extension}.txt", b"text")]
    members += [("cut.jpg", image()[:-100]), ("cut.txt", b"text")]
    members += [("html.jpg", b"<html>"), ("html.txt", b"text")]
    members += [("none.txt", b"text")]
    members += [("two.jpg", image()), ("two.png", image("PNG")), ("two.txt", b"text")]
    members += [("mask.jpg", image()), ("mask.seg.png", b"not the image"), ("mask.txt", b"text")]
    members += [("bad.jpg", image()), ("bad.txt", b"\xff\xfe\xfd")]
    records, tally = read(write_tar(tmp_path / "a.tar", members), ("txt",))
    assert {r["id"]: r["image"] for r in records} == {
        **{f"a/{extension}": data for extension, data in good.items()},
        "a/mask": image(),
    }
    assert [(d["key"], d["reason"]) for d in tally.dropped] == [
        ("cut", "broken image"),
        ("html", "broken image"),
        ("none", "no image"),
        ("two", "several images"),
        ("bad", "unreadable captions"),
    ]
    assert "cannot decode" in tally.dropped[0]["detail"]
    assert tally.formats == {"jpeg": 3, "png": 1, "webp": 1}
    assert tally.widths == [20, 20, 7, 20, 20] and tally.heights == [10] * 5
    assert tally.samples == len(records) + len(tally.dropped)


def test_keys_keep_their_folder_and_hidden_files_are_passed_over(tmp_path):
    members = []
    for key in ("x/1", "y/1", "./2"):
        members += [(f"{key}.jpg", image()), (f"{key}.txt", b"text")]
    members.insert(1, ("x/._1.jpg", b"resource fork"))
    records, _ = read(write_tar(tmp_path / "a.tar", members), ("txt",))
    assert [r["id"] for r in records] == ["a/x/1", "a/y/1", "a/./2"]


def test_every_truncation_of_a_tar_is_noticed(tmp_path):
    names = [f"{i}.{extension}" for i in range(3) for extension in ("jpg", "txt")]
    path = write_tar(tmp_path / "a.tar", [(name, image()) for name in names])
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        stops = [member.offset for member in tar.getmembers()[1:]] + [tar.offset]
    begins, end = [0, *stops[1:-1:2]], stops[-1]
    for length in [*range(0, end, 37), *range(0, end + 1, tarfile.BLOCKSIZE)]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"a\.tar: not a complete") as error:
            samples.index(path)
        stated = re.search(
            r"Readable are ([\d,]+) of ([\d,]+) bytes, (\d) samples", str(error.value)
        )
        readable, size, count = (int(group.replace(",", "")) for group in stated.groups())
        assert size == length and count == sum(begin < readable for begin in begins)
        assert readable == max(stop for stop in [0, *stops] if stop <= length)
    path.write_bytes(data[: end + tarfile.BLOCKSIZE])
    assert [sample.key for sample in samples.index(path)] == ["0", "1", "2"]


@pytest.mark.parametrize("member", [1, 3, 5])
def test_a_damaged_header_is_an_error_that_says_how_far_the_tar_is_readable(tmp_path, member):
    names = [f"{i}.{extension}" for i in range(3) for extension in ("jpg", "txt")]
    path = write_tar(tmp_path / "a.tar", [(name, image()) for name in names])
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[member].offset
    data = bytearray(path.read_bytes())
    data[offset + 150] ^= 0xFF  # Its checksum field.
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{offset:,} of .*last with key '{(member - 1) // 2}'"):
        samples.index(path)


def test_tars_glued_together_are_not_half_read(tmp_path):
    one = write_tar(tmp_path / "a.tar", [("1.jpg", image()), ("1.txt", b"text")])
    two = write_tar(tmp_path / "b.tar", [("2.jpg", image()), ("2.txt", b"text")])
    one.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(ValueError, match="not a tar header"):
        samples.index(one)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.jpg", "2.jpg", "1.txt", "2.txt"], "'1' occurs in two places"),
        (["1.jpg", "1.jpg"], "occurs twice"),
    ],
)
def test_ambiguous_samples_are_an_error(tmp_path, names, message):
    path = write_tar(tmp_path / "a.tar", [(name, image()) for name in names])
    with pytest.raises(ValueError, match=f"a.tar.*{message}"):
        samples.index(path)


def test_links_and_compressed_tars_are_an_error(tmp_path):
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        info = tarfile.TarInfo("1.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "0.jpg"
        tar.addfile(info)
    with pytest.raises(ValueError, match=r"link.tar.*not a plain file"):
        samples.index(tmp_path / "link.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.jpg"))
    with pytest.raises(ValueError, match=r"packed.tar.*uncompressed.*with gzip, unpack it"):
        samples.index(tmp_path / "packed.tar")
