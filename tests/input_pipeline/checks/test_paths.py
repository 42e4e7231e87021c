"""URLs are refused, "~" is the home directory, every other name is a path."""

import os
from pathlib import Path

import pytest

from input_pipeline.checks.paths import PathError, local_path

# Names that a file system allows, one component each: for whatever takes a directory.
ODD_NAMES = (
    "two words",
    " leading and trailing ",
    "100%",
    "%20",
    "a#b?c=d&e",
    "[x]*",
    "a:b",
    "$HOME",
    "quote\"quote'",
    "back\\slash",
    "line\nbreak\n",
    "naïve-猫-🐈",
    os.fsdecode(b"latin1-\xe9"),
    "~",
    "-dash",
    "2024",
)


@pytest.mark.parametrize(
    "url",
    ["gs://bucket/run", "s3://b/x", "GS://b", "file:///tmp/x", "hdfs://n:9000/a", "memory://a/b",
     "az+x.y-1://c", Path("gs://bucket/run"), Path("file:///tmp"), b"gs://bucket"],
)  # fmt: skip
def test_a_url_is_refused(url):
    with pytest.raises(PathError, match="mount the bucket"):
        local_path(url)


def test_an_empty_path_is_refused():
    with pytest.raises(PathError, match="empty"):
        local_path("")


def test_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert local_path("~/run") == local_path(Path("~/run")) == Path("/somewhere/run")
    assert local_path("./~/run") == Path.cwd() / "~" / "run"
    assert local_path("a~/run") == Path.cwd() / "a~" / "run"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_other_name_is_a_path(name, tmp_path):
    path = local_path(f"{tmp_path}/{name}/run")
    path.mkdir(parents=True)
    assert os.listdir(tmp_path) == [name]
    assert path == tmp_path / name / "run"


def test_a_name_with_a_colon_is_no_url():
    for name in ("a:b", "run:", "gs:", "x/gs://y", "a b://c", "./gs://bucket"):
        assert local_path(name).parts[: len(Path.cwd().parts)] == Path.cwd().parts
