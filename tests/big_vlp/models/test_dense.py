"""Dense heads: against PyTorch where it is installed, shapes, dropout, gradients, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp.models.heads.dense import (
    ChannelNorm,
    DeepLabV3,
    Pyramid,
    Segmenter,
    SimpleFPN,
    bilinear_weights,
    resize_bilinear,
)
from big_vlp.models.towers.catlip_vit import Tower as CatlipViT

TOWER = {"width": 32, "layers": 1, "heads": 2, "num_positions": 9, "class_token": False}


def randn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def arbitrary(model, *args):
    """Variables of the module's structure, none zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    return jax.tree.map(lambda x: rng.uniform(0.1, 0.6, x.shape).astype(x.dtype), shapes)


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("size_in, size_out", [(1, 5), (2, 9), (5, 5), (7, 3), (4, 1), (64, 512)])
def test_lines_are_stretched_between_their_ends(size_in, size_out):
    weights = bilinear_weights(size_in, size_out)
    assert weights.shape == (size_out, size_in) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert ((weights > 0).sum(axis=1) <= 2).all()
    line = randn(size_in)
    places = np.linspace(0, size_in - 1, size_out) if size_out > 1 else [0]
    expected = np.interp(places, np.arange(size_in), line)
    np.testing.assert_allclose(weights @ line, expected, atol=1e-5)


def test_maps_are_resized_in_both_directions_and_in_parts():
    maps, rows, columns = randn(2, 3, 4, 5), bilinear_weights(3, 10), bilinear_weights(4, 7)
    whole = resize_bilinear(maps, rows, columns)
    assert whole.shape == (2, 10, 7, 5) and whole.dtype == jnp.float32
    np.testing.assert_allclose(whole[:, [0, -1]][:, :, [0, -1]], maps[:, ::2, ::3], atol=1e-6)
    np.testing.assert_allclose(resize_bilinear(maps, rows[4:6], columns), whole[:, 4:6], atol=1e-6)
    assert resize_bilinear(maps.astype(jnp.bfloat16), rows, columns).dtype == jnp.float32


def test_resizing_equals_torchs():
    torch = pytest.importorskip("torch")
    maps = randn(2, 6, 5, 3)
    expected = torch.nn.functional.interpolate(
        torch.tensor(maps).permute(0, 3, 1, 2), scale_factor=8, mode="bilinear", align_corners=True
    ).permute(0, 2, 3, 1)
    found = resize_bilinear(maps, bilinear_weights(6, 48), bilinear_weights(5, 40))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


# DeepLabv3


def head(**changes):
    return DeepLabV3(**{"num_classes": 5, "channels": 6, "rates": (1, 2, 3), **changes})


def test_a_training_step_of_the_head_equals_torchs():
    """Batch statistics, running statistics and gradients; the fixtures only have evaluation."""
    torch = pytest.importorskip("torch")
    model, maps = head(dropout=0.0), randn(3, 7, 8, 4)
    variables = arbitrary(model, maps)
    params, statistics = variables["params"], variables["batch_stats"]

    def loss(params):
        out, new = model.apply(
            {"params": params, "batch_stats": statistics}, maps, True, mutable=["batch_stats"]
        )
        return jnp.square(out).mean(), (out, new["batch_stats"])

    (_, (found, new)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    weights = {
        name: torch.tensor(params[name]["conv"]["kernel"].transpose(3, 2, 0, 1), requires_grad=True)
        for name in params
        if name != "classifier"
    }
    running = {}

    def branch(name, x, rate=1):
        norm, stats = params[name]["norm"], statistics[name]["norm"]
        running[name] = [torch.tensor(stats[k]) for k in ("mean", "var")]
        size = weights[name].shape[-1]
        y = torch.nn.functional.conv2d(x, weights[name], padding=rate * (size // 2), dilation=rate)
        scale, bias = torch.tensor(norm["scale"]), torch.tensor(norm["bias"])
        y = torch.nn.functional.batch_norm(y, *running[name], scale, bias, True, 0.1, 1e-5)
        return torch.nn.functional.gelu(y)

    x = torch.tensor(maps).permute(0, 3, 1, 2)
    branches = [branch("point", x)]
    branches += [branch(f"dilated_{i}", x, rate) for i, rate in enumerate(model.rates)]
    branches.append(branch("pool", x.mean((2, 3), keepdim=True)).expand(-1, -1, 7, 8))
    y = branch("project", torch.cat(branches, dim=1))
    classifier = torch.tensor(params["classifier"]["kernel"].transpose(3, 2, 0, 1))
    out = torch.nn.functional.conv2d(y, classifier, torch.tensor(params["classifier"]["bias"]))
    (out**2).mean().backward()

    np.testing.assert_allclose(found, out.detach().permute(0, 2, 3, 1).numpy(), atol=2e-5)
    for name, weight in weights.items():
        expected = weight.grad.permute(2, 3, 1, 0).numpy()
        atol = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(grads[name]["conv"]["kernel"], expected, atol=atol, rtol=1e-3)
        for key, value in zip(("mean", "var"), running[name]):
            np.testing.assert_allclose(new[name]["norm"][key], value.numpy(), atol=2e-5)


def test_dropout_takes_whole_channels_of_single_images_in_training_only():
    model, maps = head(num_classes=6, dropout=0.5), randn(4, 5, 5, 4)
    variables = arbitrary(model, maps)
    # The classifier passes the channels on.
    variables["params"]["classifier"] = {
        "kernel": np.eye(6, dtype=np.float32)[None, None],
        "bias": np.zeros(6, np.float32),
    }
    run = jax.jit(
        lambda train, key: model.apply(
            variables, maps, train, rngs={"dropout": key}, mutable=["batch_stats"]
        )[0],
        static_argnums=0,
    )
    kept = model.apply(variables, maps, True, method="features", mutable=["batch_stats"])[0]
    out = np.asarray(run(True, jax.random.key(0)))
    dropped = (out == 0).all(axis=(1, 2))  # [B, C]
    assert 0 < dropped.sum() < dropped.size and len({tuple(row) for row in dropped}) > 1
    expected = np.where(dropped[:, None, None], 0, 2 * np.asarray(kept))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert (out != np.asarray(run(True, jax.random.key(1)))).any()
    plain = run(False, jax.random.key(0))
    np.testing.assert_array_equal(plain, run(False, jax.random.key(1)))
    assert (np.asarray(plain) != 0).all()


def test_pooling_reaches_everywhere_and_rates_reach_far():
    """What one corner of a map says to the opposite one: only by the mean, or a wide rate."""
    maps = randn(1, 9, 9, 4)
    other = maps.copy()
    other[0, 0, 0] += 1
    for rates, pooled, expected in (((1,), False, False), ((1,), True, True), ((8,), False, True)):
        model = head(rates=rates)
        variables = arbitrary(model, maps)
        if not pooled:
            variables["params"]["pool"]["conv"]["kernel"] *= 0
        a, b = (model.apply(variables, x)[0, 8, 8] for x in (maps, other))
        assert bool((np.asarray(a) != np.asarray(b)).any()) == expected


def test_widths_of_the_published_head():
    """Its parameters: four branches of 512 on 768 channels, pooling, joining, 150 classes."""
    shapes = jax.eval_shape(
        DeepLabV3(150).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 768), jnp.float32)
    )
    count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    assert count == 512 * (768 * (1 + 3 * 9 + 1) + 5 * 512 + 6 * 2) + 150 * 513


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_of_a_segmenter(dtype):
    model = Segmenter(CatlipViT(**TOWER, output_stride=8, dtype=dtype), head(dtype=dtype))
    images = np.random.default_rng(0).random((2, 32, 48, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = jax.jit(model.apply)(variables, images)
    assert out.shape == (2, 4, 6, 5) and out.dtype == jnp.float32

    @jax.jit
    def in_halves(variables):
        tokens = model.apply(variables, images, method="prepare")
        return model.apply(variables, tokens, images.shape[1:3], method="decode")

    again = in_halves(variables)
    tolerance = 0.05 if dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(again, out, atol=tolerance * np.abs(out).max())


# The pyramid


def test_pyramid_equals_torchs():
    torch = pytest.importorskip("torch")
    maps = randn(2, 5, 6, 8)
    variables = arbitrary(SimpleFPN(), maps)
    params = jax.tree.map(torch.tensor, variables["params"])
    x = torch.tensor(maps).permute(0, 3, 1, 2)

    def double(name, x):
        # PyTorch's kernel is [in, out, h, w] and meets the image turned round.
        weight = params[name]["kernel"].permute(2, 3, 0, 1).flip(2, 3)
        return torch.nn.functional.conv_transpose2d(x, weight, params[name]["bias"], stride=2)

    def norm(x):
        std, mean = torch.std_mean(x, dim=1, keepdim=True, unbiased=False)
        scale, bias = (params["l2_norm"][k][:, None, None] for k in ("scale", "bias"))
        return (x - mean) / (std + 1e-6) * scale + bias

    expected = {
        "l2": double("l2_up1", torch.nn.functional.gelu(norm(double("l2_up0", x)))),
        "l3": double("l3_up", x),
        "l4": x,
        "l5": torch.nn.functional.max_pool2d(x, 2),
    }
    found = jax.jit(SimpleFPN().apply)(variables, maps)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value = value.permute(0, 2, 3, 1).numpy()
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)
    assert found["l5"].shape == (2, 2, 3, 8)  # the fifth row is in no pair


def test_the_channel_norm_divides_by_the_deviation_and_epsilon():
    x = randn(1, 2, 2, 16) * np.array([1e-6, 1e-3, 1, 0]).reshape(1, 2, 2, 1).astype(np.float32)
    model = ChannelNorm(jnp.float32)
    variables = arbitrary(model, x)
    found = model.apply(variables, x)
    mean, std = x.mean(-1, keepdims=True), x.std(-1, keepdims=True)
    expected = (x - mean) / (std + 1e-6)
    expected = expected * variables["params"]["scale"] + variables["params"]["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: jnp.square(model.apply(variables, x)).sum())(x)
    assert np.isfinite(gradient).all()  # also where all channels are equal


def test_pyramid_of_a_tower():
    model = Pyramid(CatlipViT(**TOWER))
    images = np.random.default_rng(0).random((1, 32, 64, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    maps, pooled = jax.jit(model.apply)(variables, images)
    assert {name: x.shape[1:] for name, x in maps.items()} == {
        "l2": (8, 16, 8),
        "l3": (4, 8, 16),
        "l4": (2, 4, 32),
        "l5": (1, 2, 32),
    }
    np.testing.assert_allclose(pooled, maps["l4"].mean(axis=(1, 2)), atol=1e-6)
    with pytest.raises(ValueError, match="needs tokens of 16 pixels, not 8"):
        Pyramid(CatlipViT(**TOWER, output_stride=8)).init(jax.random.key(0), images)
