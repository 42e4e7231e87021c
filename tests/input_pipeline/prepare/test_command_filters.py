"""The filters of the command `prepare`."""

import json
import re

import pytest

from input_pipeline.sources import make_source
from tests.input_pipeline.prepare.prepare_data import (
    contents,
    ids,
    image,
    run,
    run_source,
    write_prepared,
    write_tar,
)

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


def test_records_without_an_image_are_nobodys_copies(tmp_path):
    records = [{"id": name, "captions": {}, "images": []} for name in "abc"]
    records += [{"id": name, "captions": {}, "images": [image()]} for name in "de"]
    source = write_prepared(tmp_path / "mine", records)
    flags = ["--drop-duplicates"]
    assert run_source(tmp_path / "data", "prepared", f"path={source}", *flags) == 0
    assert ids(tmp_path / "data") == ["a", "b", "c", "d"]
