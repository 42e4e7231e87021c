"""AdamW with rules: coverage, freezing, multipliers, clipping and the schedule."""

import jax
import numpy as np
import optax
import pytest

from big_vlp import trees
from big_vlp.run.optim import make_optimizer

SHAPES = {
    "tower/fc/kernel": (3, 4),
    "tower/fc/bias": (4,),
    "tower/norm/scale": (4,),
    "tower/class_token": (4,),
    "words/token_embedding/embedding": (5, 4),
    "words/position_embedding": (3, 4),
    "logit_scale": (),
    "logit_bias": (),
}
DECAYED = {"tower/fc/kernel", "words/token_embedding/embedding", "words/position_embedding"}


def arrays(seed=0, paths=SHAPES):
    rng = np.random.default_rng(seed)
    return trees.unflatten(
        {p: rng.normal(size=SHAPES[p]).astype(np.float32) for p in sorted(paths)}
    )


def optimizer(**changes):
    options = {"learning_rate": 0.1, "total_steps": 10, "warmup_steps": 2, "weight_decay": 0.3}
    return make_optimizer(**{**options, **changes})


def run(optimizer, params, steps=4):
    """Parameters and moments after `steps` updates with arbitrary gradients."""
    moments = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        grads = arrays(10 + step, trees.flatten(params))
        params, moments = update(grads, moments, params, step)
    return params, moments


def adamw(optimizer, params, steps=4):
    """The same from the formulas, float64, parameter by parameter."""
    treated, adam = optimizer.assign(params, partial=True), optimizer.algorithm
    params = {p: np.float64(x) for p, x in trees.flatten(params).items()}
    first, second = ({p: 0 * x for p, x in params.items()} for _ in range(2))
    for step in range(steps):
        grads = {p: np.float64(g) for p, g in trees.flatten(arrays(10 + step, params)).items()}
        if optimizer.clip_norm is not None:
            norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
            grads = {p: g * min(1, optimizer.clip_norm / norm) for p, g in grads.items()}
        rate = float(optimizer.schedule(step))
        for p, g in grads.items():
            first[p] = adam.beta1 * first[p] + (1 - adam.beta1) * g
            second[p] = adam.beta2 * second[p] + (1 - adam.beta2) * g**2
            mean = first[p] / (1 - adam.beta1 ** (step + 1))
            square = second[p] / (1 - adam.beta2 ** (step + 1))
            lr, wd = treated[p]
            direction = mean / (np.sqrt(square) + adam.epsilon)
            params[p] = params[p] - rate * lr * (
                direction + optimizer.weight_decay * wd * params[p]
            )
    return params


def same(found, expected):
    found = trees.flatten(found)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=2e-5, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("clip_norm", [None, 0.5, 100.0])
def test_default_rules_against_the_formulas(clip_norm):
    made = optimizer(clip_norm=clip_norm)
    same(run(made, arrays())[0], adamw(made, arrays()))


def test_default_rules_are_optax_adamw():
    made = optimizer()
    treated = made.assign(arrays())
    assert {p for p, (_, wd) in treated.items() if wd} == DECAYED
    assert {lr for lr, _ in treated.values()} == {1.0}
    reference = optax.adamw(
        made.schedule,
        made.algorithm.beta1,
        made.algorithm.beta2,
        made.algorithm.epsilon,
        weight_decay=made.weight_decay,
        mask=trees.unflatten({p: p in DECAYED for p in SHAPES}),
    )

    @jax.jit
    def update(params, state, grads):
        updates, state = reference.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = arrays(), reference.init(arrays())
    for step in range(4):
        params, state = update(params, state, arrays(10 + step))
    same(run(made, arrays())[0], trees.flatten(params))


RULES = (
    ("tower/fc/kernel", 0.1, 2.0),
    ("tower/(fc/bias|norm/scale|class_token)", 3.0, 0.5),
    ("words/.*", 0, 0),
    ("logit_.*", 1, 0),
)


def test_rules_scale_learning_rate_and_decay():
    made = optimizer(rules=RULES, clip_norm=1.0)
    trainable, frozen = trees.split(arrays(), made.is_trainable(arrays()))
    assert all(p.startswith("words/") for p in trees.flatten(frozen))
    assert len(trees.flatten(frozen)) == 2
    same(run(made, trainable)[0], adamw(made, trainable))


def test_a_learning_rate_for_each_layer():
    """Row k of a stacked parameter moves as if it were a parameter of its own with that rate."""
    rates = (0.0, 0.5, 1.0)
    layered = optimizer(rules=(("tower/fc/kernel", rates, 1.0), ("(?!tower/fc/kernel).*", 1, 0)))
    found = run(layered, arrays())[0]["tower"]["fc"]["kernel"]
    for row, rate in enumerate(rates):
        plain = optimizer(
            rules=(("tower/fc/kernel", rate or 1e-30, 1.0), ("(?!tower/fc/kernel).*", 1, 0))
        )
        expected = run(plain, arrays())[0]["tower"]["fc"]["kernel"][row]
        np.testing.assert_allclose(found[row], expected, rtol=1e-6)
    assert layered.describe(arrays())["tower/fc/kernel"] == "trained, lr x0..1, wd x1"
    wrong = optimizer(rules=(("tower/fc/kernel", (1.0, 1.0), 1.0), ("(?!tower/fc/kernel).*", 1, 0)))
    with pytest.raises(ValueError, match=r"gives 2 learning rates to tower/fc/kernel \(3, 4\)"):
        wrong.assign(arrays())


@pytest.mark.parametrize("garbage", [1e6, np.nan])
def test_layers_that_are_frozen_do_not_count_in_the_norm(garbage):
    """What is clipped, and what is reported, is as if they were not there."""
    rest = ("(?!tower/fc/kernel).*", 1, 0)
    layered = optimizer(rules=(("tower/fc/kernel", (0.0, 1.0, 1.0), 1.0), rest), clip_norm=0.5)
    params, grads = arrays(), arrays(10)
    without = {**trees.flatten(grads), "tower/fc/kernel": grads["tower"]["fc"]["kernel"][1:]}
    assert layered.grad_norm(grads) == pytest.approx(float(optax.tree.norm(without)), rel=1e-6)

    def update(grads):
        return layered.update(grads, layered.init(params), params, 0)

    expected, moments = update(grads)
    grads["tower"]["fc"]["kernel"][0] = garbage
    for a, b in zip(jax.tree.leaves(update(grads)), jax.tree.leaves((expected, moments))):
        np.testing.assert_array_equal(a, b)
    whole = optimizer(rules=(("tower/fc/kernel", (1.0, 1.0, 1.0), 1.0), rest), clip_norm=0.5)
    assert not whole.grad_norm(grads) < 1e5


def test_running_statistics_are_no_parameters():
    described = optimizer().describe({**arrays(), "batch_stats": {"norm": {"mean": np.ones(2)}}})
    assert described["batch_stats/norm/mean"] == "running statistic"
    assert described["tower/fc/bias"].startswith("trained")


def test_frozen_parameters_have_no_moments():
    made = optimizer(rules=RULES)
    trainable, _ = trees.split(arrays(), made.is_trainable(arrays()))
    moments = jax.tree.leaves(made.init(trainable))
    sizes = sum(x.size for x in jax.tree.leaves(trainable))
    assert sum(x.size for x in moments) == 2 * sizes + 1  # and the count
    assert {x.dtype.name for x in moments} == {"float32", "int32"}
    described = made.describe(arrays())
    assert described["words/position_embedding"] == "frozen"
    assert described["tower/fc/kernel"] == "trained, lr x0.1, wd x2"


def test_moments_keep_their_structure():
    """They are plain nested dicts, as checkpoints need them, before and after an update."""
    made = optimizer(clip_norm=1.0)
    before, (_, after) = made.init(arrays()), run(made, arrays(), steps=1)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    nodes = [before]
    while nodes:
        node = nodes.pop()
        assert type(node) is dict or hasattr(node, "shape")
        nodes += node.values() if isinstance(node, dict) else []


def test_dead_parts_keep_their_bits():
    """Without gradient and decay; what is beside them moves as ever."""
    dead = {"tower/fc/kernel": (-1,), "words/token_embedding/embedding": (slice(None), 2)}
    made, params = optimizer(dead=dead, clip_norm=0.5), arrays()
    found, expected = (trees.flatten(run(m, params)[0]) for m in (made, optimizer(clip_norm=0.5)))
    for path, value in trees.flatten(params).items():
        own = np.zeros(value.shape, bool)
        if path in dead:
            own[dead[path]] = True
        np.testing.assert_array_equal(found[path], np.where(own, value, expected[path]), path)
        assert (np.asarray(expected[path]) != value).all()
    described = made.describe(params)
    assert described["tower/fc/kernel"] == "trained, lr x1, wd x1, not [-1]: no gradient"
    assert described["words/token_embedding/embedding"].endswith(", not [:, 2]: no gradient")
    assert "gradient" not in described["tower/fc/bias"]
    # What is frozen needs no such care.
    frozen = optimizer(dead=dead, rules=((".*fc/kernel", 0, 0), ("(?!.*fc/kernel).*", 1, 0)))
    assert frozen.describe(params)["tower/fc/kernel"] == "frozen"
    trainable, _ = trees.split(params, frozen.is_trainable(params))
    run(frozen, trainable, steps=1)


@pytest.mark.parametrize(
    "rules, messages",
    [
        ((("tower/.*", 1, 1), ("words/.*", 1, 1)), ["no rule covers logit_scale", "logit_bias"]),
        (((".*", 1, 1), ("tower/.*", 0, 0)), ["tower/fc/kernel is covered by ['.*', 'tower/.*']"]),
        (((".*", 1, 1), ("twoer/.*", 0, 0)), ["rule 'twoer/.*' matches no parameter"]),
        ((("tower", 0, 0), (".*", 1, 1)), ["rule 'tower' matches no parameter"]),
        ((), [f"no rule covers {path}" for path in SHAPES]),
    ],
)
def test_rules_must_cover_each_parameter_once(rules, messages):
    made = optimizer(rules=rules)
    with pytest.raises(ValueError, match="cover every parameter exactly once") as caught:
        made.is_trainable(arrays())
    for message in messages:
        assert message in str(caught.value)
