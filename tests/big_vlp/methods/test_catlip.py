"""CatLIP's tower and methods: properties that hold for any weights."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import losses, trees
from big_vlp.methods import make_method
from big_vlp.models.layers.norms import BatchNorm, ChannelFirstLayerNorm, layer_norm
from big_vlp.models.towers.catlip_vit import Tower as CatlipViT
from input_pipeline.preprocess import Preprocess

PREPROCESS = Preprocess(image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
TOWER = {"width": 16, "layers": 2, "heads": 2, "num_positions": 4}
ROWS, CLASSES = 8, 12


def make(name="catlip", **changes):
    given = {"tower": "catlip_vit"} if name == "transfer" else {}
    options = {"model": TOWER, "num_classes": CLASSES, "dtype": "float32", **given, **changes}
    return make_method(name, preprocess=PREPROCESS, **options)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = np.full((ROWS, 4), -1, np.int32)
    labels[1, :2] = [3, 5]
    labels[2, :] = [0, 11, 7, 2]
    return {
        "image": rng.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8),
        "labels": labels,
        "label": rng.integers(0, CLASSES, ROWS).astype(np.int32),
    }


def init(method):
    return jax.jit(method.init)(jax.random.key(0, impl="unsafe_rbg"))  # compiles fastest


def loss_of(method, model, batch, step=0):
    parameters, statistics = trees.split_statistics(model)

    def loss(parameters):
        key = jax.random.key(7)
        return method.loss(parameters, {}, {}, statistics, batch, rng=key, step=step)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters)


@pytest.mark.parametrize("name", ["catlip", "transfer"])
def test_accumulation_and_remat_change_nothing(batch, name):
    """BatchNorm sees the whole batch, so micro-batches give its very statistics and gradients."""
    plain = make(name, unroll=True, augment={"total_steps": 5})
    model, _ = init(plain)
    (loss, (statistics, _)), grads = loss_of(plain, model, batch)
    other = dataclasses.replace(plain, unroll=False, remat="full", accumulate_steps=4)
    (found_loss, (found_statistics, _)), found = loss_of(other, model, batch)
    np.testing.assert_allclose(found_loss, loss, rtol=1e-6)
    for a, b in ((found, grads), (found_statistics, statistics)):
        largest = max(np.abs(x).max() for x in jax.tree.leaves(b))
        for path, value in trees.flatten(b).items():
            np.testing.assert_allclose(
                trees.flatten(a)[path], value, rtol=2e-4, atol=1e-6 * largest, err_msg=path
            )


def test_loss_is_the_published_formula(batch):
    rng = np.random.default_rng(1)
    z = rng.normal(0, 5, (ROWS, CLASSES))
    y = np.zeros((ROWS, CLASSES))
    for row, ids in enumerate(batch["labels"]):
        y[row, ids[ids >= 0]] = 1
    expected = (np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))).sum(axis=1)
    np.testing.assert_allclose(losses.binary_cross_entropy(z, batch["labels"]), expected, rtol=1e-5)
    # Twice the same label, or in another order, is the same label.
    twice = np.concatenate([batch["labels"][:, ::-1], batch["labels"]], axis=1)
    np.testing.assert_array_equal(
        losses.binary_cross_entropy(z, twice), losses.binary_cross_entropy(z, batch["labels"])
    )
    positive = (y * (np.log1p(np.exp(-np.abs(z))) + np.maximum(-z, 0))).sum(axis=1)
    weighted = losses.binary_cross_entropy(z, batch["labels"], positive_weight=3.0)
    np.testing.assert_allclose(weighted, expected + 2 * positive, rtol=1e-5)


@pytest.mark.parametrize("augment", [None, {"total_steps": 5}])
def test_parts_of_the_loss_are_logged_where_there_are_two(batch, augment):
    method = make(augment=augment)
    model, _ = init(method)
    (loss, (_, metrics)), _ = loss_of(method, model, batch)
    assert metrics["labels_per_image"] == 6 / ROWS
    parts = [metrics[name] for name in metrics if name.endswith("_loss")]
    assert len(parts) == (2 if augment else 0)
    assert not parts or sum(parts) == pytest.approx(float(loss))


def test_extreme_logits_stay_finite():
    z = jnp.array([[1e4, -1e4]])
    for labels in ([[0, -1]], [[1, -1]], [[-1, -1]]):
        value, grad = jax.value_and_grad(
            lambda z, labels=labels: losses.binary_cross_entropy(z, jnp.array(labels)).sum()
        )(z)
        assert np.isfinite(value) and np.isfinite(grad).all()


def test_the_first_loss_follows_from_the_prior():
    image = np.zeros((ROWS, 32, 32, 3), np.uint8)
    nothing = {"image": image, "labels": np.full((ROWS, 2), -1, np.int32)}
    for prior in (0.5, 0.01):
        method = make(prior=prior)
        model, _ = init(method)
        model["classifier"]["kernel"] *= 0
        (loss, _), _ = loss_of(method, model, nothing)
        assert loss == pytest.approx(-CLASSES * math.log(1 - prior), rel=1e-5)


def test_cross_entropy_with_smoothing():
    rng = np.random.default_rng(2)
    z, label = rng.normal(0, 3, (5, 7)), np.array([0, 6, 3, 3, 1])
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    for smoothing in (0.0, 0.1):
        target = np.eye(7)[label] * (1 - smoothing) + smoothing / 7
        expected = -(target * log_p).sum(axis=1)
        found = losses.cross_entropy(jnp.asarray(z), jnp.asarray(label), smoothing)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_batch_norm_keeps_statistics_as_pytorch_does():
    x = np.random.default_rng(3).normal(2, 3, (4, 5, 5, 6)).astype(np.float32)
    norm = BatchNorm(jnp.float32)
    variables = norm.init(jax.random.key(0), x, True)
    assert float(variables["batch_stats"]["var"][0]) == 1  # initialising is no step
    y, moved = norm.apply(variables, x, True, mutable=["batch_stats"])
    flat = x.reshape(-1, 6)
    np.testing.assert_allclose(y.reshape(-1, 6).mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.reshape(-1, 6).std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    expected = 0.9 + 0.1 * flat.var(0, ddof=1)
    np.testing.assert_allclose(moved["batch_stats"]["var"], expected, rtol=1e-5)
    still = norm.apply({**variables, **moved}, x, False)
    mean, var = (np.asarray(moved["batch_stats"][k]) for k in ("mean", "var"))
    np.testing.assert_allclose(still, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)


def test_the_reference_norm_differs_only_where_tokens_equal_channels():
    quirk, plain = ChannelFirstLayerNorm(jnp.float32, 1e-6), layer_norm(None, jnp.float32, 1e-6)
    rng = np.random.default_rng(4)
    params = {
        "scale": rng.normal(size=6).astype(np.float32),
        "bias": np.float32(rng.normal(size=6)),
    }
    for tokens in (5, 6, 7):
        x = rng.normal(size=(2, tokens, 6)).astype(np.float32)
        a, b = (norm.apply({"params": params}, x) for norm in (quirk, plain))
        assert np.allclose(a, b, atol=1e-5) == (tokens != 6)


def test_positions_start_with_the_published_deviation():
    tower = CatlipViT(**{**TOWER, "num_positions": 4096})
    params = jax.jit(tower.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert np.std(params["position_embedding"]) == pytest.approx(16**-0.5, rel=0.01)


@pytest.mark.parametrize("size, stride, tokens", [((32, 48), 16, 6), ((32, 48), 8, 24)])
def test_any_size_and_stride(size, stride, tokens):
    tower = CatlipViT(**TOWER, output_stride=stride)
    images = jnp.zeros((2, *size, 3))
    (found, pooled), variables = tower.init_with_output(jax.random.key(0), images)
    assert found.shape == (2, tokens, 16)
    assert pooled.shape == (2, 16)
    assert variables["params"]["position_embedding"].shape == (4, 16)


@pytest.mark.parametrize(
    "changes, size, message",
    [({"output_stride": 4}, 32, "choose 8 or 16"), ({}, 40, "must be a multiple of 16")],
)
def test_sizes_that_cannot_be(changes, size, message):
    tower = CatlipViT(**TOWER, **changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def test_the_average_covers_parameters_and_statistics():
    method = make(ema_decay=0.75)
    model, averaged = init(method)
    assert trees.flatten(averaged).keys() == trees.flatten(model).keys()
    new = jax.tree.map(lambda x: x + 4, model)
    _, averaged = method.after_update(model, new, averaged, 0)
    for path, value in trees.flatten(averaged).items():
        np.testing.assert_allclose(value, trees.flatten(model)[path] + 1, rtol=1e-6, err_msg=path)


def test_a_frozen_tower_keeps_its_statistics(batch):
    method = make("transfer", train_statistics=False)
    model, averaged = init(method)
    assert averaged == {}
    before = trees.flatten(trees.split_statistics(model)[1])
    (_, (after, _)), _ = loss_of(method, model, batch)
    for path, value in trees.flatten(after).items():
        np.testing.assert_array_equal(value, before[path])


def test_towers_of_clip_can_be_classifiers(batch):
    model = {"patch_size": 8, "width": 16, "layers": 1, "heads": 2, "embed_dim": 8}
    method = make("transfer", tower="vit", model=model, multi_label=True)
    variables, _ = init(method)
    (loss, (statistics, _)), grads = loss_of(method, variables, batch)
    assert np.isfinite(loss) and statistics == {}
    assert np.abs(grads["tower"]["patch"]["kernel"]).max() > 0
    logits = method.predict_fns()["classify"](variables, {"image": batch["image"]})
    assert logits.shape == (ROWS, CLASSES)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("catlip", {"prior": 0.0}, "prior=0.0: give a probability"),
        ("catlip", {"ema_decay": 1.0}, "ema_decay=1.0"),
        ("catlip", {"num_classes": 0}, "num_classes must be 1 or more"),
        ("catlip", {"augment": {"total_steps": 0}}, "length of the curriculum"),
        ("transfer", {"tower": "resnet"}, "Unknown tower 'resnet'"),
        ("transfer", {"label_smoothing": 1.0}, "label_smoothing=1.0 must be"),
        ("transfer", {"label_smoothing": 0.1, "multi_label": True}, "one label per image"),
    ],
)
def test_arguments_that_cannot_be(name, changes, message):
    with pytest.raises(ValueError, match=message):
        make(name, **changes)
