"""The filter by a model's similarity: what is joined, the exact share, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from input_pipeline.corpus import jobs, similarity
from input_pipeline.corpus.command import main
from tests.input_pipeline.corpus import corpus_data as data
from tests.input_pipeline.corpus.test_rules import here
from tests.input_pipeline.prepare.prepare_data import contents

ROWS, DIM = (40, 3, 25), 8


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr("input_pipeline.corpus.command.run_all", here)


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


def write_embeddings(path, ids, image, parents, text):
    """As `big_vlp.embed` does."""
    if path.suffix == ".npz":
        captions = {"captions": np.array(["x"] * len(text)), "text": text}
        own = {"caption_ids": np.array(ids)[parents]}
        np.savez(path, ids=np.array(ids), image=image, **captions, **own)
        return
    vectors = lambda x: pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), DIM)  # noqa: E731
    ends = np.append(0, np.cumsum(np.bincount(parents, minlength=len(ids)))).astype(np.int32)
    columns = {"id": ids, "image": vectors(image)}
    columns["text"] = pa.ListArray.from_arrays(pa.array(ends), vectors(text))
    pa.parquet.write_table(pa.table(columns), path, row_group_size=16)


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
        pa.table({"TEXT": [f"{i}-{row}" for row in range(size)], "row": range(size)})
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
    monkeypatch.setattr(similarity, "_PAIRS", 16)
    assert filtered(folder, tmp_path / "out", *words, embeddings=f"all.{kind}") == 0
    scores = expected(*features())
    ranked = sorted(scores, key=scores.get, reverse=True)
    wanted = ranked[: round(0.3 * len(ranked))]
    if words[0] == "--threshold":
        wanted = [id_ for id_ in ranked if scores[id_] >= 0.1]
    assert kept(tmp_path / "out") == set(wanted) and len(scores) == 47
    report = json.loads((tmp_path / "out" / jobs.REPORT).read_bytes())
    [rule] = report["rules"]
    assert rule["no_value"] == sum(ROWS) - len(scores)
    assert sum(report["similarities"]["rows"]) == len(scores)
    if words[0] != "--threshold":
        assert report["options"]["cut"] == pytest.approx(scores[wanted[-1]], abs=1e-6)


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
    write_embeddings(
        tmp_path / "all.npz", ["8", "9"], one.repeat(2, 0), np.arange(2), one.repeat(2, 0)
    )
    words = "--threshold", "0.9", "--column", "id=key"
    assert filtered(tmp_path, tmp_path / "out", *words, embeddings="all.npz") == 0
    assert kept(tmp_path / "out") == {"part-000/1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, *rest: ([f"x{id_}" for id_ in ids], *rest), "No row has embeddings: ids of"),
        (lambda ids, *rest: ([ids[3]] * 50, *rest), "an id is there twice"),
        (None, "has no caption_ids and no text"),
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
    assert "is in two files of embeddings" in capsys.readouterr().out
