"""CogVLM's method: loss of answers only, equal executions, frozen parts, a run of the loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import losses, step, trees
from big_vlp.methods import make_method
from big_vlp.models.layout import LANGUAGE, PADDING, VISION
from big_vlp.optim import Optimizer
from big_vlp.preprocess import Preprocess

PREPROCESS = Preprocess(image_size=16, resize="squash", tokenizer="llama:scenes", context_length=7)
MODEL = {
    "image": {
        "image_size": 16,
        "patch_size": 8,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "mlp_dim": 24,
    },
    "text": {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "mlp_dim": 24},
    "adapter_mlp_dim": 24,
}
ROWS, SLOTS, TEXT = 4, 6, 7
# As in pretraining: experts and adapter learn.
EXPERTS = (
    (r"language/(?!blocks/vision).*|vision/.*", 0.0, 0.0),
    (r"language/blocks/vision/.*|adapter/.*", 1.0, 0.0),
)


def make(**changes):
    return make_method(
        "cogvlm", preprocess=PREPROCESS, **{"model": MODEL, "dtype": "float32", **changes}
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    types = np.full((ROWS, 1 + SLOTS + TEXT), LANGUAGE, np.int32)
    types[:, 1 : 1 + SLOTS] = VISION
    tokens = rng.integers(3, 40, types.shape, dtype=np.int32)
    loss_mask = np.zeros(types.shape, bool)
    for row, (start, stop) in enumerate([(0, 7), (2, 7), (3, 5), (6, 7)]):
        loss_mask[row, 1 + SLOTS + start : 1 + SLOTS + stop] = True
        tokens[row, 1 + SLOTS + stop :], types[row, 1 + SLOTS + stop :] = 0, PADDING
    images = rng.integers(0, 256, (ROWS, 1, 16, 16, 3), dtype=np.uint8)
    return {"images": images, "tokens": tokens, "token_types": types, "loss_mask": loss_mask}


@pytest.fixture(scope="module")
def model():
    """All values different from zero, so that boi and eoi matter."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(make().init, jax.random.key(0))[0]
    return jax.tree.map(lambda x: rng.normal(0.05, 0.3, x.shape).astype(np.float32), shapes)


def loss_of(method, model, batch):
    def loss(model):
        return method.loss(model, {}, {}, {}, batch, rng=None, step=0)[0]

    return jax.jit(jax.value_and_grad(loss))(model)


def test_the_loss_is_the_mean_over_answer_tokens(model, batch):
    method = make()
    cogvlm = method.cogvlm
    images = (batch["images"] / np.float32(255) - PREPROCESS.mean) / PREPROCESS.std
    logits = cogvlm.apply(
        {"params": model}, jnp.float32(images), batch["tokens"], batch["token_types"]
    )
    log_p = jax.nn.log_softmax(logits[:, :-1])
    chosen = np.take_along_axis(np.asarray(log_p), batch["tokens"][:, 1:, None], axis=-1)[..., 0]
    expected = -chosen[batch["loss_mask"][:, 1:]].mean()
    loss, _ = loss_of(method, model, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    sums, counts = method.predict_fns()["token_losses"](model, batch)
    np.testing.assert_array_equal(counts, batch["loss_mask"].sum(axis=1))
    np.testing.assert_allclose(sums.sum() / counts.sum(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "general"},
        {"accumulate_steps": 2},
        {"unroll": False, "remat": "full", "accumulate_steps": 4},
    ],
)
def test_layout_and_execution_change_nothing(model, batch, changes):
    loss, grads = loss_of(make(unroll=True), model, batch)
    found, found_grads = loss_of(make(**{"unroll": True, **changes}), model, batch)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    for path, value in trees.flatten(grads).items():
        np.testing.assert_allclose(
            trees.flatten(found_grads)[path], value, rtol=1e-3, atol=1e-5 * largest, err_msg=path
        )


def test_what_is_frozen_costs_neither_gradient_nor_moments(batch):
    """A step moves experts and adapter only, and has no backward pass through the image tower."""
    method = make(ema_momentum=0.5)
    optimizer = Optimizer(
        1e-2, total_steps=5, warmup_steps=0, weight_decay=0.0, beta2=0.95, rules=EXPERTS
    )
    state = jax.jit(step.make_init(method, optimizer))(jax.random.key(0))
    assert {p.split("/")[0] for p in trees.flatten(state["frozen"])} == {"language", "vision"}
    learnt = trees.flatten(state["model"])
    assert trees.flatten(state["averaged"]).keys() == learnt.keys()
    assert all(p.startswith(("adapter/", "language/blocks/vision/")) for p in learnt)
    train_step = step.make_train_step(method, optimizer)
    new, metrics = jax.jit(train_step)(state, batch, 0, jax.random.key(1))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    moved = trees.flatten(new["model"])
    assert any((moved[p] != learnt[p]).any() for p in learnt)
    jax.tree.map(np.testing.assert_array_equal, new["frozen"], state["frozen"])

    def flops(rules):
        optimizer = Optimizer(1e-2, 5, 0, 0.0, rules=rules)
        method = make(unroll=True)
        state = jax.eval_shape(step.make_init(method, optimizer), jax.random.key(0))
        lowered = jax.jit(step.make_train_step(method, optimizer)).lower(
            state, batch, 0, jax.random.key(0)
        )
        return lowered.cost_analysis()["flops"]

    assert flops(EXPERTS) < 0.8 * flops(((".*", 1.0, 0.0),))


def test_next_tokens_counts_what_the_mask_marks():
    rng = np.random.default_rng(2)
    logits, tokens = rng.normal(size=(2, 3, 5)), rng.integers(0, 5, (2, 3))
    mask = np.array([[True, False, True], [False, False, False]])
    sums, counts = losses.next_tokens(jnp.asarray(logits), jnp.asarray(tokens), mask)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(log_p[0, 0, tokens[0, 0]] + log_p[0, 2, tokens[0, 2]])
    np.testing.assert_allclose(sums, [expected, 0], rtol=1e-5)
    np.testing.assert_array_equal(counts, [2, 0])


@pytest.mark.parametrize(
    "changes, message",
    [({"layout": "dynamic"}, "layout='dynamic'"), ({"ema_momentum": 0.0}, "ema_momentum=0.0")],
)
def test_arguments_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_methods_are_values():
    assert make() == dataclasses.replace(make(), unroll=False)
