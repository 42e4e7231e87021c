"""Model directories, and runs that start from one: weights arrive exactly, or nothing does."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.methods import make_method
from big_vlp.parallel import meshes
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from big_vlp.storage.checkpoint import CheckpointError
from big_vlp.storage.model_dir import Labels, open_model, save_model
from big_vlp.storage.warm_start import WarmStart
from input_pipeline.preprocess import Preprocess
from tests.big_vlp.storage.toy_states import drawn

PREPROCESS = Preprocess(image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
TOWER = {"width": 16, "layers": 2, "heads": 2, "num_positions": 4}
# dog.n.01, cat.n.01, sofa.n.01
KEYS = ("n2084071", "n2121620", "n4256520")
CATLIP = {"name": "catlip", "model": TOWER, "num_classes": 3, "dtype": "float32"}
PROBE = (("tower/.*", 0.0, 0.0), ("classifier/.*", 1.0, 0.0))


def arbitrary(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), tree)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(directory, model, averaged) of a CatLIP model of three words."""
    directory = tmp_path_factory.mktemp("trained")
    method = make_method(**CATLIP, preprocess=PREPROCESS)
    model, averaged = method.shapes
    items = {"model": arbitrary(model, 0), "averaged": arbitrary(averaged, 1)}
    labels = Labels(("dog.n.01", "cat.n.01", "sofa.n.01"), KEYS)
    save_model(directory, items, CATLIP, PREPROCESS, labels)
    return directory, items["model"], items["averaged"]


def fresh(num_classes=4, rules=PROBE, **changes):
    """A training state of the transfer method, and the mesh it lives on."""
    options = {"tower": "catlip_vit", "model": TOWER, "dtype": "float32", **changes}
    method = make_method("transfer", preprocess=PREPROCESS, num_classes=num_classes, **options)
    optimizer = make_optimizer(
        learning_rate=1e-3, total_steps=2, warmup_steps=0, weight_decay=0.0, rules=rules
    )
    return drawn(step.make_init(method, optimizer)), meshes.make_mesh()


def same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].shape == value.shape, path
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.parametrize("weights, part", [("model", 1), ("averaged", 2), (None, 2)])
def test_a_model_directory_gives_back_what_was_saved(trained, weights, part):
    stored = open_model(trained[0], weights)
    assert stored.preprocess == PREPROCESS
    assert stored.labels.keys == KEYS
    assert stored.make_method() == make_method(**CATLIP, preprocess=PREPROCESS)
    same(stored.load(), trained[part])


@pytest.mark.parametrize("place", ["disk", pytest.param("bucket", marks=pytest.mark.slow)])
def test_a_probe_starts_from_the_frozen_tower(trained, place, request):
    directory = trained[0]
    if place == "bucket":
        directory = request.getfixturevalue("bucket")
        items = {"model": trained[1], "averaged": trained[2]}
        save_model(directory, items, CATLIP, PREPROCESS, None)
    state, mesh = fresh()
    started, note = WarmStart(str(directory)).apply(state, mesh, None)
    same(started["frozen"]["tower"], trained[2]["tower"])
    same(started["model"]["batch_stats"], trained[2]["batch_stats"])
    same(started["model"]["classifier"], state["model"]["classifier"])
    assert "step 0" in note and "averaged weights" in note
    same(started["opt"], state["opt"])


def test_the_average_starts_where_the_model_does(trained):
    state, mesh = fresh(ema_decay=0.9, rules=((".*", 1.0, 0.0),))
    started, _ = WarmStart(str(trained[0]), weights="model").apply(state, mesh, None)
    same(started["averaged"], started["model"])
    same(started["model"]["tower"], trained[1]["tower"])


def test_transfer_init(trained):
    """By its own synset, by the mean of two, by the nearest (a poodle is a dog), and not at all."""
    state, mesh = fresh()
    start = WarmStart(str(trained[0]), classifier="transfer", min_similarity=0.2)
    names = ["n02084071", "dog_sofa", "poodle", "thermodynamics zzz"]
    fresh_kernel = np.asarray(state["model"]["classifier"]["kernel"])
    started, note = start.apply(state, mesh, names)
    old = trained[2]["classifier"]["kernel"]
    kernel = np.asarray(started["model"]["classifier"]["kernel"])
    np.testing.assert_allclose(kernel[:, 0], old[:, 0], rtol=1e-6)
    np.testing.assert_allclose(kernel[:, 1], (old[:, 0] + old[:, 2]) / 2, rtol=1e-5)
    np.testing.assert_allclose(kernel[:, 2], old[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(kernel[:, 3], fresh_kernel[:, 3])
    assert "2 classes by their own synset, 1 by the nearest, 1 random" in note
    assert not np.any(started["model"]["classifier"]["bias"])


def test_the_same_classes_can_be_copied(trained):
    state, mesh = fresh(num_classes=3)
    started, _ = WarmStart(str(trained[0]), classifier="copy").apply(state, mesh, None)
    same(started["model"]["classifier"], trained[2]["classifier"])


def test_the_image_tower_of_two_towers(tmp_path):
    model = {"patch_size": 8, "width": 16, "layers": 1, "heads": 2}
    text = {"vocab_size": 32, "width": 16, "layers": 1, "heads": 2}
    section = {"name": "clip", "model": {"image": model, "text": text, "embed_dim": 8}}
    preprocess = Preprocess(image_size=32, tokenizer="clip", context_length=8)
    shapes, _ = jax.eval_shape(
        make_method(**section, preprocess=preprocess).init, jax.random.key(0)
    )
    params = arbitrary(shapes, 2)
    save_model(tmp_path, {"model": params, "averaged": {}}, section, preprocess, None)
    state, mesh = fresh(tower="vit", model={**model, "embed_dim": 8})
    started, note = WarmStart(str(tmp_path)).apply(state, mesh, None)
    same(started["frozen"]["tower"], params["image_tower"])
    assert "model weights" in note


def test_dense_tasks_leave_the_class_token_out(trained):
    state, mesh = fresh(model={**TOWER, "class_token": False})
    started, _ = WarmStart(str(trained[0])).apply(state, mesh, None)
    expected = {k: v for k, v in trained[2]["tower"].items() if k != "class_token"}
    same(started["frozen"]["tower"], expected)


def test_another_tower_is_refused_and_every_difference_named(trained):
    state, mesh = fresh(model={**TOWER, "layers": 3, "num_positions": 9})
    with pytest.raises(CheckpointError) as error:
        WarmStart(str(trained[0])).apply(state, mesh, None)
    assert "wrong shape: tower/position_embedding is (4, 16), should be (9, 16)" in str(error.value)
    assert "tower/transformer/blocks/mlp/fc1/kernel" in str(error.value)


def test_transfer_needs_synsets_and_names(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "numbers")
    labels = json.loads((tmp_path / "numbers" / "labels.json").read_text())
    (tmp_path / "numbers" / "labels.json").write_text(json.dumps({**labels, "keys": None}))
    state, mesh = fresh()
    start = WarmStart(str(tmp_path / "numbers"), classifier="transfer")
    with pytest.raises(CheckpointError, match="no classifier of synsets"):
        start.apply(state, mesh, list("abcd"))
    start = WarmStart(str(trained[0]), classifier="transfer")
    with pytest.raises(CheckpointError, match="names of the 4 classes, and the data source has 2"):
        start.apply(state, mesh, ["dog", "cat"])


def test_learned_augmentation_is_taken_over(tmp_path):
    section = {**CATLIP, "augment": {"total_steps": 9}}
    shapes, _ = jax.eval_shape(
        make_method(**section, preprocess=PREPROCESS).init, jax.random.key(0)
    )
    model = arbitrary(shapes, 3)
    save_model(tmp_path, {"model": model}, section, PREPROCESS, None)
    rules = ((".*", 1.0, 0.0),)
    state, mesh = fresh(rules=rules, augment={"total_steps": 2})
    started, _ = WarmStart(str(tmp_path)).apply(state, mesh, None)
    same(started["model"]["augment"], model["augment"])
    state, mesh = fresh(rules=rules)
    started, _ = WarmStart(str(tmp_path)).apply(state, mesh, None)
    assert "augment" not in started["model"]


def test_arguments_that_cannot_be(trained):
    with pytest.raises(ValueError, match=r"min_similarity=2 must be in \[0, 1\]"):
        WarmStart("x", min_similarity=2)
    two_towers = {"model": {"image_tower": {"x": jnp.zeros(2)}}, "frozen": {}, "averaged": {}}
    with pytest.raises(CheckpointError, match="methods with one image tower"):
        WarmStart(str(trained[0])).apply(two_towers, meshes.make_mesh(), None)
    with pytest.raises(
        CheckpointError, match="is a model of method 'catlip'; this needs one of cos"
    ):
        open_model(trained[0]).make_method("cosmos")


def test_directories_that_are_no_model(trained, tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="no model directory"):
            open_model(directory)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; it has \[0\]"):
        open_model(trained[0], at_step=7)
    with pytest.raises(CheckpointError, match="holds a model already"):
        save_model(trained[0], {"model": {}}, CATLIP, PREPROCESS, None)


def test_a_state_is_not_given_away(trained):
    """The training step donates its state: the average must not share the model's memory."""
    state, mesh = fresh(ema_decay=0.9, rules=((".*", 1.0, 0.0),))
    started, _ = WarmStart(str(trained[0])).apply(state, mesh, None)
    jax.jit(lambda s: jax.tree.map(jnp.negative, s), donate_argnums=0)(started["model"])
    assert np.isfinite(started["averaged"]["tower"]["norm_post"]["scale"]).all()
    assert Path(trained[0]).is_dir()
