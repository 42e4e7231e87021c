"""LoRA: the numbers of merged kernels in every execution, at the cost of frozen ones."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.models.layers import axes
from big_vlp.models.lora import Lora
from big_vlp.run.optim import Optimizer
from tests.big_vlp.models.towers.toy_towers import arbitrary, ids, randn, towers, vit
from tests.big_vlp.models.toy_cogvlm import PADDING, STATIC, cogvlm, inputs, parameters

# Every dense kernel: both experts, the output layer, the image tower's blocks, the adapter.
EVERYWHERE = Lora((r"language/.*", r"vision/transformer/.*", r"adapter/.*"), rank=3, alpha=2.0)
GROUPED = {"text": {"kv_heads": 2}, "expert_qkv_bias": True}
BLOCK = "language/blocks/language"


@functools.cache
def kernels():
    """The axes of all dense layers in the models below."""
    images, tokens, types = inputs(STATIC)
    small = randn(1, 16, 16, 3)
    found = {}
    for model, *args in (
        (cogvlm(), images, tokens, types),
        (cogvlm(**GROUPED), images, tokens, types),
        (towers(), small, ids(1)),
        (vit(pool="map", embed_dim=16), small),
    ):
        found |= axes.traced(model.init, jax.random.key(0), *args)[1].kernels
    return found


def adder(lora):
    return functools.partial(lora.add, dense=kernels())


def trained(lora, params):
    """Factors as in the middle of a training: B is not zero."""
    flat = trees.flatten(jax.jit(adder(lora))(jax.random.key(0, impl="unsafe_rbg"), params))
    for i, path in enumerate(flat):
        if path.endswith("/lora_b"):
            flat[path] = 0.2 * randn(*flat[path].shape, seed=i)
    return trees.unflatten(flat)


def is_factor(path):
    return path.endswith(("/lora_a", "/lora_b"))


def activated(lora, function):
    def run(*args):
        with lora.active():
            return function(*args)

    return run


def logits_fn(model, layout="static"):
    return lambda params: model.apply({"params": params}, *inputs(STATIC), layout)


def loss_fn(model, layout="static"):
    """Of `params`: (a number that depends on all that answers depend on, logits)."""
    weight = (STATIC != PADDING) * randn(*STATIC.shape, seed=3)

    def loss(params):
        logits = logits_fn(model, layout)(params)
        return (weight[..., None] * jax.nn.log_softmax(logits)[..., :5]).sum(), logits

    return loss


def only_factors(loss, params):
    """`loss` of the factors alone, and the factors."""
    factors, frozen = trees.split(params, is_factor)
    return lambda factors: loss(trees.merge(factors, frozen)), factors


def close(found, expected, tolerance=1e-4, message=""):
    size = max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(found, expected, atol=tolerance * size, err_msg=message)


# From a kernel's gradient to those of its factors: dA = s dW B^T, dB = s A^T dW.
CHAIN_RULE = {
    "qkv": ("...inhd,...nrhd->...inr", "...inhd,...inr->...nrhd"),
    "query": ("...ihd,...rhd->...ir", "...ihd,...ir->...rhd"),
    "out": ("...hdo,...ro->...hdr", "...hdo,...hdr->...ro"),
    "matrix": ("...io,...ro->...ir", "...io,...ir->...ro"),
}
CHAIN_RULE["key_value"] = CHAIN_RULE["qkv"]


@pytest.mark.parametrize(
    "changes, layout",
    [
        pytest.param({"unroll": True}, "general", marks=pytest.mark.slow),
        ({**GROUPED, "expert_every": 2, "remat": "full"}, "static"),
    ],
)
def test_values_and_gradients_are_those_of_merged_kernels(changes, layout):
    model = cogvlm(**changes)
    plain = parameters(model)
    params = trained(EVERYWHERE, plain)
    merged = jax.jit(EVERYWHERE.merge)(params)
    assert trees.differences(plain, merged) == []
    loss = loss_fn(model, layout)
    (_, expected), of_kernels = jax.jit(jax.value_and_grad(loss, has_aux=True))(merged)
    of_factors, factors = only_factors(activated(EVERYWHERE, loss), params)
    (_, found), grads = jax.jit(jax.value_and_grad(of_factors, has_aux=True))(factors)
    close(found, expected)
    of_kernels, grads, flat = (trees.flatten(tree) for tree in (of_kernels, grads, params))
    dense = [path for path in of_kernels if path.endswith("kernel") and "patch" not in path]
    assert len(grads) == 2 * len(dense)
    for path in dense:
        start = path.removesuffix("kernel")
        to_a, to_b = CHAIN_RULE.get(path.split("/")[-2], CHAIN_RULE["matrix"])
        scaled = 2.0 / 3 * np.asarray(of_kernels[path])
        a, b = flat[start + "lora_a"], flat[start + "lora_b"]
        close(grads[start + "lora_a"], np.einsum(to_a, scaled, b), message=path)
        close(grads[start + "lora_b"], np.einsum(to_b, scaled, a), message=path)


def test_new_factors_change_nothing():
    model = cogvlm()
    params = parameters(model)
    added = jax.jit(adder(EVERYWHERE))(jax.random.key(0), params)
    logits = logits_fn(model, "static")
    found = jax.jit(activated(EVERYWHERE, logits))(added)
    np.testing.assert_array_equal(found, jax.jit(logits)(params))
    merged = jax.jit(EVERYWHERE.merge)(added)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_generation_uses_the_factors():
    model = cogvlm()
    params = trained(EVERYWHERE, parameters(model))
    images, tokens, types = inputs(STATIC)

    def generate(params):
        def call(method, *args, **options):
            return model.apply({"params": params}, *args, method=method, **options)

        features = call("encode_images", images)
        lengths = jnp.array([9, 8])
        prompt = tokens[:, :9], types[:, :9], lengths
        first, cache = call("prefill", *prompt, features, layout="static")
        arguments = cache, call("empty_cache", 2, 1), jnp.array([3, 4]), jnp.array([6, 5])
        return first, call("decode", *arguments, lengths, 0)[0]

    expected = jax.jit(generate)(jax.jit(EVERYWHERE.merge)(params))
    found = jax.jit(activated(EVERYWHERE, generate))(params)
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize(
    "model, args, kernels",
    [
        (towers(), (randn(2, 16, 16, 3), ids()), ".*(qkv|out|fc.|query|key_value|mapping)/kernel"),
        (vit(pool="map", embed_dim=16), (randn(2, 16, 16, 3),), "(blocks|.*/blocks|map)/.*kernel"),
    ],
)
def test_other_models_take_factors_too(model, args, kernels):
    params = arbitrary(model, *args)["params"]
    lora = Lora([kernels], rank=2, alpha=1)
    added = trained(lora, params)
    run = jax.jit(lambda params: model.apply({"params": params}, *args))
    found = jax.jit(activated(lora, lambda params: model.apply({"params": params}, *args)))(added)
    expected = run(jax.jit(lora.merge)(added))
    jax.tree.map(close, found, expected)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected, run(params))
    assert max(jax.tree.leaves(moved)) > 0.01


def test_shapes_and_first_values():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters(cogvlm()))
    added = trees.flatten(adder(EVERYWHERE)(jax.random.key(0), params))
    factors = {path: value for path, value in added.items() if is_factor(path)}
    assert all(value.dtype == np.float32 for value in factors.values())
    for start, fan_in, a, b in [
        (f"{BLOCK}/attn/qkv", 16, (2, 16, 3, 3), (2, 3, 3, 4, 4)),
        (f"{BLOCK}/attn/out", 16, (2, 4, 4, 3), (2, 3, 16)),
        (f"{BLOCK}/mlp/down", 24, (2, 24, 3), (2, 3, 16)),
        ("language/head", 16, (16, 3), (3, 30)),
        ("vision/transformer/blocks/attn/qkv", 12, (2, 12, 3, 3), (2, 3, 3, 2, 6)),
    ]:
        value = factors[f"{start}/lora_a"]
        assert (value.shape, factors[f"{start}/lora_b"].shape) == (a, b), start
        assert 0.9 < np.abs(value).max() * fan_in**0.5 <= 1, start
        assert not factors[f"{start}/lora_b"].any()
        assert len(np.unique(value)) > 0.99 * value.size  # nothing is drawn twice
    rest = trees.unflatten({path: value for path, value in added.items() if not is_factor(path)})
    jax.tree.map(np.testing.assert_array_equal, rest, params)
    grouped = jax.eval_shape(adder(EVERYWHERE), jax.random.key(0), parameters(cogvlm(**GROUPED)))
    attn = grouped["language"]["blocks"]["vision"]["attn"]
    assert attn["query"]["lora_b"].shape == (2, 3, 4, 4)
    assert attn["key_value"]["lora_a"].shape == (2, 16, 2, 3)
    assert attn["key_value"]["lora_b"].shape == (2, 2, 3, 2, 4)


def test_query_key_and_value_have_factors_of_their_own():
    path, lora = f"{BLOCK}/attn/qkv", Lora([f"{BLOCK}/attn/qkv/kernel"], rank=2, alpha=1)
    flat = trees.flatten(trained(lora, parameters(cogvlm())))
    before, a, b = (np.array(flat[f"{path}/{n}"]) for n in ("kernel", "lora_a", "lora_b"))
    b[:, [0, 2]] = 0
    flat[f"{path}/lora_b"] = b
    merged = trees.flatten(lora.merge(trees.unflatten(flat)))[f"{path}/kernel"]
    np.testing.assert_array_equal(merged[:, :, [0, 2]], before[:, :, [0, 2]])
    change = 0.5 * np.einsum("lir,lrhd->lihd", a[:, :, 1], b[:, 1])
    np.testing.assert_allclose(merged[:, :, 1], before[:, :, 1] + change, rtol=1e-5, atol=1e-6)


def test_merged_kernels_keep_their_dtype_and_are_rounded_once():
    full = parameters(cogvlm())
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), full)
    params = trained(EVERYWHERE, half)
    merged = jax.jit(EVERYWHERE.merge)(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    as_fp32 = trees.flatten(params)
    as_fp32 = {path: np.float32(value) for path, value in as_fp32.items()}
    expected = jax.jit(EVERYWHERE.merge)(trees.unflatten(as_fp32))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), merged, expected)


def test_half_precision_is_close_and_has_fp32_gradients():
    params = trained(EVERYWHERE, parameters(cogvlm()))
    expected = jax.jit(activated(EVERYWHERE, logits_fn(cogvlm())))(params)
    half = activated(EVERYWHERE, loss_fn(cogvlm(dtype=jnp.bfloat16, remat="dots")))
    loss, factors = only_factors(half, params)
    (_, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(factors)
    assert found.dtype == np.float32
    assert np.abs(found - expected).mean() < 0.02 * np.std(expected)
    for grad in jax.tree.leaves(grads):
        assert grad.dtype == np.float32 and np.isfinite(grad).all()


def test_frozen_kernels_have_no_gradient():
    sizes = {"width": 64, "layers": 4, "mlp_dim": 128}
    model = cogvlm(image=sizes, text=sizes, unroll=True)
    lora = Lora((r".*/blocks/.*attn/(qkv|out)/kernel",), rank=1, alpha=1)
    params = adder(lora)(jax.random.key(0), parameters(model))

    def flops(function, argument):
        return jax.jit(function).lower(argument).cost_analysis()["flops"]

    loss = activated(lora, lambda params: loss_fn(model)(params)[0])
    forward, full = flops(loss, params), flops(jax.grad(loss), params)
    of_factors, factors = only_factors(loss, params)
    partial = flops(jax.grad(of_factors), factors)
    assert full > 2.8 * forward
    assert partial < 2.1 * forward


def test_an_optimizer_trains_the_factors_only():
    lora = Lora((r".*/blocks/.*attn/(qkv|out)/kernel",), rank=4, alpha=4)
    rules = ((r".*/lora_[ab]", 1.0, 0.0), (r".*(?<!/lora_[ab])", 0.0, 0.0))
    optimizer = Optimizer(0.01, total_steps=20, warmup_steps=0, weight_decay=0.0, rules=rules)
    model = cogvlm()
    params = adder(lora)(jax.random.key(0), parameters(model))
    trainable, frozen = trees.split(params, optimizer.is_trainable(params))
    assert all(map(is_factor, trees.flatten(trainable)))
    moments = optimizer.init(trainable)

    @jax.jit
    def step(trainable, moments, i):
        def loss(trainable):
            params = trees.merge(trainable, frozen)
            return -jax.nn.log_softmax(activated(lora, logits_fn(model))(params))[..., 7].mean()

        value, grads = jax.value_and_grad(loss)(trainable)
        return *optimizer.update(grads, moments, trainable, i), value

    losses = []
    for i in range(20):
        trainable, moments, value = step(trainable, moments, i)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.5


def test_parameters_of_another_model_are_still_refused():
    params = adder(EVERYWHERE)(jax.random.key(0), parameters(cogvlm()))
    other = cogvlm(text={"mlp_dim": 28})
    with pytest.raises(flax.errors.ScopeParamShapeError):
        jax.eval_shape(activated(EVERYWHERE, logits_fn(other)), params)


@pytest.mark.parametrize(
    "kernels, message",
    [
        (["language/blocks/lang/.*"], r"'language/blocks/lang/\.\*' matches no dense kernel"),
        ([".*/qkv/kernel", ".*/norm1/scale"], r"'\.\*/norm1/scale' matches no dense kernel"),
        (["qkv/kernel"], "'qkv/kernel' matches no"),
        (["vision/patch/kernel"], r"vision/patch/kernel \(4, 4, 3, 12\) is the kernel of a conv"),
        (["vision/.*"], r"vision/conv/kernel .* convolution, matched by \['vision/\.\*'\]"),
    ],
)
def test_bad_regexes(kernels, message):
    params = parameters(cogvlm(image={"downsample": True, "image_size": 16}))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(adder(Lora(kernels, rank=2, alpha=1)), jax.random.key(0), params)


def test_factors_are_not_drawn_twice():
    lora = Lora([".*/qkv/kernel"], rank=2, alpha=1)
    params = adder(lora)(jax.random.key(0), parameters(cogvlm()))
    with pytest.raises(ValueError, match=f"{BLOCK}/attn/qkv/kernel has factors already"):
        adder(lora)(jax.random.key(1), params)


@pytest.mark.parametrize("kernels, rank", [((".*",), 0), ((".*",), -1), ((), 4)])
def test_bad_options(kernels, rank):
    with pytest.raises(ValueError, match=f"rank={rank}: give at least one regex"):
        Lora(kernels, rank, alpha=1)
