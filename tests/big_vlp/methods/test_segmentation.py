"""The segmentation method: its loss over labelled pixels, a training step, prediction."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import losses, trees
from big_vlp.methods import make_method, segmentation
from big_vlp.parallel import meshes
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from evaluators.shared.base import make_evaluator
from input_pipeline.preprocess import Preprocess

CLASSES, SIZE, BATCH = 3, 32, 4
PREPROCESS = Preprocess(
    image_size=SIZE, resize="squash", interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3
)
RULES = ((".*(kernel|position_embedding)", 1.0, 1.0), (".*(bias|scale)", 1.0, 0.0))


def method(**changes):
    model = {"width": 16, "layers": 1, "heads": 2, "num_positions": 9}
    arguments = {
        "preprocess": PREPROCESS,
        "num_classes": CLASSES,
        "model": {**model, "class_token": False, "output_stride": 8},
        "head": {"channels": 8, "rates": (1, 2)},
        "dtype": "float32",
    }
    return make_method("segmentation", **{**arguments, **changes})


def make_batch(seed=0, size=SIZE):
    """Quadrants of plain colours; the colour is the class, and a fifth of the pixels is without."""
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.integers(1, CLASSES + 1, (BATCH, 2, 2)), np.ones((size // 2,) * 2))
    image = 255 * np.eye(3)[mask.astype(int) - 1]
    mask[rng.random(mask.shape) < 0.2] = 0
    return {"image": image.astype(np.uint8), "mask": mask.astype(np.int16)}


def init(made):
    return jax.jit(made.init)(jax.random.key(0, impl="unsafe_rbg"))  # compiles fastest


@functools.cache
def fresh():
    return init(method())


@functools.cache
def augmented():
    """(method, model, what `evaluate` gives for it)."""
    made = method(augment={"total_steps": 10})
    model, _ = init(made)
    return made, model, evaluate(made)(model)


def evaluate(made):
    """A function (model, seed=1) -> loss, gradients, new statistics, metrics."""

    @jax.jit
    def run(model, seed):
        params, statistics = trees.split_statistics(model)

        def loss(params):
            key = jax.random.key(seed)
            return made.loss(params, {}, {}, statistics, make_batch(), rng=key, step=0)

        (loss, (statistics, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return loss, grads, statistics, metrics

    return lambda model, seed=1: run(model, seed)


# The loss


def slow_loss(pixels, mask):
    """Mean of -log softmax at the label, one labelled pixel after the other, in float64."""
    total, count = 0.0, 0
    for logits, value in zip(np.float64(pixels).reshape(-1, pixels.shape[-1]), mask.ravel()):
        if value > 0:
            total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[value - 1]
            count += 1
    return total / count


def test_pixel_loss_counts_labelled_pixels_alone():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 5, 6, CLASSES)).astype(np.float32)
    mask = rng.integers(0, CLASSES + 1, (2, 5, 6))
    mask[1, 1:] = 0  # few labels: a mean of the images' means would be another number
    sums, counts = jax.jit(losses.pixel_cross_entropy)(logits, mask - 1)
    np.testing.assert_array_equal(counts, (mask > 0).sum(axis=(1, 2)))
    assert sums.sum() / counts.sum() == pytest.approx(slow_loss(logits, mask), rel=1e-5)
    means = np.mean(np.asarray(sums) / np.asarray(counts))
    assert abs(means - slow_loss(logits, mask)) > 0.01
    changed = logits + 100 * (mask == 0)[..., None] * rng.normal(size=CLASSES)
    np.testing.assert_allclose(losses.pixel_cross_entropy(changed, mask - 1)[0], sums, rtol=1e-6)


def test_pixel_loss_equals_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (2, 4, 4, CLASSES)).astype(np.float32)
    labels = rng.integers(-1, CLASSES, (2, 4, 4))
    sums, counts = losses.pixel_cross_entropy(logits, labels)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).permute(0, 3, 1, 2), torch.tensor(labels), ignore_index=-1
    )
    assert sums.sum() / counts.sum() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 8, 1000])
def test_blocks_of_rows_do_not_matter(monkeypatch, rows):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 3, 2, CLASSES)).astype(np.float32)
    mask = rng.integers(0, CLASSES + 1, (2, 24, 16)).astype(np.int16)
    monkeypatch.setattr(segmentation, "BLOCK_ROWS", rows)
    differentiate = lambda fn: jax.jit(jax.value_and_grad(fn))(logits)  # noqa: E731
    found, gradient = differentiate(lambda x: segmentation.mean_pixel_loss(x, mask))

    def whole(logits):
        weights = segmentation._weights((3, 2), (24, 16))
        pixels = segmentation.resize_bilinear(logits, *weights)
        sums, counts = losses.pixel_cross_entropy(pixels, mask.astype(int) - 1)
        return sums.sum() / counts.sum()

    expected, expected_gradient = differentiate(whole)
    assert found == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_a_batch_without_labels_has_no_loss_and_no_gradient():
    logits = np.ones((2, 2, 2, CLASSES), np.float32)
    loss, gradient = jax.value_and_grad(segmentation.mean_pixel_loss)(
        logits, np.zeros((2, 16, 16), np.uint8)
    )
    assert loss == 0 and (np.asarray(gradient) == 0).all()


# Training


def test_the_model_and_its_average():
    model, averaged = fresh()
    assert averaged == {}
    assert model.keys() == {"tower", "head", "batch_stats"}
    assert model["batch_stats"].keys() == {"tower", "head"}
    assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    shapes, average = jax.eval_shape(
        method(ema_decay=0.9, augment={"total_steps": 9}).init, jax.random.key(0)
    )
    assert jax.tree.structure(shapes) == jax.tree.structure(average)
    assert shapes["augment"].keys() == {"brightness", "contrast", "noise"}


def test_a_step_moves_statistics_of_tower_and_head():
    model, _ = fresh()
    loss, grads, statistics, metrics = evaluate(method())(model)
    assert 0.3 < loss < 3 * np.log(CLASSES)
    assert metrics["labelled_pixels"] == pytest.approx(0.8, abs=0.05)
    _, old = trees.split_statistics(model)
    assert jax.tree.structure(statistics) == jax.tree.structure(old)
    for path, value in trees.flatten(statistics).items():
        assert np.abs(value - trees.flatten(old)[path]).max() > 0, path
    for path, value in trees.flatten(grads).items():
        assert np.isfinite(value).all() and (value != 0).any(), path


def test_executions_agree():
    made, model, expected = augmented()
    found = evaluate(dataclasses.replace(made, unroll=True, remat="full"))(model)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1, np.abs(b).max()))


def test_dropout_follows_the_key():
    model, _ = fresh()
    run = evaluate(method())
    assert run(model, 1)[0] == run(model, 1)[0] != run(model, 2)[0]
    undisturbed = evaluate(method(head={"channels": 8, "rates": (1, 2), "dropout": 0.0}))
    assert undisturbed(model, 1)[0] == undisturbed(model, 2)[0] != run(model, 1)[0]


def test_the_augmentation_is_trained_too():
    _, _, (loss, grads, _, metrics) = augmented()
    parts = metrics["segmentation_loss"] + metrics["augment_loss"]
    assert loss == pytest.approx(float(parts)) and metrics["augment_loss"] > 0
    assert any(float(np.abs(x)) > 0 for x in jax.tree.leaves(grads["augment"]))


@pytest.mark.slow
def test_training_learns_the_classes():
    """Some steps of the loop's own step; the average follows; prediction runs on statistics."""
    made = method(ema_decay=0.7)
    optimizer = make_optimizer(
        learning_rate=1e-2, total_steps=40, warmup_steps=2, weight_decay=0.1, rules=RULES
    )
    state = jax.jit(step.make_init(made, optimizer))(jax.random.key(0))
    train_step = jax.jit(step.make_train_step(made, optimizer))
    values = []
    for i in range(40):
        state, metrics = train_step(state, make_batch(i), i, jax.random.key(1))
        values.append(float(metrics["loss"]))
    assert np.mean(values[-5:]) < 0.5 * values[0], values
    for name in ("model", "averaged"):
        batch = make_batch(100)
        logits = made.predict_fns()["segment"](state[name], {"image": batch["image"]})
        logits = segmentation.upsample(logits, batch["mask"].shape[1:])
        right = np.asarray(logits).argmax(-1) + 1 == batch["mask"]
        assert right[batch["mask"] > 0].mean() > 0.7
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state["model"], state["averaged"])
    assert all(jax.tree.leaves(moved))


# Prediction


def test_prediction_is_row_by_row_and_at_the_towers_stride():
    model, _ = fresh()
    segment = jax.jit(method().predict_fns()["segment"])
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 32, 3), dtype=np.uint8)
    logits = segment(model, {"image": images})
    assert logits.shape == (3, 6, 4, CLASSES) and logits.dtype == jnp.float32
    np.testing.assert_allclose(segment(model, {"image": images[1:2]})[0], logits[1], atol=1e-5)
    fine = segmentation.upsample(logits, (48, 32))
    assert fine.shape == (3, 48, 32, CLASSES)
    corners = ([0, 0, -1, -1], [0, -1, 0, -1])
    np.testing.assert_allclose(fine[:, *corners], logits[:, *corners], atol=1e-5)


def test_pixels_are_normalised_by_the_preprocess_record():
    model, _ = fresh()
    images = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    other = dataclasses.replace(PREPROCESS, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
    found = method(preprocess=other).predict_fns()["segment"](model, {"image": images})
    plain = (images / np.float32(255) - np.float32(other.mean)) / np.float32(other.std)
    expected = method().predict_fns()["segment"](model, {"image": plain})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    shown = method(preprocess=other).model_images({"image": images}, None)["image"]
    np.testing.assert_allclose(shown[:, 0], plain, atol=1e-5)


def test_the_evaluator_takes_it():
    made = method(num_classes=8)
    model, _ = init(made)
    data = {"name": "scenes", "split": "val", "size": 3, "image_size": 40}
    evaluator = make_evaluator(
        "segmentation", made.predict_fns(), PREPROCESS, meshes.make_mesh(), data=data
    )
    values = dict(evaluator.run(model))
    assert 0 <= values["mean_iou"] <= 1 and values["num_classes_present"] > 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 0}, "num_classes must be 1 or more"),
        ({"ema_decay": 1.0}, r"ema_decay=1.0 must be in \[0, 1\)"),
        ({"augment": {"total_steps": 0}}, "total_steps=0"),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        method(**arguments)


def test_bad_towers_and_heads_fail_when_they_are_initialised():
    with pytest.raises(ValueError, match="output_stride=4; choose 8 or 16"):
        made = method(model={"width": 32, "layers": 1, "heads": 2, "output_stride": 4})
        jax.eval_shape(made.init, jax.random.key(0))
    with pytest.raises(TypeError, match="atrous"):
        jax.eval_shape(method(head={"atrous": (1,)}).init, jax.random.key(0))
