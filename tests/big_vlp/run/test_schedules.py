"""Learning rates of each schedule, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.run.optim import make_optimizer
from big_vlp.run.optim.schedules import SCHEDULES


def optimizer(**changes):
    options = {"learning_rate": 0.1, "total_steps": 10, "warmup_steps": 2, "weight_decay": 0.3}
    return make_optimizer(**{**options, **changes})


def test_schedule():
    made = optimizer(learning_rate=2.0, total_steps=10, warmup_steps=4)
    found = [float(made.schedule(step)) for step in range(11)]
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    np.testing.assert_allclose(found[4:], [1 + np.cos(np.pi * i / 6) for i in range(7)], atol=1e-6)
    assert found[10] == pytest.approx(0, abs=1e-6)
    traced = jax.jit(made.schedule)(jnp.arange(11))
    np.testing.assert_allclose(traced, found, rtol=1e-6, atol=1e-6)
    assert traced.dtype == jnp.float32


def test_schedule_ends_at_the_final_learning_rate():
    made = optimizer(learning_rate=2.0, final_learning_rate=0.5, total_steps=10, warmup_steps=4)
    assert float(made.schedule(3)) == float(made.schedule(4)) == 2.0
    assert float(made.schedule(7)) == pytest.approx(1.25)
    assert float(made.schedule(10)) == pytest.approx(0.5)


def test_schedule_without_warm_up_and_without_decay():
    assert optimizer(warmup_steps=0).schedule(0) == pytest.approx(0.1)
    constant = optimizer(warmup_steps=10)
    assert constant.schedule(9) == pytest.approx(0.1)


def test_a_warm_up_that_starts_above_zero():
    """corenet's: step i of n at first + (peak - first) i / n."""
    made = optimizer(learning_rate=2.0, initial_learning_rate=1.0, total_steps=10, warmup_steps=4)
    assert [float(made.schedule(step)) for step in range(5)] == [1.0, 1.25, 1.5, 1.75, 2.0]
    later = optimizer(learning_rate=2.0, total_steps=10, warmup_steps=4)
    assert [made.schedule(i) for i in range(4, 11)] == [later.schedule(i) for i in range(4, 11)]


def test_a_learning_rate_that_changes_once_an_epoch():
    made = optimizer(
        learning_rate=2.0, final_learning_rate=1.0, total_steps=12, warmup_steps=2, epoch_steps=3
    )
    found = [float(made.schedule(step)) for step in range(12)]
    epochs = [1.5 + np.cos(np.pi * epoch / 4) / 2 for epoch in range(4)]
    np.testing.assert_allclose(found[:2], [1.0, 2.0])
    np.testing.assert_allclose(found[2:], np.repeat(epochs, 3)[2:], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(made.schedule)(jnp.arange(12)), found, rtol=1e-6)


def test_first_steps_that_are_held_back():
    made = optimizer(learning_rate=2.0, total_steps=10, warmup_steps=2, hold_steps=4)
    plain = optimizer(learning_rate=2.0, total_steps=10, warmup_steps=2)
    np.testing.assert_allclose([made.schedule(i) for i in range(4)], 0.1, rtol=1e-6)
    assert [made.schedule(i) for i in range(4, 10)] == [plain.schedule(i) for i in range(4, 10)]


@pytest.mark.parametrize("change", [{"hold_steps": -1}, {"epoch_steps": 0}])
def test_schedules_are_checked(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.* or more"):
        optimizer(**change)


@pytest.mark.parametrize("warmup_steps", [-1, 11])
def test_warm_up_must_fit(warmup_steps):
    with pytest.raises(ValueError, match=rf"warmup_steps \({warmup_steps}\).*total_steps \(10\)"):
        optimizer(warmup_steps=warmup_steps)


KEYS = {"rsqrt": {"cooldown_steps": 8, "timescale": 3}, "wsd": {"cooldown_steps": 8}}


@pytest.mark.parametrize("name", SCHEDULES)
def test_all_warm_up_and_hold_alike(name):
    shared = {"learning_rate": 2.0, "total_steps": 20, "warmup_steps": 5, "schedule": name}
    shared |= KEYS.get(name, {})
    made = optimizer(**shared).schedule
    np.testing.assert_allclose([made(i) for i in range(6)], [0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    later = optimizer(**shared, initial_learning_rate=0.5, hold_steps=2).schedule
    np.testing.assert_allclose([later(i) for i in range(6)], [0.1, 0.1, 1.1, 1.4, 1.7, 2.0], 1e-6)
    traced = jax.jit(made)(jnp.arange(20))
    assert traced.shape == (20,) and traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, [made(i) for i in range(20)], rtol=1e-5)


def rates(**changes):
    made = optimizer(learning_rate=2.0, total_steps=12, warmup_steps=2, **changes)
    return np.array([float(made.schedule(i)) for i in range(13)])


def test_constant_and_wsd():
    np.testing.assert_allclose(rates(schedule="constant")[1:], 2.0)
    found = rates(schedule="wsd", cooldown_steps=4)
    np.testing.assert_allclose(found[1:], [2] * 8 + [1.5, 1.0, 0.5, 0])
    found = rates(schedule="wsd", cooldown_steps=4, final_learning_rate=1.0)
    np.testing.assert_allclose(found[1:], [2] * 8 + [1.75, 1.5, 1.25, 1.0])


def test_rsqrt_with_cooldown():
    """big_vision's formula, whose warm-up is one step behind."""
    plain = 2 / np.sqrt(1 + np.arange(11) / 5)
    found = rates(schedule="rsqrt", cooldown_steps=0, timescale=5)
    np.testing.assert_allclose(found[2:], plain, rtol=1e-6)
    assert found[7] == pytest.approx(2 / np.sqrt(2))
    found = rates(schedule="rsqrt", cooldown_steps=4, timescale=5)
    np.testing.assert_allclose(found[2:], plain * np.minimum(1, (10 - np.arange(11)) / 4), 1e-6)


@pytest.mark.parametrize("name", ["rsqrt", "wsd"])
def test_a_longer_run_goes_on_from_before_the_cooldown(name):
    """What it did until there is what the shorter one did."""
    first = optimizer(schedule=name, total_steps=20, cooldown_steps=5).schedule
    longer = optimizer(schedule=name, total_steps=90, cooldown_steps=5).schedule
    assert [first(i) for i in range(16)] == [longer(i) for i in range(16)]
    assert first(16) < longer(16)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schedule": "wsd"}, "the key 'cooldown_steps' is missing"),
        ({"schedule": "wsd", "cooldown_steps": 9}, r"cooldown_steps \(9\) must lie in 0..8"),
        ({"schedule": "cosin"}, "Unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"cooldown_steps": 3}, "cooldown_steps is a key of schedule 'rsqrt', schedule 'wsd'; not"),
        ({"schedule": "constant", "final_learning_rate": 0.0}, "final_learning_rate is a key of"),
    ],
)
def test_keys_of_schedules(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer(**change)
