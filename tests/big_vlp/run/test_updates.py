"""Lion, Adafactor and Muon: directions against their formulas, and what they remember."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vlp import trees
from big_vlp.experiment import Experiment
from big_vlp.models.layers.axes import Axes, Declared
from big_vlp.run.optim import make_optimizer
from big_vlp.run.optim.updates import UPDATES
from big_vlp.storage.checkpoint import Checkpoints
from tests.eight_devices import on_eight_devices
from tests.tiny_config import get_config

# Two stacked blocks of attention and an MLP, a table, a head, a norm.
SHAPES = {
    "tower/blocks/attn/qkv/kernel": (2, 32, 3, 4, 8),
    "tower/blocks/attn/qkv/bias": (2, 3, 4, 8),
    "tower/blocks/attn/out/kernel": (2, 4, 8, 32),
    "tower/blocks/mlp/fc1/kernel": (2, 32, 64),
    "tower/blocks/norm/scale": (2, 32),
    "tower/patch/kernel": (2, 2, 3, 32),
    "tower/head/kernel": (32, 40),
    "words/embedding": (50, 32),
}
DECLARED = Declared(
    kernels={
        "tower/blocks/attn/qkv/kernel": Axes(1, 1, 2),
        "tower/blocks/attn/out/kernel": Axes(2, 0, 1),
        "tower/blocks/mlp/fc1/kernel": Axes(1, 0, 1),
        "tower/head/kernel": Axes(1, 0, 1),
    },
    heads={"tower/head/kernel"},
)
HIDDEN = {path for path in DECLARED.kernels if path not in DECLARED.heads}


def arrays(seed, paths=SHAPES):
    rng = np.random.default_rng(seed)
    flat = {p: np.float32(rng.normal(size=SHAPES[p])) for p in SHAPES}
    return trees.unflatten({p: flat[p] for p in paths})


def optimizer(name, **changes):
    options = {"learning_rate": 0.1, "total_steps": 9, "warmup_steps": 0, "weight_decay": 0.0}
    options |= {"schedule": "constant", "declared": DECLARED}
    return make_optimizer(name, **{**options, **changes})


def directions(made, gradients):
    """What `made` subtracts at each of some steps, over the learning rate."""
    zeros = jax.tree.map(np.zeros_like, gradients[0])
    moments, update, found = made.init(zeros), jax.jit(made.update), []
    for step, gradient in enumerate(gradients):
        new, moments = update(gradient, moments, zeros, step)
        found.append({path: -np.asarray(x) / 0.1 for path, x in trees.flatten(new).items()})
    return found


def test_lion_is_optax_lion():
    gradients = [arrays(seed) for seed in range(3)]
    reference = optax.scale_by_lion(0.8, 0.95)
    state = reference.init(gradients[0])
    for found, gradient in zip(
        directions(optimizer("lion", beta1=0.8, beta2=0.95), gradients), gradients
    ):
        expected, state = reference.update(gradient, state)
        for path, value in trees.flatten(expected).items():
            np.testing.assert_allclose(found[path], value, rtol=1e-6, err_msg=path)


def as_matrices(x):
    """[..., in, out] of a hidden kernel."""
    axes = DECLARED.kernels["tower/blocks/attn/qkv/kernel"]
    if x.ndim - 1 == sum(axes):
        return x.transpose(0, 2, 1, 3, 4).reshape(2, 3, 32, 32)
    return x.reshape(2, 32, -1)


def orthogonal(x):
    """Five Newton-Schulz steps (Jordan, 2024) of one matrix, float64."""
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / np.linalg.norm(wide)
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.775 * square + 2.0315 * square @ square) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


def test_muon_takes_each_block_and_part_by_itself():
    """Stacked [L, in, out], and query, key and value with their heads, are as many matrices; each
    moves as if it were alone."""
    gradients = [arrays(seed) for seed in range(3)]
    found = directions(optimizer("muon"), gradients)
    adam = directions(optimizer("adamw"), gradients)
    for path in SHAPES:
        if path not in HIDDEN:
            for ours, expected in zip(found, adam):
                np.testing.assert_allclose(ours[path], expected[path], rtol=1e-6, err_msg=path)
            continue
        mean = 0.0
        for step, gradient in enumerate(gradients):
            gradient = as_matrices(np.float64(trees.flatten(gradient)[path]))
            mean = 0.95 * mean + 0.05 * gradient
            ahead = 0.95 * mean / (1 - 0.95 ** (step + 2)) + 0.05 * gradient / (
                1 - 0.95 ** (step + 1)
            )
            for index in np.ndindex(ahead.shape[:-2]):
                scale = 0.2 * np.sqrt(max(ahead.shape[-2:]))
                expected = scale * orthogonal(ahead[index])
                np.testing.assert_allclose(
                    as_matrices(found[step][path])[index], expected, atol=2e-3, err_msg=path
                )
        sizes = np.linalg.svd(as_matrices(found[-1][path]), compute_uv=False)
        assert 0.6 * scale < np.median(sizes) and sizes.max() < 1.3 * scale


def test_adafactor_is_optax_factored_rms_of_each_matrix():
    gradients = [arrays(seed) for seed in range(3)]
    found = directions(optimizer("adafactor", beta2=0.5), gradients)
    rms = optax.scale_by_factored_rms(
        min_dim_size_to_factor=32,
        decay_rate_fn=lambda i, e: jnp.minimum(0.5, 1 - (i + 1.0) ** -e),
    )
    reference = optax.chain(rms, optax.ema(0.9, debias=False))
    for path in SHAPES:

        def pieces(x, path=path):
            if path in HIDDEN:
                return list(as_matrices(x).reshape(-1, 32, x.shape[-1] if "mlp" in path else 32))
            # Layers are no side of a matrix.
            return list(x.reshape(-1, 32)) if path.endswith(("bias", "scale")) else [x]

        per_step = [pieces(trees.flatten(g)[path]) for g in gradients]
        state, update = reference.init(per_step[0]), jax.jit(reference.update)
        for step, gradient in enumerate(per_step):
            expected, state = update(gradient, state, gradient)
            for ours, value in zip(pieces(found[step][path]), expected):
                np.testing.assert_allclose(ours, value, rtol=2e-5, atol=1e-6, err_msg=path)


def test_adafactor_remembers_rows_and_columns():
    made = optimizer("adafactor", first_moment_dtype="bfloat16")
    moments = trees.flatten(made.init(arrays(0)))
    mean = {p: x for p, x in moments.items() if p.startswith("mean/")}
    assert {x.dtype.name for x in mean.values()} == {"bfloat16"}
    rest = {p: x.shape for p, x in moments.items() if p not in mean}
    assert rest.pop("count") == ()
    assert rest == {
        "factors/tower/blocks/attn/qkv/kernel/rows": (2, 32, 3, 1, 1),
        "factors/tower/blocks/attn/qkv/kernel/columns": (2, 1, 3, 4, 8),
        "factors/tower/blocks/attn/out/kernel/rows": (2, 4, 8, 1),
        "factors/tower/blocks/attn/out/kernel/columns": (2, 1, 1, 32),
        "factors/tower/blocks/mlp/fc1/kernel/rows": (2, 32, 1),
        "factors/tower/blocks/mlp/fc1/kernel/columns": (2, 1, 64),
        "factors/tower/head/kernel/rows": (32, 1),
        "factors/tower/head/kernel/columns": (1, 40),
        "factors/words/embedding/rows": (50, 1),
        "factors/words/embedding/columns": (1, 32),
        "whole/tower/blocks/attn/qkv/bias": (2, 3, 4, 8),
        "whole/tower/blocks/norm/scale": (2, 32),
        "whole/tower/patch/kernel": (2, 2, 3, 32),
    }


HEADS = {
    "cosmos": {"image_tower/proj/kernel", "text_tower/proj/kernel"},
    "catlip": {"classifier/kernel"},
    "cogvlm": {"language/head/kernel"},
}


@pytest.mark.parametrize("name", HEADS)
def test_matrices_of_our_models(name):
    """The dense kernels of all blocks, and no convolution, table or last layer."""
    experiment = Experiment.from_config(get_config(f"method={name}"))
    method = experiment.make_method()
    params, declared = trees.flatten(method.shapes[0]), method.declared
    assert declared.kernels.keys() <= params.keys() and declared.heads <= declared.kernels.keys()
    hidden = {path for path in params if declared.is_hidden(path)}
    of_blocks = {path for path in params if re.search(r"blocks/.*kernel$", path)}
    assert of_blocks and of_blocks <= hidden
    for path in hidden:
        stacked = params[path].ndim - sum(declared.kernels[path])
        assert stacked == (path in of_blocks), path
    assert declared.heads == HEADS[name]
    assert not any(re.search("patch|stem|embedding|lora_|class_token", path) for path in hidden)


def test_the_table_says_who_is_treated_how():
    for name, words in (("muon", ("muon", "adam")), ("adafactor", ("factored",))):
        described = optimizer(name, rules=((".*", 1.0, 0.0),)).describe(arrays(0))
        marked = {path for path, how in described.items() if how.endswith(f", {words[0]}")}
        assert marked == (HIDDEN if name == "muon" else {*HIDDEN, "tower/head/kernel",
                                                         "words/embedding"})  # fmt: skip
        assert all(how.endswith(words) or name == "adafactor" for how in described.values())


@pytest.mark.parametrize("name", UPDATES)
def test_half_of_the_first_moment(name):
    """bf16 is for the mean alone."""
    params, sizes = arrays(0), []
    for dtype in ("float32", "bfloat16"):
        made = optimizer(name, first_moment_dtype=dtype, clip_norm=1.0)
        sizes.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(
            jax.eval_shape(made.init, params)
        )))  # fmt: skip
    assert sizes[0] - sizes[1] == sum(x.nbytes for x in jax.tree.leaves(params)) // 2


@pytest.mark.parametrize("name", UPDATES)
def test_state_is_a_nested_dict_that_keeps_its_structure(name):
    """As checkpoints need it, of all parameters or of those that are no matrices."""
    for paths in (SHAPES, ("words/embedding",)):
        made = optimizer(name, clip_norm=1.0, first_moment_dtype="bfloat16")
        params = arrays(0, paths)
        before = made.init(params)
        _, after = jax.eval_shape(made.update, params, before, params, 0)
        assert jax.tree.structure(before) == jax.tree.structure(after)
        described = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (before, after)]
        assert described[0] == described[1]
        nodes = [before]
        while nodes:
            node = nodes.pop()
            assert type(node) is dict or hasattr(node, "shape")
            nodes += node.values() if isinstance(node, dict) else []


@pytest.mark.parametrize("name", UPDATES)
def test_rules_hold_for_all(name):
    """Decay and rates are applied to whatever direction; frozen layers stay."""
    params, gradients = arrays(0), arrays(1)
    rules = (
        ("tower/blocks/attn/.*", (0.0, 0.5), 1.0),
        ("words/.*", 1.0, 0.0),
        ("tower/(?!blocks/attn).*", 1.0, 2.0),
    )
    made = optimizer(name, rules=rules, weight_decay=0.3, dead={"words/embedding": (-1,)})
    new, _ = jax.jit(made.update)(gradients, made.init(params), params, 0)
    frozen = made._trained(gradients)
    plain = directions(optimizer(name), [frozen])[0]
    for path, x in trees.flatten(params).items():
        rate, decay = made.assign(params)[path]
        rate = np.reshape(rate, (-1, *[1] * (x.ndim - 1))) if np.ndim(rate) else rate
        expected = np.array(x - 0.1 * rate * (plain[path] + 0.3 * decay * x))
        if path == "words/embedding":
            expected[-1] = x[-1]
        np.testing.assert_allclose(trees.flatten(new)[path], expected, atol=1e-5, err_msg=path)


def test_one_and_eight_devices_agree():
    """Large parameters, and what is remembered of them, are split over fsdp; results stay."""
    program = Path(__file__).with_name("updates_on_eight_devices.py")
    found = json.loads(on_eight_devices(program))
    assert found.keys() == UPDATES.keys()
    for name, (difference, splits) in found.items():
        assert difference < 1e-4, name
        assert splits.keys() == HIDDEN
        for path, (own, of_moments) in splits.items():
            assert "fsdp" in own and set(of_moments) == {own}, (name, path)
    assert "tensor" in found["muon"][1]["tower/blocks/attn/qkv/kernel"][0]


def test_what_is_remembered_is_the_same_after_a_checkpoint(tmp_path):
    """To the bit, of each type: with the same state the next step is the same."""
    made = {name: optimizer(name, first_moment_dtype="bfloat16", clip_norm=1.0) for name in UPDATES}
    rng, params = np.random.default_rng(0), arrays(0)
    shapes = jax.eval_shape(lambda: {name: made[name].init(params) for name in UPDATES})
    opt = jax.tree.map(lambda x: jnp.asarray(100 * rng.normal(size=x.shape), x.dtype), shapes)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"opt": opt}, {"step": 3})
    checkpoints.wait()
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), opt
    )
    restored = checkpoints.restore(3, {"opt": shapes})["opt"]
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(opt)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(opt)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "adam"}, "Unknown optimizer 'adam'; did you mean 'adamw'"),
        ({"name": "lion", "epsilon": 1e-8}, "epsilon is a key of .*'adamw', optimizer 'muon'; not"),
        ({"name": "muon", "momentun": 0.9}, "'momentun'; did you mean 'momentum'"),
        ({"name": "lion", "first_moment_dtype": "float16"}, "choose one of .*bfloat16"),
    ],
)
def test_keys_of_updates(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer(**change)
