"""Embeddings of a set: those of the API, in one file, whatever happens on the way."""

import io
import json

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import big_vlp
from big_vlp import embed as command
from big_vlp.api import embeddings
from big_vlp.api.embeddings import EmbedError, broken_file, embed
from input_pipeline.corpus.scores import SCORE, write_scores
from input_pipeline.files.buckets import storage_path
from input_pipeline.records import BrokenRecordError
from input_pipeline.sources import Source, make_source
from tests.big_vlp.parallel.clusters import Cluster
from tests.test_stored import unpacked

PART = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return big_vlp.load(unpacked("model", tmp_path_factory.mktemp("embed")), batch_size=4)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(embeddings, "PART_ROWS", PART)


class Records(Source):
    """Some scenes; a number in `broken` has no image, one in `refused` cannot be read now."""

    def __init__(self, size=8, broken=(), refused=()):
        self.scenes = make_source("scenes", size=size, image_size=32)
        self.broken, self.refused, self.read = broken, refused, []

    def __len__(self):
        return len(self.scenes)

    def record(self, index):
        self.read.append(index)
        if index in self.refused:
            raise TimeoutError("no answer")
        record = self.scenes[index]
        return {**record, "image": b"?"} if index in self.broken else record

    def identity(self):
        return (f"records {len(self)} {self.broken}",)


def test_features_are_those_of_the_api(model, tmp_path):
    source, said = Records(broken=(0, 4)), []
    made = embed(model, source, tmp_path / "a.npz", ["caption"], batch_size=4, say=said.append)
    left = [source.scenes[i] for i in range(8) if i not in (0, 4)]
    texts = [text for record in left for text in record["captions"]["caption"]]
    assert made == (6, len(texts), 2)
    expected = {
        "ids": [record["id"] for record in left],
        "captions": texts,
        "caption_ids": [r["id"] for r in left for _ in r["captions"]["caption"]],
    }
    image = model.encode_image([record["image"] for record in left])
    text = model.encode_text(texts)
    with np.load(tmp_path / "a.npz") as found:
        assert {name: found[name].tolist() for name in expected} == expected
        assert found.files == ["ids", "captions", "caption_ids", "image", "text"]
        for name, value in (("image", image), ("text", text)):
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], value, atol=1e-5)
    lines = broken_file(tmp_path / "a.npz").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [source.scenes[i]["id"] for i in (0, 4)]
    assert "is no image" in lines[0] or "cannot" in lines[0]
    assert said[-1].startswith("8 of 8 images, ")

    embed(model, source, tmp_path / "a.parquet", ["caption"], batch_size=4)
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert table.keys() == {"id", "image", "captions", "text"}
    assert table["id"] == expected["ids"]
    assert [text for own in table["captions"] for text in own] == texts
    np.testing.assert_allclose(table["image"], image, atol=1e-5)
    np.testing.assert_allclose([row for own in table["text"] for row in own], text, atol=1e-5)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"a.{end}" for end in ("npz", "parquet", "npz.broken.jsonl",
                                           "parquet.broken.jsonl")}  # fmt: skip


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_the_similarity_filter_reads_what_is_written(model, tmp_path, suffix):
    source, output = Records(broken=(2,)), tmp_path / f"a.{suffix}"
    embed(model, source, output, ["caption"], batch_size=4)
    assert write_scores(tmp_path / "scores", output) == ""
    found = np.fromfile(tmp_path / "scores", SCORE)
    left = [source.scenes[i] for i in range(8) if i != 2]
    image = model.encode_image([record["image"] for record in left])
    text = model.encode_text([record["captions"]["caption"][0] for record in left])
    assert {len(record["captions"]["caption"]) for record in left} == {1}
    np.testing.assert_allclose(np.sort(found["score"]), np.sort((image * text).sum(1)), atol=1e-5)


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_what_was_killed_goes_on_to_the_same_file(model, tmp_path, suffix):
    """What is done is not done again, also where a later start is killed while it writes."""
    source = Records(broken=(1,))
    embed(model, source, tmp_path / f"whole.{suffix}", batch_size=3)

    def die(text):
        if text.startswith("6 of 8"):
            raise KeyboardInterrupt

    killed, output = Records(broken=(1,)), tmp_path / f"killed.{suffix}"
    with pytest.raises(KeyboardInterrupt):
        embed(model, killed, output, batch_size=3, say=die)
    assert not output.exists()
    (tmp_path / f"{output.name}.parts" / ".000002.npz.abc.tmp").write_bytes(b"half")
    again, said = Records(broken=(1,)), []
    assert embed(model, again, output, batch_size=3, say=said.append) == (7, 0, 1)
    assert set(again.read) == {6, 7} and "2 of 3 parts are there already" in said[0]
    assert output.read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    assert (
        broken_file(output).read_bytes() == broken_file(tmp_path / f"whole.{suffix}").read_bytes()
    )
    assert not (tmp_path / f"{output.name}.parts").exists()


def test_what_storage_refuses_now_is_not_left_out(model, tmp_path):
    with pytest.raises(BrokenRecordError, match="no answer"):
        embed(model, Records(refused=(7,)), tmp_path / "a.npz", batch_size=3)
    later = Records()
    assert embed(model, later, tmp_path / "a.npz", batch_size=3).images == 8
    assert set(later.read) == set(range(PART, 8))


def test_what_cannot_be_made(model, tmp_path):
    output = tmp_path / "a.npz"

    def refused(message, source=None, path=output, captions=(), error=EmbedError):
        with pytest.raises(error, match=message):
            embed(model, source or Records(2), path, captions, batch_size=4)

    refused(r"give a file that ends in .npz or .parquet", path=tmp_path / "a.csv")
    refused(r"has no captions \['text'\]; it has \['caption'", captions=["text"])
    refused(r"No image can be used. The first: Record ", Records(2, broken=(0, 1)))
    refused(r"parts of other embeddings \(records differ")
    refused(r"parts of other embeddings \(records, captions diff", captions=["caption"])
    output.write_bytes(b"mine")
    (tmp_path / "b.npz").write_bytes(b"mine")
    refused("b.npz exists: delete it", path=tmp_path / "b.npz")
    assert output.read_bytes() == b"mine"
    (tmp_path / "file").write_bytes(b"")
    refused("cannot be written", path=tmp_path / "file" / "a.npz")


def test_processes_that_would_embed_different_things(model, tmp_path, monkeypatch):
    """They would wait for each other."""
    monkeypatch.setattr(embeddings, "differing", lambda asked: ["records"])
    with pytest.raises(EmbedError, match="they differ in records"):
        embed(model, Records(), tmp_path / "a.npz")
    assert not any(tmp_path.iterdir())


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (level,) * 3).save(file, "PNG")
    path.write_bytes(file.getvalue())


def test_files_of_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for level, name in enumerate(("b/x.png", "a/x.png", "a/y.PNG", "a/c/z.png")):
        picture(tmp_path / name, level)
    (tmp_path / "a" / "notes.txt").write_text("?")
    source = command.open_images("**/*.png")
    assert [source[i]["id"] for i in range(len(source))] == ["a/c/z.png", "a/x.png", "b/x.png"]
    assert source[1]["image"] == (tmp_path / "a/x.png").read_bytes()
    source = make_source("files", path=f"{tmp_path}/a/*")
    assert [source[i]["id"] for i in range(2)] == [f"{tmp_path}/a/x.png", f"{tmp_path}/a/y.PNG"]
    before = source.fingerprint()
    (tmp_path / "a" / "x.png").write_bytes(b"longer" * 99)
    assert make_source("files", path=f"{tmp_path}/a/*").fingerprint() != before
    with pytest.raises(EmbedError, match=r"--images .*finds no image"):
        command.open_images("c/*.png")
    with pytest.raises(EmbedError, match="--images nothing: "):
        command.open_images("nothing")


def test_the_command(model, tmp_path, capsys):
    for level in range(2):
        picture(tmp_path / f"{level}.png", 90 * level)
    (tmp_path / "2.png").write_bytes(b"no image")
    directory, output = str(model.stored.directory), str(tmp_path / "out" / "a.npz")
    given = ["--model", directory, "--output", output, "--batch-size", "4"]
    assert command.main([*given, "--images", f"{tmp_path}/*.png"]) == 0
    said = capsys.readouterr().out
    assert f"Wrote {output}: 2 images." in said
    assert f"1 images cannot be used; {output}.broken.jsonl says why." in said
    with np.load(output) as found:
        assert found["ids"].tolist() == [f"{tmp_path}/{level}.png" for level in range(2)]
    assert command.main([*given, "--images", f"{tmp_path}/*.png"]) == 1
    assert "a.npz exists" in capsys.readouterr().err


def test_in_a_bucket(model, tmp_path, bucket):
    folder, images = storage_path(f"{bucket}/embed"), Records(4)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(images.scenes[number]["image"])
    source = make_source("files", path=f"{folder}/*.png")
    assert embed(model, source, folder / "a.npz", batch_size=4) == (4, 0, 0)
    embed(model, images, tmp_path / "a.npz", batch_size=4)
    with np.load(io.BytesIO((folder / "a.npz").read_bytes())) as there:
        assert there["ids"].tolist() == [f"{folder}/{number}.png" for number in range(4)]
        with np.load(tmp_path / "a.npz") as here:
            np.testing.assert_array_equal(there["image"], here["image"])
    assert {path.name for path in folder.iterdir()} == {"a.npz", *(f"{i}.png" for i in range(4))}


PROGRAM = """
import sys
from big_vlp.embed import main
model, images, output = sys.argv[1] + "/model", "scenes:size=10,image_size=32", "/COUNT.npz"
given = ["--model", model, "--images", images, "--output", sys.argv[1] + output]
sys.exit(main([*given, "--captions", "caption", "--batch-size", "4"]))
"""


@pytest.mark.slow
def test_two_processes_share_the_images(tmp_path):
    unpacked("model", tmp_path)
    for count, devices in ((1, 1), (2, 2)):
        source = PROGRAM.replace("COUNT", str(count))
        Cluster(count, "", "", tmp_path, source=source, devices=devices).finish()
    with np.load(tmp_path / "1.npz") as one, np.load(tmp_path / "2.npz") as two:
        assert one.files == two.files and len(one["ids"]) == 10
        for name in ("ids", "captions", "caption_ids"):
            assert one[name].tolist() == two[name].tolist()
        for name in ("image", "text"):
            np.testing.assert_allclose(one[name], two[name], atol=1e-6)
