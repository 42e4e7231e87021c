"""Towers by name, of the package and from outside of it: one contract, in every method."""

import importlib

import jax
import numpy as np
import pytest

from big_vlp.methods import make_method
from big_vlp.models import towers
from big_vlp.models.cogvlm import CogVLM
from input_pipeline.checks import parts
from input_pipeline.preprocess import Preprocess
from tests.big_vlp.models.towers.toy_towers import apply, arbitrary, randn
from tests.big_vlp.models.toy_cogvlm import IMAGE, TEXT

BLOCKS = {"width": 12, "layers": 2, "heads": 2}
OURS = {
    "catlip_vit": {**BLOCKS, "num_positions": 4, "output_stride": 8},
    "eva": {**IMAGE, "patch_size": 8, "downsample": False},
    "eva02": {**IMAGE, "patch_size": 8, "heads": 3},
    "vit": {**BLOCKS, "image_size": 16, "patch_size": 8, "embed_dim": 12},
}
MINE = '''
import flax.linen as nn

from big_vlp.models.towers.shared import base


class Tower(base.Tower):
    """Patches, and their mean."""

    width: int

    token_size = 8

    @nn.compact
    def encode(self, images):
        x = nn.Conv(self.width, (8, 8), strides=(8, 8), dtype=self.dtype, name="patch")(images)
        x = x.reshape(len(x), -1, self.width)
        return x, x.mean(axis=1)
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a tower outside the package."""
    (tmp_path / "some_lab").mkdir()
    (tmp_path / "some_lab" / "patches.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return "some_lab.patches"


def test_every_tower_has_a_test_here():
    assert parts.known("big_vlp.models.towers").keys() == OURS.keys()


@pytest.mark.parametrize("name", OURS)
def test_every_tower_keeps_the_contract(name):
    tower = towers.make_tower("model", name, OURS[name])
    images = randn(2, 16, 32, 3)
    variables = arbitrary(tower, images)
    tokens, pooled = apply(tower, variables, images)
    count = 2 * 4 * (8 // tower.token_size) ** 2
    assert (tokens.shape, pooled.shape) == ((2, count, 12), (2, 12))
    half = tower.apply(variables, images, method="prepare")
    rows = [tower.apply(variables, half[i : i + 1], method="encode") for i in (0, 1)]
    for found, expected in zip(zip(*rows), (tokens, pooled)):
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-4, atol=1e-5)


def method_of(tower, model):
    sizes = {"augment": None, "train_statistics": False, "dtype": "float32"}
    return make_method(
        "transfer", preprocess=Preprocess(16), num_classes=3, tower=tower, model=model, **sizes
    )


def test_a_tower_from_outside_classifies(mine):
    method = method_of(mine, {"width": 12})
    model, _ = jax.jit(method.init)(jax.random.key(0))
    images = {"image": np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)}
    assert method.predict_fns()["classify"](model, images).shape == (2, 3)


def test_a_tower_from_outside_reads_for_cogvlm(mine):
    model = CogVLM(image={"width": 12}, text=TEXT, tower=mine, adapter_mlp_dim=24)
    assert model.image_token_size == 8
    images = randn(2, 1, 16, 16, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), images, *2 * [np.ones((2, 7), int)])
    assert variables["params"]["vision"]["patch"]["kernel"].shape == (8, 8, 3, 12)


@pytest.mark.parametrize(
    "tower, model, message",
    [
        ("resnet", {}, "Unknown tower 'resnet'; choose one of .*'eva'"),
        ("some_lab.gone", {}, "Unknown tower 'some_lab.gone'.*cannot be imported from here"),
        ("json", {}, "Module json has no Tower, which a tower must have"),
        ("vit", {"patch_size": 8, **BLOCKS}, "needs a tower that pools: give embed_dim"),
    ],
)
def test_a_tower_that_cannot_be(tower, model, message):
    with pytest.raises(ValueError, match=message):
        _ = method_of(tower, model).shapes
