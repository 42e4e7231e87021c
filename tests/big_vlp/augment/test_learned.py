"""RangeAugment: half of a batch by each operation, from learned ranges, towards a moving target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.augment import learned
from big_vlp.augment.learned import RANGES, RangeAugment, bounds, mean_squared_error

AUGMENT = RangeAugment(total_steps=100)
ROWS = 8


@pytest.fixture(scope="module")
def images():
    # Away from 0 and 1, so that little is clipped.
    return jnp.asarray(np.random.default_rng(0).uniform(0.4, 0.6, (ROWS, 6, 6, 3)), jnp.float32)


def keys(seed, rows=ROWS):
    return jax.random.split(jax.random.key(seed), rows)


def test_initial_ranges():
    """The squashing makes them much wider than the numbers they are made of."""
    params = AUGMENT.init()
    np.testing.assert_allclose(bounds(params, "brightness"), (0.598, 8.376), rtol=1e-3)
    np.testing.assert_allclose(bounds(params, "contrast"), (0.598, 8.376), rtol=1e-3)
    np.testing.assert_allclose(bounds(params, "noise"), (2.5e-5, 0.525), rtol=1e-2)


def test_a_target_that_moves_once_an_epoch():
    by_step, by_epoch = RangeAugment(total_steps=4), RangeAugment(total_steps=12, epoch_steps=3)
    found = [float(by_epoch.target(step)) for step in range(15)]
    np.testing.assert_allclose(found, np.repeat([by_step.target(i) for i in range(5)], 3))
    with pytest.raises(ValueError, match="epoch_steps=0"):
        RangeAugment(total_steps=4, epoch_steps=0)


@pytest.mark.parametrize("name", RANGES)
def test_each_operation_changes_half_of_the_batch(monkeypatch, images, name):
    nothing = lambda m: jnp.tile(learned.UNCHANGED, (len(m), 1))  # noqa: E731
    others = dict.fromkeys(set(RANGES) - {name}, nothing)
    monkeypatch.setattr(learned, "OPERATIONS", {**learned.OPERATIONS, **others})
    for seed in range(4):
        out = AUGMENT.apply(AUGMENT.init(), images, keys(seed))
        changed = np.abs(out - images).max(axis=(1, 2, 3)) > 1e-7
        assert changed.sum() == ROWS // 2
    single = AUGMENT.apply(AUGMENT.init(), images[:1], keys(0, rows=1))
    assert np.abs(single - images[:1]).max() > 1e-7  # at least one


def test_operations_are_what_their_names_say(images):
    """As they are written down, against shares of image, mean and noise."""
    m = np.linspace(0.2, 3, ROWS, dtype=np.float32)
    by_row = m[:, None, None, None]
    noise = np.random.default_rng(1).normal(size=images.shape).astype(np.float32)
    expected = {
        "brightness": images * by_row,
        "contrast": (1 - by_row) * images.mean(axis=(1, 2), keepdims=True) + by_row * images,
        "noise": images + by_row * noise,
    }
    for name, value in expected.items():
        found = learned.mix(images, learned.OPERATIONS[name](m), noise)
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_function_of_the_keys_alone(images):
    first, again, other = (AUGMENT.apply(AUGMENT.init(), images, keys(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    assert first.min() >= 0 and first.max() <= 1


def test_noise_does_not_know_its_magnitude(monkeypatch):
    """Nor which images it is for: every pixel is drawn for itself."""
    nothing = lambda m: jnp.tile(learned.UNCHANGED, (len(m), 1))  # noqa: E731
    others = dict.fromkeys(set(RANGES) - {"noise"}, nothing)
    monkeypatch.setattr(learned, "OPERATIONS", {**learned.OPERATIONS, **others})
    params, rows = AUGMENT.init(), 512
    params["noise"] = {"low": jnp.float32(0), "high": jnp.float32(-4)}  # little is clipped
    images = jnp.full((rows, 6, 6, 3), 0.5)
    changes = np.asarray(jax.jit(AUGMENT.apply)(params, images, keys(5, rows))) - 0.5
    noisy = changes[np.abs(changes).max(axis=(1, 2, 3)) > 0].reshape(rows // 2, -1)
    magnitude = noisy.std(axis=1)
    pixels = noisy[:, :12] / magnitude[:, None]
    assert np.abs(np.corrcoef(magnitude, pixels.T)[0, 1:]).max() < 0.25


def test_no_key_is_used_twice(images):
    with jax.debug_key_reuse(True):
        jax.jit(AUGMENT.apply)(AUGMENT.init(), images, keys(0))


def test_gradients_reach_the_ranges(images):
    def loss(params):
        out = AUGMENT.apply(params, images, keys(0))
        return AUGMENT.loss(images, out, 50)

    grads = jax.grad(loss)(AUGMENT.init())
    assert all(np.isfinite(g) and g != 0 for g in jax.tree.leaves(grads))


def test_the_target_grows_from_mild_to_strong():
    targets = [float(AUGMENT.target(step)) for step in (0, 25, 50, 75, 100, 200)]
    assert targets == sorted(targets)
    assert targets[0] == pytest.approx(mean_squared_error(40.0), rel=1e-5)
    assert targets[-2] == pytest.approx(mean_squared_error(20.0), rel=1e-3)
    assert targets[-1] == targets[-2]


def test_the_loss_is_least_at_the_target(images):
    target = AUGMENT.target(0)
    shift = jnp.sqrt(target) / 255
    losses = [float(AUGMENT.loss(images, images + s * shift, 0)) for s in (0.8, 1.0, 1.2)]
    assert losses[1] < 1e-5 < min(losses[0], losses[2])
