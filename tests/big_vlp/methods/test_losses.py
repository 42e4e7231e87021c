"""Losses against plain loops in float64, and their symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import losses

SCALE = 9.0


def units(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cross_entropy(logits):
    """Mean over rows of -log softmax at the diagonal."""
    total = 0.0
    for i, row in enumerate(np.asarray(logits, np.float64)):
        total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[i]
    return total / len(logits)


def info_nce(x, y, scale):
    logits = scale * np.float64(x) @ np.float64(y).T
    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def test_info_nce_of_every_pair_of_views():
    x, y = units(5, 3, 8), units(5, 2, 8, seed=1)
    found = jax.jit(losses.info_nce_pairs)(x, y, SCALE)
    assert found.shape == (3, 2)
    for v, w in np.ndindex(3, 2):
        expected = info_nce(x[:, v], y[:, w], SCALE)
        np.testing.assert_allclose(found[v, w], expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(losses.info_nce_pairs)(y, x, SCALE), found.T, rtol=1e-6)


@pytest.mark.parametrize("logits", [1, 7, 24, 1000])
def test_row_blocks_do_not_matter(monkeypatch, logits):
    """Blocks of one row, of some, of all: the same losses and gradients as in dense form."""
    x, y = units(6, 3, 8), units(6, 2, 8, seed=1)
    weights = np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32)

    def dense(x, y, scale):
        logits = scale * jnp.einsum("bvd,cwd->vwbc", x, y)
        positives = jnp.diagonal(logits, axis1=2, axis2=3)
        both = jax.nn.logsumexp(logits, axis=3) + jax.nn.logsumexp(logits, axis=2)
        return jnp.mean(both / 2 - positives, axis=-1)

    def of(pairs):
        loss = lambda *args: jnp.sum(weights * pairs(*args))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(x, y, SCALE)

    monkeypatch.setattr(losses, "BLOCK_LOGITS", logits)
    for found, expected in zip(
        jax.tree.leaves(of(losses.info_nce_pairs)), jax.tree.leaves(of(dense))
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_softmax_loss():
    image, text = units(6, 8), units(6, 8, seed=1)
    expected = info_nce(image, text, SCALE)
    np.testing.assert_allclose(
        jax.jit(losses.softmax_loss)(image, text, SCALE), expected, rtol=1e-5
    )
    np.testing.assert_allclose(
        jax.jit(losses.softmax_loss)(text, image, SCALE), expected, rtol=1e-5
    )


def test_sigmoid_loss():
    image, text, bias = units(6, 8), units(6, 8, seed=1), -3.0
    expected = 0.0
    for i, t in np.ndindex(6, 6):
        logit = SCALE * np.float64(image[i]) @ text[t] + bias
        expected += np.log1p(np.exp(-logit if i == t else logit)) / 6
    np.testing.assert_allclose(
        jax.jit(losses.sigmoid_loss)(image, text, SCALE, bias), expected, rtol=1e-5
    )
    np.testing.assert_allclose(
        jax.jit(losses.sigmoid_loss)(text, image, SCALE, bias), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    "loss",
    [losses.softmax_loss, lambda *x: losses.sigmoid_loss(*x, -3.0)],
    ids=["softmax", "sigmoid"],
)
def test_the_right_pairs_are_the_minimum(loss):
    image, loss = units(6, 8), jax.jit(loss)
    matched = loss(image, image, SCALE)
    assert matched < loss(image, np.roll(image, 1, axis=0), SCALE)
    # The order of the batch is of no consequence, as long as both sides share it.
    order = np.random.default_rng(0).permutation(6)
    text = units(6, 8, seed=1)
    np.testing.assert_allclose(
        loss(image[order], text[order], SCALE), loss(image, text, SCALE), rtol=1e-5
    )


def cosmos_features(views, captions):
    """Other numbers of views than of captions, so that a wrong mean shows."""
    student = {
        name: units(5, count, 8, seed=seed)
        for seed, (name, count) in enumerate(
            {"image": views, "cross_image": views, "text": captions, "cross_text": captions}.items()
        )
    }
    return student, {"image": units(5, 2, 8, seed=8), "text": units(5, 2, 8, seed=9)}


def test_cosmos_losses():
    student, teacher = cosmos_features(views=5, captions=3)
    loss, terms = jax.jit(losses.cosmos_losses, static_argnames="num_global")(
        student, teacher, SCALE, 4.0, num_global=2
    )
    clip = np.mean(
        [info_nce(student["image"][:, v], student["text"][:, c], SCALE)
         for v in range(2) for c in range(3)]
    )  # fmt: skip
    quadrants = [
        np.mean(
            [info_nce(student[s][:, v], teacher[t][:, w], 4.0)
             for v in range(student[s].shape[1]) for w in range(2)]
        )
        for s in ("cross_image", "cross_text")
        for t in ("image", "text")
    ]  # fmt: skip
    np.testing.assert_allclose(terms["clip"], clip, rtol=1e-5)
    np.testing.assert_allclose(terms["distill"], np.mean(quadrants), rtol=1e-5)
    np.testing.assert_allclose(loss, clip + np.mean(quadrants), rtol=1e-5)
    shapes = {name: pairs.shape for name, pairs in terms["pairs"].items()}
    assert shapes == {
        "clip": (2, 3),
        "image_to_teacher_image": (5, 2),
        "image_to_teacher_text": (5, 2),
        "text_to_teacher_image": (3, 2),
        "text_to_teacher_text": (3, 2),
    }


def test_local_crops_take_no_part_in_the_clip_term():
    student, teacher = cosmos_features(views=5, captions=3)

    def clip_loss(image):
        return losses.cosmos_losses({**student, "image": image}, teacher, SCALE, 4.0, 2)[1]["clip"]

    gradient = jax.jit(jax.grad(clip_loss))(student["image"])
    assert (np.abs(gradient).max(axis=(0, 2)) > 0).tolist() == [True] * 2 + [False] * 3


def test_gradients_stay_finite_at_the_largest_temperature():
    student, teacher = cosmos_features(views=2, captions=2)
    student["cross_text"] = student["text"] = student["image"]  # saturated: logits of 100

    def loss(student, scale):
        return losses.cosmos_losses(student, teacher, scale, scale, 2)[0]

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(student, jnp.float32(100))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))

    def sigmoid(image, scale, bias):
        return losses.sigmoid_loss(image, student["text"][:, 0], scale, bias)

    gradients = jax.jit(jax.grad(sigmoid, argnums=(0, 1, 2)))(student["image"][:, 0], 1e3, -1e3)
    assert all(np.isfinite(g).all() for g in gradients)
