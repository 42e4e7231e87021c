"""Weights, models and exports in a bucket: the same bytes as on a disk, or nothing."""

import os

import jax
import numpy as np
import pytest

import big_vlp
from big_vlp.convert.files import appearing, read_state, write_state
from big_vlp.methods import make_method
from big_vlp.storage.model_dir import Labels, open_model, save_model
from input_pipeline.preprocess import Preprocess
from tests.big_vlp.convert.test_cogvlm_command import (  # noqa: F401
    arbitrary,
    release,
    run,
    same_bytes,
    same_tree,
)
from tests.input_pipeline.prepare.test_command_bucket import uploads

CATLIP = {
    "name": "catlip",
    "model": {"width": 64, "layers": 1, "heads": 1, "num_positions": 4},
    "num_classes": 3,
    "dtype": "float32",
}


@pytest.mark.slow
def test_cogvlm_there_and_back(bucket, run):  # noqa: F811
    released, model, back = (bucket / name for name in ("released", "model", "back"))
    release(released)
    assert run("import", "cogvlm", released, model, "--context-length", 64) == (0, "")
    stored = open_model(os.fspath(model))
    same_tree(stored.load(), arbitrary())
    assert stored.preprocess.tokenizer == f"llama:{released}/tokenizer.model"
    config = "--config-json", released / "config.json"
    assert run("export", "cogvlm", model, back, *config) == (0, "")
    same_bytes(read_state(back), read_state(released))
    assert (back / "config.json").exists()
    code, said = run("export", "cogvlm", model, back)
    assert code == 1 and f"{back} exists; give a new file or directory" in said


def test_shards_of_weights(bucket, bucket_server, tmp_path):
    state = {f"layer.{i}": np.full((100, 10), i, np.float32) for i in range(5)}
    for folder in (bucket / "new", tmp_path / "new"):
        with appearing(folder) as directory:
            write_state(directory, state, shard_bytes=8000)
        same_bytes(read_state(folder), state)
    files = {path.name: path.read_bytes() for path in (bucket / "new").iterdir()}
    assert len(files) == 4
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    spoiling = bucket_server.faults.spoiling(uploads([3], 403))  # of the index
    with spoiling, pytest.raises(OSError), appearing(bucket / "refused") as directory:
        write_state(directory, state, shard_bytes=8000)
    assert not (bucket / "refused").exists()


@pytest.mark.slow
def test_a_classifier_there_and_back(bucket, run):  # noqa: F811
    preprocess, labels = Preprocess(image_size=224), Labels(("cat", "dog", "sofa"))
    shapes = make_method(**CATLIP, preprocess=preprocess).shapes[0]
    rng = np.random.default_rng(0)
    model = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    save_model(bucket / "model", {"model": model}, CATLIP, preprocess, labels)
    loaded = big_vlp.load(os.fspath(bucket / "model"))
    assert loaded.class_names == labels.names
    same_tree(loaded._weights, model)
    file, again, names = (bucket / name for name in ("w.safetensors", "again", "names.txt"))
    assert run("export", "catlip", bucket / "model", file) == (0, "")
    names.write_text("\n".join(labels.names))
    assert run("import", "catlip", file, again, "--names", names) == (0, "")
    stored = open_model(again)
    assert stored.labels == labels
    same_tree(stored.load(), model)
    code, said = run("import", "catlip", file, bucket / "model")
    assert code == 1 and "holds a model already" in said
    code, said = run("import", "catlip", bucket / "none.safetensors", bucket / "new")
    assert code == 1 and f"{bucket}/none.safetensors does not exist" in said


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt"])
def test_a_file_of_pytorch(bucket, name):
    torch = pytest.importorskip("torch")
    local = {"a": torch.arange(6).reshape(2, 3)}
    with (bucket / name).open("wb") as file:
        torch.save(local, file)
    found = read_state(os.fspath(bucket / name))
    np.testing.assert_array_equal(np.asarray(found["a"]), local["a"].numpy())
