"""Model directories: of any name, and labels that are whole while another process writes them."""

import os
import threading

import numpy as np
import pytest

from big_vlp.convert.files import read_model
from big_vlp.storage.checkpoint import CheckpointError
from big_vlp.storage.model_dir import Labels, open_model, save_model
from input_pipeline.preprocess import Preprocess

PREPROCESS = Preprocess(image_size=16)
MODEL = {"a": {"b": np.arange(12.0, dtype=np.float32).reshape(3, 4)}}


def test_labels_are_whole_at_any_moment(tmp_path):
    """A run writes them each time it starts, beside evaluators that read them."""
    labels, broken = Labels(tuple("word" * 50 for _ in range(2000)), None), []
    labels.save(tmp_path)
    done = threading.Event()

    def read():
        while not done.is_set():
            try:
                assert Labels.load(tmp_path) == labels
            except Exception as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        labels.save(tmp_path)
    done.set()
    reader.join()
    assert broken == []
    assert [p.name for p in tmp_path.iterdir()] == ["labels.json"]


@pytest.mark.parametrize("name", ["a [b]", "gs:", os.fsdecode(b"caf\xe9")], ids=ascii)
def test_a_model_directory_of_any_name(tmp_path, name):
    directory = tmp_path / name
    save_model(directory, {"model": MODEL}, {"name": "clip"}, PREPROCESS, Labels(("x",)))
    assert sorted(p.name for p in directory.iterdir()) == ["checkpoints", "labels.json"]
    stored = open_model(directory)
    assert stored.labels == Labels(("x",))
    np.testing.assert_array_equal(stored.load()["a"]["b"], MODEL["a"]["b"])
    np.testing.assert_array_equal(np.asarray(read_model(stored)["a"]["b"]), MODEL["a"]["b"])
    with pytest.raises(CheckpointError, match="holds a model already"):
        save_model(directory, {"model": MODEL}, {"name": "clip"}, PREPROCESS, None)


def test_a_damaged_converted_model(tmp_path):
    save_model(tmp_path, {"model": MODEL}, {"name": "clip"}, PREPROCESS, None)
    stored = open_model(tmp_path)
    (tmp_path / "checkpoints" / "0" / "model" / "manifest.ocdbt").write_bytes(b"")
    for read in (stored.load, lambda: read_model(stored)):
        with pytest.raises(CheckpointError, match=r"checkpoint 0 .* is damaged"):
            read()
