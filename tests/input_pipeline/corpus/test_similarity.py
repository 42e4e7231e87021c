"""The filter by a model's similarity: what is joined, the exact share, and what is refused."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from input_pipeline.corpus import jobs, runs, scores, similarity
from input_pipeline.corpus.command import main
from tests.input_pipeline.corpus import corpus_data as data
from tests.input_pipeline.corpus.test_rules import here
from tests.input_pipeline.prepare.prepare_data import contents

ROWS, DIM = (40, 3, 25), 8


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr("input_pipeline.command_line.in_processes", lambda workers: here)


def features(seed=0):
    """Ids of a part of all rows, in no order; images; (number of the image, text), up to two."""
    rng = np.random.default_rng(seed)
    ids = [f"part-{i:03d}/{row}" for i, size in enumerate(ROWS) for row in range(size)]
    ids = [str(id_) for id_ in rng.permutation(ids)[:50]]
    parents = np.sort(np.concatenate([np.arange(2, 50), rng.integers(2, 50, 20)]))
    image, text = (rng.normal(size=(n, DIM)).astype(np.float32) for n in (50, len(parents)))
    image[5] = 0
    image, text = (x / np.maximum(np.linalg.norm(x, axis=1)[:, None], 1e-9) for x in (image, text))
    return ids, image, parents, text


def write_embeddings(path, ids, image, parents, text, caption_of=None):
    """As `big_vlp.embed` does; the first caption of an image is that of the table's row."""
    first = np.append(True, parents[1:] != parents[:-1])
    named = caption_of or caption_by_place
    own = [named(ids[i]) if is_first else "another" for i, is_first in zip(parents, first)]
    if path.suffix == ".npz":
        captions = {"captions": np.array(own), "text": text}
        own = {"caption_ids": np.array(ids)[parents]}
        np.savez(path, ids=np.array(ids), image=image, **captions, **own)
        return
    vectors = lambda x: pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), DIM)  # noqa: E731
    ends = np.append(0, np.cumsum(np.bincount(parents, minlength=len(ids)))).astype(np.int32)
    columns = {"id": ids, "image": vectors(image)}
    columns["captions"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(own))
    columns["text"] = pa.ListArray.from_arrays(pa.array(ends), vectors(text))
    pa.parquet.write_table(pa.table(columns), path, row_group_size=16)


def caption_by_place(id_):
    """The first sentence of the row with an id by place, in the tables of `folder`."""
    file, _, row = id_.removeprefix("x").removeprefix("part-").partition("/")
    return f"{int(file)}-{row}"


def expected(ids, image, parents, text):
    """Id -> similarity."""
    found = {}
    for parent, row in zip(parents, text):
        score = float(image[parent] @ row)
        if image[parent].any():
            found[ids[parent]] = max(score, found.get(ids[parent], -2))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("similarity")
    tables = [
        pa.table({"TEXT": [f" {i}-{row}.  More" for row in range(size)], "row": range(size)})
        for i, size in enumerate(ROWS)
    ]
    data.write(folder / "meta", tables, group=7)
    write_embeddings(folder / "all.npz", *features())
    write_embeddings(folder / "all.parquet", *features())
    return folder


def filtered(folder, output, *words, embeddings="all.parquet", workers=1):
    command = ["similarity", "--input", f"{folder}/meta/*.parquet", "--output", str(output)]
    command += ["--embeddings", f"{folder}/{embeddings}", "--workers", str(workers), *words]
    return main(command)


def kept(output):
    return {
        f"{path.stem}/{row}"
        for path in output.glob("*.parquet")
        for row in pa.parquet.read_table(path)["row"].to_pylist()
    }


@pytest.mark.parametrize("kind", ["npz", "parquet"])
@pytest.mark.parametrize("words", [("--keep-fraction", "0.3"), ("--threshold", "0.1")])
def test_the_best_are_kept(folder, tmp_path, kind, words, monkeypatch, in_this_process):
    monkeypatch.setattr(scores, "_PAIRS", 16)
    monkeypatch.setattr(runs, "RUN", 5)
    monkeypatch.setattr(similarity, "_PART", 10)
    monkeypatch.setattr(similarity, "_VALUES", 7)
    assert filtered(folder, tmp_path / "out", *words, embeddings=f"all.{kind}") == 0
    values = expected(*features())
    ranked = sorted(values, key=values.get, reverse=True)
    wanted = ranked[: round(0.3 * len(ranked))]
    if words[0] == "--threshold":
        wanted = [id_ for id_ in ranked if values[id_] >= 0.1]
    assert kept(tmp_path / "out") == set(wanted) and len(values) == 47
    report = json.loads((tmp_path / "out" / jobs.REPORT).read_bytes())
    [rule] = report["rules"]
    assert rule["no_value"] == sum(ROWS) - len(values)
    assert sum(report["similarities"]["rows"]) == len(values)
    if words[0] != "--threshold":
        assert report["options"]["cut"] == pytest.approx(values[wanted[-1]], abs=1e-6)


def test_workers_and_attempts_change_no_byte(folder, tmp_path, capsys):
    words = "--keep-fraction", "0.5"
    assert filtered(folder, tmp_path / "one", *words) == 0
    assert filtered(folder, tmp_path / "two", *words, workers=2) == 0
    before = contents(tmp_path / "one")
    assert before == contents(tmp_path / "two")
    assert len(before) == 2 * len(ROWS) + 3  # nothing hidden is left
    (tmp_path / "two" / "part-001.parquet.json").unlink()  # as if killed before it was written
    (tmp_path / "two" / jobs.REPORT).unlink()
    capsys.readouterr()
    assert filtered(folder, tmp_path / "two", *words) == 0
    assert "2 of 3 files are finished already" in capsys.readouterr().out
    assert contents(tmp_path / "two") == before
    assert filtered(folder, tmp_path / "two", *words) == 0
    assert "All 3 files are finished already" in capsys.readouterr().out
    assert contents(tmp_path / "two") == before


@pytest.mark.parametrize("seed", range(20))
def test_the_share_is_exact_also_where_many_are_equal(seed):
    rng = np.random.default_rng(seed)
    values = rng.choice([-0.5, -0.0, 0.0, 0.25, 0.3, 0.30000001, -1, 1], rng.integers(1, 200))
    values = np.append(values, rng.normal(size=5)).astype(np.float32)
    values[rng.random(len(values)) < 0.1] = np.nan
    values[0] = 0.3
    parts = np.split(values, np.sort(rng.integers(len(values), size=2)))
    fraction = rng.uniform(0.2, 1)
    cut, ties = similarity.choose(parts, fraction)
    known = values[~np.isnan(values)]
    wanted = round(len(known) * fraction)
    # The best of all, the first of equal ones.
    places = np.flatnonzero(~np.isnan(values))
    best = np.sort(places[np.argsort(-known, kind="stable")][:wanted])
    mine, first = [], 0
    for part, tied in zip(parts, ties):
        check = similarity.Best(part, cut, tied)
        for low in range(0, len(part), 7):
            scores, fails = check(Few(low, min(7, len(part) - low)))
            mine += (first + low + np.flatnonzero(~fails & ~np.isnan(scores))).tolist()
        first += len(part)
    assert mine == best.tolist()


class Few:
    """Some rows, of which only the place is asked."""

    def __init__(self, first, size):
        self.first, self.size = first, size

    def __len__(self):
        return self.size


def test_ids_may_lie_in_a_column(tmp_path, in_this_process):
    data.write(tmp_path / "meta", [pa.table({"key": [7, 8, None], "row": [0, 1, 2]})])
    one = np.eye(DIM, dtype=np.float32)[:1]
    two = one.repeat(2, 0), np.arange(2), one.repeat(2, 0)
    write_embeddings(tmp_path / "all.npz", ["8", "9"], *two, caption_of=str)
    words = "--threshold", "0.9", "--column", "id=key"
    assert filtered(tmp_path, tmp_path / "out", *words, embeddings="all.npz") == 0
    assert kept(tmp_path / "out") == {"part-000/1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, *rest: ([f"x{id_}" for id_ in ids], *rest), "No row has embeddings: ids of"),
        (lambda ids, *rest: ([ids[3]] * 50, *rest), "an id is there twice"),
        (None, "has no caption_ids and no captions and no text"),
    ],
)
def test_what_is_refused(folder, tmp_path, change, message, capsys, in_this_process):
    (tmp_path / "meta").symlink_to(folder / "meta")
    if change is None:
        np.savez(tmp_path / "all.npz", ids=np.array(["a"]), image=np.ones((1, DIM)))
    else:
        write_embeddings(tmp_path / "all.npz", *change(*features()))
    words = "--keep-fraction", "0.5"
    assert filtered(tmp_path, tmp_path / "out", *words, embeddings="all.npz") == 1
    said = capsys.readouterr()
    assert message in said.out + said.err and said.err.count("\n") == 1


def test_an_id_in_two_files_is_refused(folder, tmp_path, capsys, in_this_process):
    words = "--keep-fraction", "0.5"
    for name in ("a", "b"):
        write_embeddings(tmp_path / f"{name}.parquet", *features())
    (tmp_path / "meta").symlink_to(folder / "meta")
    assert filtered(tmp_path, tmp_path / "out", *words, embeddings="[ab].parquet") == 1
    assert "is in two files of embeddings, a.parquet and b.parquet" in capsys.readouterr().out


@pytest.mark.parametrize("words", [(), ("--column", "caption=TEXT"), ("--column", "caption=other")])
def test_rows_that_moved_since_are_not_taken_for_others(
    folder, tmp_path, words, capsys, in_this_process
):
    """As after another filter: files keep their names, and rows go up."""
    (tmp_path / "meta").mkdir()
    for path in (folder / "meta").iterdir():
        table = pa.parquet.read_table(path)
        table = table.append_column("other", pa.array(["x"] * len(table)))
        if "caption=other" not in words:
            table = table.slice(1)
        pa.parquet.write_table(table, tmp_path / "meta" / path.name)
    (tmp_path / "all.parquet").symlink_to(folder / "all.parquet")
    assert filtered(tmp_path, tmp_path / "out", "--keep-fraction", "0.5", *words) == 1
    said = capsys.readouterr()
    assert "are of another caption than its" in said.err and said.err.count("\n") == 1
    assert "FAILED" not in said.out and not list((tmp_path / "out").glob("*.parquet"))


def test_an_id_of_a_column_follows_its_row(folder, tmp_path, in_this_process):
    """Through filters before; and its caption may be compared, too."""
    (tmp_path / "meta").mkdir()
    for path in (folder / "meta").iterdir():
        table = pa.parquet.read_table(path)
        ids = [f"{path.stem}/{row}" for row in range(len(table))]
        table = table.append_column("id", pa.array(ids)).slice(1)
        pa.parquet.write_table(table, tmp_path / "meta" / path.name)
    (tmp_path / "all.parquet").symlink_to(folder / "all.parquet")
    words = "--threshold", "-1", "--column", "id=id", "--column", "caption=TEXT"
    assert filtered(tmp_path, tmp_path / "out", *words) == 0
    left = {id_ for id_ in expected(*features()) if not id_.endswith("/0")}
    assert kept(tmp_path / "out") == left


def test_a_damaged_table_is_one_line_and_the_others_are_joined(
    folder, tmp_path, capsys, in_this_process
):
    shutil.copytree(folder / "meta", tmp_path / "meta")
    (tmp_path / "all.parquet").symlink_to(folder / "all.parquet")
    path, words = tmp_path / "meta" / "part-001.parquet", ("--keep-fraction", "0.5")
    sound, moment = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(sound[:-50])
    assert filtered(tmp_path, tmp_path / "out", *words) == 1
    said = capsys.readouterr()
    [line] = [line for line in said.out.splitlines() if line.startswith("FAILED")]
    assert "part-001.parquet cannot be read: " in line and said.err.count("\n") == 1
    path.write_bytes(sound)
    os.utime(path, ns=(moment, moment))
    assert filtered(tmp_path, tmp_path / "out", *words) == 0
    said = capsys.readouterr().out
    assert "Joining them to rows (1 of 3 to do)" in said and "Comparing images" not in said


def test_damaged_embeddings_are_one_line(folder, tmp_path, capsys, in_this_process):
    sound = (folder / "all.npz").read_bytes()
    damaged = [b"", sound[:-30], sound[: len(sound) // 2]]
    rng = np.random.default_rng(0)
    for place in rng.integers(len(sound), size=60).tolist():
        damaged.append(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
    (tmp_path / "all.npz").write_bytes(damaged[1])
    (tmp_path / "meta").symlink_to(folder / "meta")
    words = "--keep-fraction", "0.5"
    assert filtered(tmp_path, tmp_path / "out", *words, embeddings="all.npz") == 1
    said = capsys.readouterr()
    [line] = [line for line in said.out.splitlines() if line.startswith("FAILED")]
    assert "all.npz cannot be read: BadZipFile" in line and said.err.count("\n") == 1
    reasons = []
    for number, contents_ in enumerate(damaged):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(contents_)
        reasons.append(scores.write_scores(tmp_path / "scores", path))
    assert all(reasons[:3]) and sum(map(bool, reasons)) > 40  # not all bits of a zip matter
    assert all(f"{n}.npz" in reason for n, reason in enumerate(reasons) if reason)


def test_the_same_embeddings_give_the_same_report_whenever_they_were_written(
    folder, tmp_path, in_this_process
):
    (tmp_path / "meta").symlink_to(folder / "meta")
    reports = []
    for number in range(2):
        write_embeddings(tmp_path / "all.parquet", *features())
        os.utime(tmp_path / "all.parquet", ns=(number, number))
        assert filtered(tmp_path, tmp_path / f"out{number}", "--keep-fraction", "0.5") == 0
        reports.append((tmp_path / f"out{number}" / jobs.REPORT).read_bytes())
    assert reports[0] == reports[1]


def test_embeddings_that_were_made_again_are_read_again(folder, tmp_path, in_this_process):
    """Also where the file has the same size, as that of another model has."""
    (tmp_path / "meta").symlink_to(folder / "meta")
    found = []
    for seed in (0, 1):
        ids, image, parents, text = features()
        rng = np.random.default_rng(seed)
        write_embeddings(tmp_path / "all.npz", ids, rng.permutation(image), parents, text)
        os.utime(tmp_path / "all.npz", ns=(seed, seed))
        words = "--keep-fraction", "0.3"
        assert filtered(tmp_path, tmp_path / "out", *words, embeddings="all.npz") == 0
        found.append(kept(tmp_path / "out"))
    assert found[0] != found[1]
