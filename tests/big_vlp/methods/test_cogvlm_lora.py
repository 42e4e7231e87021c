"""LoRA through CogVLM's method: it starts at the given model, learns factors, writes merged."""

import jax
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.models.lora import Lora
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from tests.big_vlp.methods.toy_cogvlm_method import (
    compiled_loss,
    fast_jit,
    make,
    make_batch,
    make_model,
    written,
)

SECTION = {"kernels": (r"language/.*", r"adapter/.*"), "rank": 2, "alpha": 3.0}
RULES = ((".*/lora_[ab]", 1.0, 0.0), ("(?!.*/lora_[ab]).*", 0.0, 0.0))


@pytest.fixture(scope="module")
def batch():
    return make_batch()


def is_factor(path):
    return path.endswith(("/lora_a", "/lora_b"))


@pytest.mark.slow
def test_training_begins_at_the_given_model(batch):
    """Same weights, same bits of the loss; and a step moves the factors alone."""
    method, key = make(lora=SECTION, ema_decay=0.5), jax.random.key(0)
    optimizer = make_optimizer(
        learning_rate=1e-2,
        total_steps=5,
        warmup_steps=0,
        weight_decay=0.0,
        rules=RULES,
        dead=method.dead_parameters(),
    )
    state = fast_jit(step.make_init(method, optimizer))(key)
    factors, frozen = trees.flatten(state["model"]), trees.flatten(state["frozen"])
    assert factors and all(map(is_factor, factors)) and not any(map(is_factor, frozen))
    assert trees.flatten(state["averaged"]).keys() == factors.keys()
    base = fast_jit(make().init)(key)[0]
    jax.tree.map(np.testing.assert_array_equal, state["frozen"], base)
    whole = trees.merge(state["model"], state["frozen"])
    loss = compiled_loss(method)(whole, batch)
    np.testing.assert_array_equal(loss, compiled_loss(make())(base, batch))
    new, metrics = fast_jit(step.make_train_step(method, optimizer))(state, batch, 0, key)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, new["frozen"], state["frozen"])
    moved = trees.flatten(new["model"])
    assert all((moved[p] != x).any() for p, x in factors.items() if p.endswith("lora_b"))


def test_what_it_writes_is_that_of_active_factors(batch):
    method = make(lora=SECTION, max_new_tokens=3)
    model = make_model(method)
    found = fast_jit(method.predict_fns()["generate"])(model, batch)
    expected = written(method, model, batch, 3, Lora(**SECTION))
    np.testing.assert_array_equal(found, expected)
    plain = trees.split(model, lambda path: not is_factor(path))[0]
    assert (written(method, plain, batch, 3) != expected).any()
    # The merged model is one of the method without LoRA, with the same losses.
    merged = fast_jit(method.merged)(model)
    assert trees.differences(plain, merged) == []
    losses, counts = fast_jit(make().predict_fns()["token_losses"])(merged, batch)
    loss = compiled_loss(method)(model, batch)
    np.testing.assert_allclose(losses.sum() / counts.sum(), loss, rtol=1e-4)
    own, _ = fast_jit(method.predict_fns()["token_losses"])(model, batch)
    np.testing.assert_allclose(own, losses, rtol=1e-4)


def test_without_lora_nothing_is_merged(batch):
    model = {"a": np.ones(1)}
    assert make().merged(model) is model


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rank": 0}, "rank of at least 1"),
        ({"kernels": ("langauge/.*",)}, "matches no dense kernel"),
    ],
)
def test_sections_that_cannot_be(changes, message):
    method = make(lora={**SECTION, **changes})
    with pytest.raises(ValueError, match=message):
        _ = method.shapes
