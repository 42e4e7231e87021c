"""The ablation in which image tokens predict the next one, against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import losses, trees
from tests.big_vlp.methods.toy_cogvlm_method import (
    MODEL,
    PREPROCESS,
    SLOTS,
    TEXT_ONLY,
    compiled_loss,
    fast_jit,
    make,
    make_batch,
    make_model,
    mean_loss,
)

WEIGHT = 0.3
IMAGE_MODEL = {**MODEL, "image": {**MODEL["image"], "width": 12}}  # other than the text's


@pytest.fixture(scope="module")
def method():
    return make(model=IMAGE_MODEL, image_loss=WEIGHT)


@pytest.fixture(scope="module")
def model(method):
    return make_model(method)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


def pixels(batch):
    return jnp.float32((batch["images"] / 255.0 - PREPROCESS.mean) / PREPROCESS.std)


def image_tokens(method, model, batch):
    """The tower's tokens f32[B, N, W]."""
    variables = {"params": model}
    return method.network.apply(variables, pixels(batch), method="image_tokens")[:, 0]


def states(method, model, batch):
    """The language model's f32[B, T, D]."""
    variables = {"params": model}
    features = method.network.apply(variables, pixels(batch), method="encode_images")
    rows = batch["tokens"], batch["token_types"]
    return method.network.apply(variables, *rows, features, method="hidden")[0]


def test_loss_by_its_formula(method, model, batch):
    """boi predicts the first token, the last but one predicts the last."""
    hidden, targets = fast_jit(
        lambda m: (states(method, m, batch), image_tokens(method, m, batch))
    )(model)
    hidden, targets = np.asarray(hidden), np.asarray(targets)
    kernel = model["feature_head"]["kernel"]
    assert kernel.shape == (16, 12) and targets.shape == (4, SLOTS - 2, 12)
    distances = []
    for row in range(4):
        for i in range(SLOTS - 2):
            x, y = hidden[row, 1 + i] @ kernel, targets[row, i]
            distances.append(1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    text_loss, image_loss = mean_loss(method, model, batch), WEIGHT * np.mean(distances)
    rng = jax.random.key(0)
    loss, (_, metrics) = fast_jit(
        lambda model: method.loss(model, {}, {}, {}, batch, rng=rng, step=0)
    )(model)
    np.testing.assert_allclose(metrics["text_loss"], text_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["image_loss"], image_loss, rtol=1e-4)
    np.testing.assert_allclose(loss, text_loss + image_loss, rtol=1e-5)
    parts = make(model=IMAGE_MODEL, image_loss=WEIGHT, accumulate_steps=2)
    np.testing.assert_allclose(compiled_loss(parts)(model, batch), loss, rtol=1e-5)
    # Evaluation counts text alone.
    sums, counts = fast_jit(method.predict_fns()["token_losses"])(model, batch)
    np.testing.assert_allclose(sums.sum() / counts.sum(), text_loss, rtol=1e-5)


def test_a_tower_that_trains_does_not_move_its_targets(method, model, batch):
    """The gradient is that of given targets, also to what they were made by."""
    nothing = {**batch, "loss_mask": np.zeros_like(batch["loss_mask"])}
    is_vision = lambda path: path.startswith("vision/")  # noqa: E731
    _, found = compiled_loss(method, is_vision)(model, nothing)
    vision, rest = trees.split(model, is_vision)
    fixed = fast_jit(lambda m: image_tokens(method, m, batch))(model)

    def loss(vision, targets=None):
        model = trees.merge(vision, rest)
        if targets is None:
            targets = image_tokens(method, model, batch)
        hidden = states(method, model, batch)[:, 1 : SLOTS - 1]
        predicted = hidden @ model["feature_head"]["kernel"]
        return WEIGHT * (1 - losses.cosine(predicted, targets)).mean()

    expected = trees.flatten(fast_jit(jax.grad(loss))(vision, fixed))
    moving = trees.flatten(fast_jit(jax.grad(loss))(vision))
    found = trees.flatten(found)
    largest = max(np.abs(g).max() for g in expected.values())
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, atol=1e-4 * largest, err_msg=path)
    assert max(np.abs(moving[p] - expected[p]).max() for p in expected) > 0.1 * largest


def test_cosine():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 3))
    expected = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    found = losses.cosine(jnp.bfloat16(x), jnp.bfloat16(y))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.02)
    np.testing.assert_allclose(losses.cosine(jnp.asarray(x), jnp.asarray(y)), expected, rtol=1e-5)
    assert losses.cosine(jnp.zeros(3), jnp.ones(3)) == 0


def test_it_needs_an_image():
    with pytest.raises(ValueError, match="image_loss"):
        make(TEXT_ONLY, model={"text": MODEL["text"]}, image_loss=0.5).init(jax.random.key(0))
