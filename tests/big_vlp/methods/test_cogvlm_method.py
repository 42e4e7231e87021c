"""CogVLM's method: loss, equal executions, what is frozen, averages, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import losses, trees
from big_vlp.run import step
from big_vlp.run.optim import Optimizer
from tests.big_vlp.methods.toy_cogvlm_method import (
    EXPERTS,
    MODEL,
    PREPROCESS,
    TEXT,
    TEXT_ONLY,
    compiled_loss,
    fast_jit,
    loss_and_gradients,
    make,
    make_batch,
    make_model,
    mean_loss,
)

EVERYTHING = ((".*", 1.0, 1.0),)
LANGUAGE_MODEL = {"text": TEXT, "expert_parts": ()}
DROPOUT = {**MODEL, "text": {**TEXT, "dropout": 0.3}}


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def model():
    return make_model(make())


def close_gradients(found, expected):
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected))
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-3, atol=1e-5 * largest, err_msg=path)


def is_adapters(path):
    return path.startswith("adapter/")


def started(method, rules, **options):
    """(optimizer, state of step 0)."""
    options = {"total_steps": 5, "warmup_steps": 0, "weight_decay": 0.0, **options}
    optimizer = Optimizer(1e-2, rules=rules, **options)
    init = fast_jit(step.make_init(method, optimizer))
    return optimizer, init(jax.random.key(0, impl="unsafe_rbg"))


def test_the_loss_is_the_mean_over_answer_tokens(model, batch):
    method = make()
    expected = mean_loss(method, model, batch)
    loss, _ = loss_and_gradients(method, model, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    sums, counts = method.predict_fns()["token_losses"](model, batch)
    np.testing.assert_array_equal(counts, batch["loss_mask"].sum(axis=1))
    np.testing.assert_allclose(sums.sum() / counts.sum(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"layout": "general"}, {"unroll": False, "remat": "full", "accumulate_steps": 4}],
)
def test_layout_and_execution_change_nothing(model, batch, changes):
    loss, grads = loss_and_gradients(make(unroll=True), model, batch)
    found, found_grads = loss_and_gradients(make(**{"unroll": True, **changes}), model, batch)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    close_gradients(found_grads, grads)


@pytest.mark.parametrize("layout", ["static", pytest.param("general", marks=pytest.mark.slow)])
def test_a_language_model_learns_all_of_its_text(layout):
    """A step of training, in which the first word is predicted from bos."""
    method = make(TEXT_ONLY, model=LANGUAGE_MODEL, layout=layout)
    batch = make_batch(slots=0)
    optimizer, state = started(method, EVERYTHING)
    paths = set(trees.flatten(state["model"]))
    assert not any("vision" in path or "adapter" in path for path in paths)
    expected = mean_loss(method, state["model"], batch)
    train_step = fast_jit(step.make_train_step(method, optimizer))
    new, metrics = train_step(state, batch, 0, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert metrics["answer_tokens"] == batch["loss_mask"].sum() / len(batch["tokens"])
    assert train_step(new, batch, 1, jax.random.key(1))[1]["loss"] < expected
    # Position 1 alone gives the loss of the first word.
    first = {**batch, "loss_mask": np.zeros_like(batch["loss_mask"])}
    first["loss_mask"][:, 1] = True
    model = jax.tree.map(np.asarray, state["model"])
    found, grads = loss_and_gradients(method, model, first)
    np.testing.assert_allclose(found, mean_loss(method, model, first), rtol=1e-5)
    table = np.asarray(grads["language"]["token_embedding"]["embedding"])
    bos = batch["tokens"][:, 0]
    assert table[bos].any() and not np.delete(table, bos, axis=0).any()


def test_what_is_frozen_costs_neither_gradient_nor_moments(batch):
    """A step moves experts and adapter only, and has no backward pass through the image tower."""
    method = make(ema_decay=0.5)
    optimizer, state = started(method, EXPERTS, beta2=0.95)
    assert {p.split("/")[0] for p in trees.flatten(state["frozen"])} == {"language", "vision"}
    learnt = trees.flatten(state["model"])
    assert trees.flatten(state["averaged"]).keys() == learnt.keys()
    assert all(p.startswith(("adapter/", "language/blocks/vision/")) for p in learnt)
    train_step = step.make_train_step(method, optimizer)
    new, metrics = fast_jit(train_step)(state, batch, 0, jax.random.key(1))
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

    assert flops(EXPERTS) < 0.8 * flops(EVERYTHING)


def test_frozen_kernels_in_half_precision_give_the_same_bits(model, batch):
    """What modules would cast anyway is kept cast; the rest, and what is trained, is fp32."""
    method = make(dtype="bfloat16")
    optimizer, state = started(method, EXPERTS)
    frozen = trees.flatten(state["frozen"])
    half = {path for path, x in frozen.items() if x.dtype == jnp.bfloat16}
    assert half == {p for p in frozen if p.endswith(("/kernel", "/embedding"))} != set(frozen)
    assert {frozen[p].dtype.name for p in frozen.keys() - half} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(state["model"])} == {"float32"}
    trainable, whole = trees.split(model, optimizer.is_trainable(model))
    cast = {k: x.astype(frozen[k].dtype) for k, x in trees.flatten(whole).items()}

    def run(trainable, frozen):
        def loss(trainable):
            key = jax.random.key(0)
            return method.loss(trainable, frozen, {}, {}, batch, rng=key, step=0)[0]

        return fast_jit(jax.value_and_grad(loss))(trainable)

    expected, found = run(trainable, whole), run(trainable, trees.unflatten(cast))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    shapes = jax.eval_shape(step.make_init(make(), optimizer), jax.random.key(0))
    assert {x.dtype.name for x in jax.tree.leaves(shapes["frozen"])} == {"float32"}


@pytest.mark.parametrize(
    "done, share", [(0, 2 / 11), (1, 3 / 12), (40, 42 / 51), (100, 0.9), (10**6, 0.9)]
)
def test_the_average_warms_up(done, share):
    """`done` updates came before; the average is that of what is trained."""
    method = make(ema_decay=0.9)
    rng = np.random.default_rng(0)
    old, new, averaged = ({"a": {"kernel": rng.normal(size=3)}} for _ in range(3))
    model, found = method.after_update(old, new, averaged, jnp.int32(done))
    expected = share * averaged["a"]["kernel"] + (1 - share) * new["a"]["kernel"]
    np.testing.assert_allclose(found["a"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_array_equal(model["a"]["kernel"], new["a"]["kernel"])
    assert make().after_update(old, new, {}, done)[1] == {}


@pytest.fixture(scope="module")
def dropout_loss():
    return compiled_loss(make(model=DROPOUT))


def test_dropout_acts_in_training_only(model, batch, dropout_loss):
    plain = float(compiled_loss(make())(model, batch))
    one, again, other = (float(dropout_loss(model, batch, seed)) for seed in (1, 1, 2))
    assert one == again and len({one, other, plain}) == 3
    found, expected = (
        fast_jit(method.predict_fns()["token_losses"])(model, batch)
        for method in (make(model=DROPOUT), make())
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_micro_batches_drop_what_the_whole_batch_drops(model, batch):
    def run(**changes):
        return loss_and_gradients(make(model=DROPOUT, **changes), model, batch, is_adapters)

    (loss, grads), (found, found_grads) = run(), run(accumulate_steps=2)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    close_gradients(found_grads, grads)


def test_a_row_draws_by_its_place_and_for_itself(model, batch, dropout_loss):
    def loss_of(row, rows):
        mask = rows["loss_mask"] & (np.arange(4) == row)[:, None]
        return float(dropout_loss(model, {**rows, "loss_mask": mask}))

    other = {**batch, "tokens": batch["tokens"].copy()}
    other["tokens"][0] = np.where(other["tokens"][0], 5, 0)
    assert loss_of(1, batch) == pytest.approx(loss_of(1, other), rel=1e-6)
    same = {name: np.repeat(x[:1], 4, axis=0) for name, x in batch.items()}
    assert abs(loss_of(0, same) - loss_of(1, same)) > 1e-4


def test_next_tokens_counts_what_the_mask_marks():
    rng = np.random.default_rng(2)
    logits, tokens = rng.normal(size=(2, 3, 5)), rng.integers(0, 5, (2, 3))
    mask = np.array([[True, False, True], [False, False, False]])
    sums, counts = losses.next_tokens(jnp.asarray(logits), lambda _, x: x, {}, tokens, mask)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(log_p[0, 0, tokens[0, 0]] + log_p[0, 2, tokens[0, 2]])
    np.testing.assert_allclose(sums, [expected, 0], rtol=1e-5)
    np.testing.assert_array_equal(counts, [2, 0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layout": "dynamic"}, "layout='dynamic'"),
        ({"ema_decay": 1.0}, r"ema_decay=1.0 must be in \[0, 1\)"),
        ({"ema_decay": -0.1}, r"ema_decay=-0.1 must be in"),
        ({"image_loss": -1.0}, "image_loss=-1.0 must be 0 or more"),
        ({"image_loss": 0.5, "layout": "general"}, "needs an image tower and layout='static'"),
        (
            {"preprocess": dataclasses.replace(PREPROCESS, image_token_size=4)},
            "image_token_size=4 must be 8",
        ),
        ({"preprocess": TEXT_ONLY}, "image_token_size=None must be 8"),
        ({"model": LANGUAGE_MODEL}, "image_token_size=8"),  # and nothing to see images with
        (
            {"model": {**MODEL, "image": {**MODEL["image"], "downsample": True}}},
            "image_token_size=8 must be 16",
        ),
        ({"model": {**MODEL, "tower": "resnet"}}, "Unknown tower 'resnet'; choose one of"),
        ({"model": {**MODEL, "adapter_mlp_dim": None}}, "give adapter_mlp_dim"),
    ],
)
def test_arguments_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_methods_are_values():
    assert make() == dataclasses.replace(make(), unroll=False)
