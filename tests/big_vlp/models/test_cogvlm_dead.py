"""What CogVLM's method calls dead is exactly what gets no gradient, and it stays as it is."""

import jax
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from tests.big_vlp.methods.toy_cogvlm_method import (
    EXPERTS,
    MODEL,
    TEXT,
    TEXT_ONLY,
    compiled_loss,
    fast_jit,
    make,
    make_batch,
    make_model,
)

GROUPED = {**MODEL, "text": {**TEXT, "kv_heads": 1}, "expert_qkv_bias": True}
BLOCK = "language/blocks/vision"
MLP = {f"{BLOCK}/mlp/{name}/kernel" for name in ("gate", "up", "down")}
OUT = {f"{BLOCK}/attn/out/kernel"}


@pytest.fixture(scope="module")
def batch():
    return make_batch()


def is_checked(path):
    """Embeddings get gradients by the words of the batch, and a tower's key biases none at all."""
    return path.startswith(("language/", "adapter/")) and "token_embedding" not in path


@pytest.mark.parametrize(
    "model, paths",
    [
        (
            {**MODEL, "expert_qkv_bias": True, "image_mask": "full"},
            {f"{BLOCK}/attn/qkv/{name}" for name in ("kernel", "bias")} | OUT | MLP,
        ),
        (GROUPED, {f"{BLOCK}/attn/query/{name}" for name in ("kernel", "bias")} | OUT | MLP),
        ({**MODEL, "expert_parts": ("qkv", "mlp")}, {f"{BLOCK}/attn/qkv/kernel"} | MLP),
        ({**MODEL, "expert_every": 2}, set()),
        ({**MODEL, "expert_parts": ()}, set()),
    ],
    ids=["mha, bias, full mask", "gqa, bias", "qkv, mlp", "every second", "none"],
)
def test_exactly_the_dead_entries_get_no_gradient(batch, model, paths):
    method = make(model=model)
    dead = method.dead_parameters()
    assert dead.keys() == paths
    _, grads = compiled_loss(method, is_checked)(make_model(method), batch)
    for path, grad in trees.flatten(grads).items():
        expected = np.zeros(grad.shape, bool)
        if path in dead:
            expected[dead[path]] = True
        np.testing.assert_array_equal(np.asarray(grad) == 0, expected, err_msg=path)


def test_predicting_the_image_leaves_nothing_dead(batch):
    method = make(model=GROUPED, image_loss=0.5)
    assert method.dead_parameters() == {}
    _, grads = compiled_loss(method, lambda path: is_checked(path) or "head" in path)(
        make_model(method), batch
    )
    assert all(np.asarray(grad).all() for grad in jax.tree.leaves(grads))


def test_a_language_model_has_nothing_dead():
    assert make(TEXT_ONLY, model={"text": TEXT, "expert_parts": ()}).dead_parameters() == {}


@pytest.mark.parametrize("model", [MODEL, GROUPED], ids=["mha", "gqa, bias"])
def test_weight_decay_leaves_the_dead_alone(batch, model):
    """A step later they have the same bits, and every other entry has moved."""
    method = make(model=model)
    dead = method.dead_parameters()
    rules = (EXPERTS[0], (*EXPERTS[1][:2], 1.0))
    optimizer = make_optimizer(
        learning_rate=1e-2, total_steps=5, warmup_steps=0, weight_decay=0.5, rules=rules, dead=dead
    )
    model = make_model(method)
    trainable, frozen = trees.split(model, optimizer.is_trainable(model))
    moments = optimizer.init(trainable)
    opt = {"moments": moments, "bad_steps": {"count": np.int32(0), "first": np.int32(-1)}}
    state = {"model": trainable, "averaged": {}, "frozen": frozen, "opt": opt}
    new, _ = fast_jit(step.make_train_step(method, optimizer))(state, batch, 0, jax.random.key(0))
    before, after = trees.flatten(trainable), trees.flatten(new["model"])
    assert dead.keys() <= before.keys() == after.keys()
    for path, value in before.items():
        same = np.asarray(after[path]) == value
        expected = np.zeros(value.shape, bool)
        if path in dead:
            expected[dead[path]] = True
        np.testing.assert_array_equal(same, expected, err_msg=path)
    described = optimizer.describe(model)
    assert {path for path, text in described.items() if "no gradient" in text} == dead.keys()
