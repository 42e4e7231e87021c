"""A shard that is made several times, also at once and where another command ends meanwhile."""

import dataclasses
import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
from rich.console import Console

from input_pipeline.files import whole
from input_pipeline.prepare import shards
from input_pipeline.prepare.filters import Rules
from tests.input_pipeline.prepare.prepare_data import contents, image

OPTIONS = {"command": "test"}


def read(count, remove_from, tally):
    """Records; after some of them another command with this output finishes, once."""
    for number in range(count):
        tally.samples += 1
        if remove_from is not None and number == 2 and not (remove_from / "removed").exists():
            whole.remove_temporaries(remove_from / "out")
            (remove_from / "removed").touch()
        yield str(number), {"id": str(number), "image": image(number, 64), "captions": {"a": ["b"]}}


def job(count=8, remove_from=None):
    return shards.Job(
        name="test",
        file="a.array_record",
        origin={"first": 0},
        modified="1",
        size=1,
        read=functools.partial(read, count, remove_from),
    )


def write(output, job):
    return shards._write_shard(output, OPTIONS, Rules(), None, job, None, None)


@pytest.fixture
def expected(tmp_path):
    (tmp_path / "expected").mkdir()
    assert write(tmp_path / "expected", job())["records"] == 8
    return contents(tmp_path / "expected")


def test_an_attempt_after_another_changes_nothing(expected, tmp_path):
    output = tmp_path / "expected"
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in output.iterdir()}
    assert write(output, job())["records"] == 8
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before}
    # What is there but was not made by this job is replaced.
    (output / "a.array_record").write_bytes(b"x" * (output / "a.array_record").stat().st_size)
    assert write(output, job())["records"] == 8
    assert contents(output) == expected


def test_attempts_at_the_same_time_leave_one_shard(expected, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(write, [output] * 12, [job()] * 12))
    assert all(result == found[0] and result["records"] == 8 for result in found)
    assert contents(output) == expected


def test_an_attempt_whose_file_was_removed_begins_again(expected, tmp_path):
    (tmp_path / "out").mkdir()
    assert write(tmp_path / "out", job(remove_from=tmp_path))["records"] == 8
    assert (tmp_path / "removed").exists()
    assert contents(tmp_path / "out") == expected


def test_half_written_files_are_kept_while_another_machine_may_write_them(tmp_path):
    for name in (".a.array_record.1.tmp", ".b.array_record.2.tmp"):
        (tmp_path / name).write_bytes(b"half")
    whole.os.utime(tmp_path / ".a.array_record.1.tmp", (1e9, 1e9))
    assert list(whole.finished(tmp_path, "dataset.json")) == []
    assert [path.name for path in tmp_path.iterdir()] == [".b.array_record.2.tmp"]
    whole.remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == []


def lost(*_):
    raise OSError("the worker is lost")


def test_an_attempt_that_is_lost_takes_nothing_from_one_that_finished(
    expected, tmp_path, monkeypatch
):
    output = tmp_path / "expected"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_is_there", lambda *_: False)  # it finished after this was asked
        patch.setattr(whole, "place", lost)
        assert "the worker is lost" in write(output, job())
    assert contents(output) == expected
    # What is not finished with these very contents is not vouched for meanwhile.
    with monkeypatch.context() as patch:
        patch.setattr(whole, "place", lost)
        assert "the worker is lost" in write(output, job(count=5))
    assert [path.name for path in output.iterdir()] == ["a.array_record"]


def test_small_files_are_written_again_if_another_command_removed_them(tmp_path, monkeypatch):
    placed, calls = whole.place, []

    def remove_first(temporary, path):
        calls.append(path)
        if len(calls) == 1:
            whole.remove_temporaries(tmp_path)
        placed(temporary, path)

    monkeypatch.setattr(whole, "place", remove_first)
    whole.write_json(tmp_path / "a.json", [1])
    assert len(calls) == 2
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "[\n 1\n]\n"}
    with pytest.raises(FileNotFoundError):
        whole.write_json(tmp_path / "none" / "a.json", [1])


def test_a_json_that_another_attempt_removes_is_not_there(tmp_path, monkeypatch):
    for name in ("a", "a.json"):
        (tmp_path / name).write_text("{}")
    found = whole.in_directory(tmp_path)
    monkeypatch.setattr(whole, "in_directory", lambda path: found)
    (tmp_path / "a.json").unlink()
    assert [contents for _, _, contents in whole.finished(tmp_path, "b")] == [None, None]


def test_a_shard_of_an_earlier_command_is_not_described(tmp_path):
    """A worker of it ends its task after the new command's, and puts its own shard there."""

    def late(function, tasks, unit, console):
        for label, arguments in tasks:
            yield label, function(*arguments)
        write(output, stale)

    output, console = tmp_path / "out", Console()
    stale = dataclasses.replace(job(), modified="0", read=functools.partial(read_other, 8))
    more = (output, OPTIONS, Rules(), late, "records", console)
    with pytest.raises(
        ValueError, match=r"1 of 1 shards were replaced meanwhile, e.g. a.array_rec"
    ):
        shards.write([job()], *more)
    assert not (output / "dataset.json").exists()

    def here(function, tasks, unit, console):
        return [(label, function(*arguments)) for label, arguments in tasks]

    [found] = shards.write([job()], *more[:3], here, *more[4:])
    assert found["records"] == 8


def read_other(count, tally):
    """Other records of the same size."""
    for key, record in read(count, None, tally):
        yield key, {**record, "captions": {"a": ["c"]}}
