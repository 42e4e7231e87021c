"""Weights, models and exports in a bucket: the same bytes as on a disk, or nothing."""

import os

import jax
import numpy as np
import pytest

import big_vlp
from big_vlp import trees
from big_vlp.convert.files import read_state
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


def test_cogvlm_there_and_back(bucket, bucket_server, tmp_path, run):  # noqa: F811
    released, model, back = (bucket / name for name in ("released", "model", "back"))
    release(released)
    assert run("import", "cogvlm", released, model, "--context-length", 64) == (0, "")
    stored = open_model(os.fspath(model))
    same_tree(stored.load(), arbitrary())
    assert stored.preprocess.tokenizer == f"llama:{released}/tokenizer.model"
    config = "--config-json", released / "config.json"
    for target in (back, tmp_path / "back"):
        assert run("export", "cogvlm", model, target, *config) == (0, "")
    same_bytes(read_state(back), read_state(released))
    files = {path.name: path.read_bytes() for path in back.iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    code, said = run("export", "cogvlm", model, back)
    assert code == 1 and f"{back} exists; give a new file or directory" in said
    code, said = run("import", "cogvlm", released, model)
    assert code == 1 and "holds a model already" in said

    with bucket_server.faults.spoiling(uploads([2], 403)):  # the index, after config and weights
        code, said = run("export", "cogvlm", model, bucket / "refused")
    assert code == 1 and said.count("error: ") == 1
    assert not (bucket / "refused").exists()


def test_a_classifier_there_and_back(bucket, tmp_path, run):  # noqa: F811
    preprocess, labels = Preprocess(image_size=224), Labels(("cat", "dog", "sofa"))
    shapes = make_method(**CATLIP, preprocess=preprocess).shapes[0]
    rng = np.random.default_rng(0)
    model = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    save_model(bucket / "model", {"model": model}, CATLIP, preprocess, labels)
    loaded = big_vlp.load(os.fspath(bucket / "model"))
    assert loaded.class_names == labels.names
    same_tree(loaded._weights, model)
    for folder in (bucket, tmp_path):
        target = folder / "weights.safetensors"
        assert run("export", "catlip", bucket / "model", target) == (0, "")
    assert target.read_bytes() == (bucket / "weights.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    (bucket / "names.txt").write_text("\n".join(labels.names))
    source, again = bucket / "weights.safetensors", bucket / "again"
    assert run("import", "catlip", source, again, "--names", bucket / "names.txt") == (0, "")
    stored = open_model(again)
    assert stored.labels == labels
    assert trees.flatten(stored.load()).keys() == trees.flatten(model).keys()
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
