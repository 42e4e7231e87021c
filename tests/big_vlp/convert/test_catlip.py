"""The CatLIP converter and the conversion command: exact both ways, and one clear error."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from big_vlp import trees
from big_vlp.convert.__main__ import main
from big_vlp.convert.catlip import PLAIN_OUT, from_reference, to_reference
from big_vlp.convert.common import ConversionError
from big_vlp.methods.catlip import Method
from big_vlp.storage.model_dir import open_model
from input_pipeline.preprocess import Preprocess

PREPROCESS = Preprocess(image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
TOWER = {"width": 16, "layers": 3, "heads": 4, "mlp_dim": 24, "num_positions": 9}


def arbitrary(augment=True, **tower):
    method = Method(
        preprocess=PREPROCESS,
        num_classes=5,
        model={**TOWER, **tower},
        augment={"total_steps": 1} if augment else None,
    )
    rng = np.random.default_rng(0)
    shapes, _ = method.shapes
    # Above zero, as running variances are.
    return jax.tree.map(lambda x: rng.uniform(0.1, 1, x.shape).astype(x.dtype), shapes)


def same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].shape == value.shape, path
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("out", ["out_proj_attn", PLAIN_OUT])
def test_round_trip(augment, class_token, out):
    model = arbitrary(augment, class_token=class_token)
    state = to_reference(model, out)
    assert f"transformer.2.pre_norm_mha.1.{out}.weight" in state
    found, arguments, preprocess = from_reference(state, head_dim=4)
    same(found, model)
    assert arguments["num_classes"] == 5
    assert arguments["model"] == {**TOWER, "class_token": class_token}
    assert ("augment" in arguments) == augment
    assert (preprocess.image_size, preprocess.resize_size) == (224, 232)
    assert preprocess.tokenizer is None


def test_published_names_and_shapes():
    state = to_reference(arbitrary())
    assert state["pos_embed.pos_embed.pos_embed"].shape == (1, 1, 9, 16)
    assert state["cls_token"].shape == (1, 1, 16)
    assert state["transformer.0.pre_norm_mha.1.qkv_proj.weight"].shape == (48, 16)
    assert state["transformer.0.pre_norm_ffn.1.weight"].shape == (24, 16)
    assert state["patch_emb.0.block.conv.weight"].shape == (32, 3, 4, 4)
    assert state["patch_emb.1.block.norm.num_batches_tracked"].dtype == np.int64


def test_everything_that_does_not_fit_is_named():
    state = to_reference(arbitrary())
    del state["transformer.1.pre_norm_ffn.4.bias"]
    state["classifier.scale"] = np.ones(3)
    state["cls_token"] = np.ones((1, 1, 8))
    with pytest.raises(ConversionError) as error:
        from_reference(state, head_dim=4)
    assert "missing: transformer.1.pre_norm_ffn.4.bias (16,)" in str(error.value)
    assert "unexpected: classifier.scale (3,)" in str(error.value)
    assert "wrong shape: cls_token is (1, 1, 8), should be (1, 1, 16)" in str(error.value)


@pytest.mark.parametrize(
    "state, message",
    [({"weight": np.ones(3)}, "Not the weights of a CatLIP tower"),
     ({k: v for k, v in to_reference(arbitrary()).items() if "classifier" not in k},
      "classifier.weight is missing")],
)  # fmt: skip
def test_weights_of_something_else(state, message):
    with pytest.raises(ConversionError, match=message):
        from_reference(state, head_dim=4)


def write(path, model):
    state = {k: np.asarray(v, order="C") for k, v in to_reference(model).items()}
    safetensors.numpy.save_file(state, path)
    return state


@pytest.fixture
def wide():
    """With heads of 64, as the released models have."""
    return arbitrary(width=128, heads=2)


def test_the_command_imports_and_exports(tmp_path, wide, capsys):
    state = write(tmp_path / "released.safetensors", wide)
    keys = ("n2084071", "n2121620", "n4256520", "n2958343", "n13104059")
    names = ("dog.n.01", "cat.n.01", "sofa.n.01", "car.n.01", "tree.n.01")
    lines = [f"{key}\t{9 - i}\t{name}\n" for i, (key, name) in enumerate(zip(keys, names))]
    (tmp_path / "words.tsv").write_text("".join(lines))
    directory, file = str(tmp_path / "model"), tmp_path / "back.safetensors"
    arguments = ["import", "catlip", str(tmp_path / "released.safetensors"), directory]
    assert main([*arguments, "--vocabulary", str(tmp_path / "words.tsv")]) == 0
    stored = open_model(directory)
    same(stored.load(), wide)
    assert stored.labels.names[:2] == ("dog.n.01", "cat.n.01")
    assert main(["export", "catlip", directory, str(file)]) == 0
    back = safetensors.numpy.load_file(file)
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    assert main(["export", "catlip", directory, str(file)]) == 1
    assert "exists; give a new file" in capsys.readouterr().err


def test_fine_tuned_weights(tmp_path, wide):
    """A softmax over five named classes, at another size."""
    write(tmp_path / "tuned.safetensors", wide)
    (tmp_path / "names.txt").write_text("tench\ncrane\ncrane\nshark\nray\n")
    arguments = ["import", "catlip", str(tmp_path / "tuned.safetensors"), str(tmp_path / "model")]
    options = ["--task", "single", "--names", str(tmp_path / "names.txt"), "--image-size", "64"]
    assert main([*arguments, *options]) == 0
    stored = open_model(tmp_path / "model")
    assert stored.labels.names == ("tench", "crane", "crane", "shark", "ray")
    assert (stored.preprocess.image_size, stored.preprocess.resize_size) == (64, None)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)}
    probabilities = stored.make_method().predict_fns()["probabilities"](stored.load(), batch)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (
        main(["export", "catlip", str(tmp_path / "model"), str(tmp_path / "back.safetensors")]) == 0
    )


def test_only_models_of_the_system_are_exported(tmp_path, wide, capsys):
    write(tmp_path / "tuned.safetensors", wide)
    directory = str(tmp_path / "model")
    assert main(["import", "catlip", str(tmp_path / "tuned.safetensors"), directory]) == 0
    for system in ("cosmos", "catlip_segmentation"):
        assert main(["export", system, directory, str(tmp_path / "x.safetensors")]) == 1
        assert "is a model of method 'catlip'" in capsys.readouterr().err


def test_the_command_explains_what_is_wrong(tmp_path, wide, capsys):
    write(tmp_path / "released.safetensors", wide)
    (tmp_path / "few.tsv").write_text("n2084071\t9\tdog.n.01\n")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    for source, more, message in (
        ("nowhere.safetensors", [], "does not exist"),
        ("broken.safetensors", [], "no safetensors file"),
        ("released.safetensors", ["--vocabulary", "few.tsv"], "has 1 classes, the weights 5"),
    ):
        more = [more[0], str(tmp_path / more[1])] if more else []
        target = tmp_path / "model"
        assert main(["import", "catlip", str(tmp_path / source), str(target), *more]) == 1
        assert message in capsys.readouterr().err
        assert not target.exists()
