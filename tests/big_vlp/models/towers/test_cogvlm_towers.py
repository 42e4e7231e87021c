"""Other image towers in front of CogVLM's language model: CatLIP's, and that of two towers."""

import jax
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.models.cogvlm import Adapter
from big_vlp.models.towers.catlip_vit import Tower as CatlipViT
from big_vlp.models.towers.vit import Tower as ViT
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from tests.big_vlp.methods.toy_cogvlm_method import (
    EXPERTS,
    MODEL,
    SLOTS,
    compiled_loss,
    fast_jit,
    make,
    make_batch,
    make_model,
    mean_loss,
    written,
)
from tests.big_vlp.models.towers.toy_towers import apply, arbitrary, randn, vit

BLOCKS = {"width": 12, "layers": 2, "heads": 2}
IMAGE = {
    "catlip_vit": {**BLOCKS, "num_positions": 4, "output_stride": 8},
    "vit": {**BLOCKS, "image_size": 16, "patch_size": 8},
}


@pytest.fixture(scope="module")
def batch():
    return make_batch()


def method_of(tower, **changes):
    return make(model={**MODEL, "tower": tower, "image": IMAGE[tower]}, **changes)


@pytest.fixture(scope="module", params=IMAGE)
def case(request):
    """(name of the tower, method, model)."""
    method = method_of(request.param)
    return request.param, method, make_model(method)


def statistics(model):
    return trees.split_statistics(model)[1]


def test_features_are_the_towers_own_tokens_through_the_adapter(case):
    name, method, model = case
    images = randn(3, 16, 16, 3)
    if name == "vit":
        tower, variables = ViT(**IMAGE[name], embed_dim=None), {"params": model["vision"]}
        assert not statistics(model)
    else:
        tower, own = CatlipViT(**IMAGE[name]), statistics(model)["batch_stats"]["vision"]
        variables = {"params": model["vision"], "batch_stats": own}
    tokens, _ = apply(tower, variables, images)
    assert tokens.shape == (3, SLOTS - 2, 12)
    adapter = Adapter(16, 24, np.dtype(np.float32))
    expected = apply(adapter, {"params": model["adapter"]}, tokens)
    found = fast_jit(
        lambda model: method.network.apply(
            trees.variables(model), images[:, None], method="encode_images"
        )
    )(model)
    assert found.shape == (3, 1, SLOTS, 16)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_reads_the_image(case, batch):
    _, method, model = case
    loss = compiled_loss(method)
    found = loss(model, batch)
    np.testing.assert_allclose(found, mean_loss(method, model, batch), rtol=1e-5)
    assert abs(found - loss(model, {**batch, "images": 255 - batch["images"]})) > 1e-3


@pytest.mark.parametrize(
    "name, rules",
    [
        pytest.param("vit", EXPERTS, marks=pytest.mark.slow),
        pytest.param("catlip_vit", EXPERTS, marks=pytest.mark.slow),
        pytest.param("catlip_vit", ((".*", 1.0, 1.0),), marks=pytest.mark.slow),
    ],
    ids=["vit, frozen", "catlip_vit, frozen", "catlip_vit, trained"],
)
def test_a_step_of_training(batch, name, rules):
    """It moves what it should of the tower, and never its running statistics."""
    method = method_of(name, ema_decay=0.9)
    optimizer = make_optimizer(
        learning_rate=1e-2,
        total_steps=5,
        warmup_steps=0,
        weight_decay=0.1,
        rules=rules,
        dead=method.dead_parameters(),
    )
    state = fast_jit(step.make_init(method, optimizer))(jax.random.key(0, impl="unsafe_rbg"))
    model = make_model(method)
    parameters, own = trees.split_statistics(model)
    trainable, frozen = trees.split(parameters, optimizer.is_trainable(parameters))
    frozen_tower = rules is EXPERTS
    assert any(path.startswith("vision/") for path in trees.flatten(frozen)) == frozen_tower
    model = trees.merge(trainable, own)
    averaged = jax.tree.map(np.zeros_like, model)
    state = {**state, "model": model, "frozen": frozen, "averaged": averaged}
    new, metrics = fast_jit(step.make_train_step(method, optimizer))(
        state, batch, 0, jax.random.key(1)
    )
    assert np.isfinite(metrics["loss"]) and metrics["bad_steps"] == 0
    jax.tree.map(np.testing.assert_array_equal, statistics(new["model"]), own)
    assert bool(own) == (name == "catlip_vit")
    before, after = trees.flatten(trainable), trees.flatten(new["model"])
    assert all((after[path] != value).any() for path, value in before.items())
    for path, value in trees.flatten(new["averaged"]).items():
        np.testing.assert_allclose(value, (1 - 2 / 11) * after[path], rtol=1e-4, atol=1e-6)


def test_generation(case, batch):
    _, method, model = case
    fn = fast_jit(make(model=method.model, max_new_tokens=3).predict_fns()["generate"])
    found = fn(model, batch)
    expected = written(method, model, batch, 3)
    np.testing.assert_array_equal(found, expected)
    assert len({tuple(row) for row in expected.tolist()}) > 1
    assert (np.asarray(fn(model, {**batch, "images": 255 - batch["images"]})) != found).any()


@pytest.mark.parametrize("pool, head", [("cls", "proj"), ("mean", "proj"), ("map", "map")])
def test_a_vit_that_pools_nothing_has_the_same_tokens(pool, head):
    images = randn(2, 16, 16, 3)
    whole = vit(pool=pool, embed_dim=16)
    params = arbitrary(whole, images)["params"]
    tokens, pooled = apply(whole, {"params": params}, images)
    rest = {name: value for name, value in params.items() if name != head}
    assert trees.flatten(arbitrary(vit(pool=pool, embed_dim=None), images)["params"]).keys() == (
        trees.flatten(rest).keys()
    )
    found, nothing = apply(vit(pool=pool, embed_dim=None), {"params": rest}, images)
    np.testing.assert_allclose(found, tokens, rtol=1e-5, atol=1e-5)
    assert found.shape == (2, 16, 16) and pooled.shape == (2, 16) and nothing is None


def test_a_vit_without_its_last_norm_gives_what_its_blocks_give():
    images = randn(2, 16, 16, 3)
    whole = vit(pool="mean", embed_dim=None)
    params = arbitrary(whole, images)["params"]
    expected, _ = apply(whole, {"params": params}, images)
    norm = params.pop("norm_post")
    found, _ = apply(whole.clone(final_norm=False), {"params": params}, images)
    centred = found - found.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        scaled * norm["scale"] + norm["bias"], expected, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="towers that pool nothing"):
        vit(final_norm=False).init(jax.random.key(0), images)
