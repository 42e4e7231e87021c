"""CogVLM's modules: equal layouts, routing, ablations, sizes of the published models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.models import layout
from big_vlp.models.cogvlm import CogVLM
from big_vlp.models.decoder import EXPERT_PARTS
from tests.big_vlp.models.towers.toy_towers import randn
from tests.big_vlp.models.toy_cogvlm import (
    LANGUAGE,
    PADDING,
    SLOTS,
    STATIC,
    apply_method,
    cogvlm,
    inputs,
    logits_of,
    padded,
    parameters,
    real,
    row,
)


def gradients(model, params, types, kind):
    """Those of a function of what follows language tokens and eoi; none for the image's part."""
    images, tokens, types = inputs(types, size=model.image["image_size"])
    features = apply_method(model, params, "encode_images", images)
    predicts = ~layout.expert_mask(types) & (types != PADDING)
    weight = predicts * randn(*types.shape, seed=3)

    def loss(params):
        apply = functools.partial(model.apply, {"params": params})
        hidden, _ = apply(tokens, types, features, kind, method="hidden")
        logits = apply(hidden, method="logits")
        return (weight[..., None] * jax.nn.log_softmax(logits)[..., :5]).sum()

    return trees.flatten(jax.jit(jax.grad(loss))(params))


@pytest.mark.parametrize(
    "changes",
    [
        {"text": {"kv_heads": 2}, "expert_qkv_bias": True, "expert_every": 2, "remat": "full"},
        {
            "image": {"downsample": True, "image_size": 16},
            "image_mask": "full",
            "expert_parts": ("mlp",),
            "remat": "dots",
        },
    ],
)
def test_both_layouts_compute_the_same(changes):
    model = cogvlm(**changes)
    params = parameters(model)
    static, general = (logits_of(model, params, STATIC, kind) for kind in ("static", "general"))
    np.testing.assert_allclose(*real(STATIC, static, general), rtol=1e-4, atol=1e-4)
    found, expected = (gradients(model, params, STATIC, kind) for kind in ("static", "general"))
    for path, value in expected.items():
        size = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(found[path], value, atol=1e-4 * size, err_msg=path)


@pytest.mark.parametrize(
    "unroll, remat, expert_every", [(True, None, 2), (False, "full", 1), (False, "dots", 2)]
)
def test_every_execution_computes_the_same(unroll, remat, expert_every):
    sizes = {"expert_every": expert_every, "text": {"layers": 4}}
    model = cogvlm(**sizes)
    params = parameters(model)
    expected = logits_of(model, params, STATIC, "static")
    other = cogvlm(**sizes, unroll=unroll, remat=remat)
    found = logits_of(other, params, STATIC, "static")
    np.testing.assert_allclose(*real(STATIC, found, expected), rtol=1e-4, atol=1e-4)


def test_both_layouts_cost_what_the_language_model_costs():
    def flops(kind):
        model = cogvlm(unroll=True)
        images, tokens, types = inputs(STATIC)
        params = {"params": parameters(model)}
        features = model.apply(params, images, method="encode_images")
        features = None if kind is None else features
        hidden = functools.partial(model.apply, method="hidden", layout=kind or "any")
        return jax.jit(hidden).lower(params, tokens, types, features).cost_analysis()["flops"]

    language, static, general = flops(None), flops("static"), flops("general")
    assert max(static, general) < 1.03 * language


def with_whole_experts(params, model):
    """The model with experts everywhere, copies of the language weights where it has none."""
    blocks = params["language"]["blocks"]
    language, own = trees.flatten(blocks["language"]), trees.flatten(blocks.get("vision", {}))
    experts = {}
    for path, value in language.items():
        experts[path] = np.array(value)
        if path in own:
            experts[path][:: model.expert_every] = own[path]
    blocks = {**blocks, "vision": trees.unflatten(experts)}
    return {**params, "language": {**params["language"], "blocks": blocks}}


@pytest.mark.parametrize(
    "changes, kind",
    [
        ({"expert_every": 2}, "static"),
        ({"expert_every": 4, "expert_parts": ("qkv", "out")}, "general"),
        ({"expert_parts": ()}, "static"),
        *zip(
            [{"expert_parts": (part,)} for part in EXPERT_PARTS], ["general", "static", "general"]
        ),
    ],
)
def test_ablated_experts_are_language_weights(changes, kind):
    model = cogvlm(**changes, text={"layers": 4})
    params = parameters(model)
    experts = trees.flatten(params["language"]["blocks"].get("vision", {}))
    parts, every = changes.get("expert_parts", EXPERT_PARTS), changes.get("expert_every", 1)
    assert {path.split("/")[-2] for path in experts} == {
        name
        for part in parts
        for name in {"qkv": ("qkv",), "out": ("out",), "mlp": ("gate", "up", "down")}[part]
    }
    assert all(value.shape[0] == 4 // every for value in experts.values())
    found = logits_of(model, params, STATIC, kind)
    expected = logits_of(
        cogvlm(text={"layers": 4}), with_whole_experts(params, model), STATIC, kind
    )
    np.testing.assert_allclose(*real(STATIC, found, expected), rtol=1e-4, atol=1e-4)


def test_text_alone_is_the_plain_language_model():
    model = cogvlm()
    params = parameters(model)
    types = np.full((2, 7), LANGUAGE, np.int32)
    _, tokens, _ = inputs(types)
    found = apply_method(model, params, "__call__", None, tokens, jnp.asarray(types))
    # An image that no slot asks for, and other experts, change nothing.
    images, _, _ = inputs(types, seed=5)
    blocks = params["language"]["blocks"]
    changed = {**blocks, "vision": jax.tree.map(lambda x: x + 1, blocks["vision"])}
    params = {**params, "language": {**params["language"], "blocks": changed}}
    again = apply_method(model, params, "__call__", images, tokens, jnp.asarray(types))
    np.testing.assert_allclose(found, again, rtol=1e-5, atol=1e-5)


def test_several_images_fill_their_slots_in_order():
    model = cogvlm()
    params = parameters(model)
    types = padded([row(1, "image", 1, "image", 2), row(1, "image", 4)])
    images, tokens, types = inputs(types, count=2)
    features = apply_method(model, params, "encode_images", images)
    merged = np.asarray(
        apply_method(model, params, "merge", tokens, types, features, layout="general")
    )
    np.testing.assert_array_equal(merged[0, 1:7], features[0, 0])
    np.testing.assert_array_equal(merged[0, 8:14], features[0, 1])
    np.testing.assert_array_equal(merged[1, 1:7], features[1, 0])
    table = params["language"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(merged[1, 7:11], table[tokens[1, 7:11]])


def test_image_slots_see_later_ones_with_a_full_mask_only():
    params = parameters(cogvlm())
    images, tokens, types = inputs(STATIC)
    features = apply_method(cogvlm(), params, "encode_images", images)
    other = features.at[:, :, -2].add(1.0)  # the last patch

    def change(mask, at):
        run = functools.partial(apply_method, cogvlm(image_mask=mask), params, "hidden")
        (a, _), (b, _) = run(tokens, types, features), run(tokens, types, other)
        return np.abs(a - b)[:, at].max()

    first_patch, bos = 2, 0
    assert change("causal", first_patch) == 0
    assert change("full", first_patch) > 1e-3
    assert change("full", bos) == 0


@pytest.mark.parametrize("changes", [{}, {"expert_every": 2, "text": {"kv_heads": 2, "layers": 4}}])
def test_generation_continues_rows_of_different_lengths(changes):
    model = cogvlm(**changes)
    params = parameters(model)
    images, tokens, types = inputs(STATIC)
    expected = logits_of(model, params, STATIC)
    start = jnp.array([9, 8])
    index = jnp.arange(9)
    prompt = jnp.where(index < start[:, None], types[:, :9], PADDING)
    features = apply_method(model, params, "encode_images", images)
    logits, cache = apply_method(
        model, params, "prefill", tokens[:, :9], prompt, start, features, layout="static"
    )
    written = model.apply({"params": params}, 2, 2, method="empty_cache")
    rows = jnp.arange(2)
    np.testing.assert_allclose(logits, expected[rows, start - 1], rtol=1e-4, atol=1e-4)
    positions = layout.position_ids(types)
    for step in range(2):
        at = start + step
        arguments = (cache, written, tokens[rows, at], positions[rows, at], start, step)
        logits, written = apply_method(model, params, "decode", *arguments)
        np.testing.assert_allclose(logits, expected[rows, at], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes, types, count, kind, message",
    [
        ({"image_mask": "half"}, STATIC, 1, "general", "image_mask='half'"),
        ({"expert_every": 3}, STATIC, 1, "general", "expert_every=3"),
        ({"image": {"image_size": 10}}, STATIC, 1, "general", "multiple of 4"),
        ({"image": {"downsample": True, "image_size": 12}}, STATIC, 1, "general", "multiple of 8"),
        ({}, STATIC, 1, "dynamic", "layout='dynamic'"),
        ({}, STATIC, 2, "static", "got 2 images a row"),
        ({}, STATIC[:, :SLOTS], 1, "static", "rows of 6"),
    ],
)
def test_bad_options(changes, types, count, kind, message):
    with pytest.raises(ValueError, match=message):
        arguments = inputs(types, count)
        jax.eval_shape(lambda: cogvlm(**changes).init(jax.random.key(0), *arguments, kind))


def test_half_precision_is_close_and_trains_fp32_parameters():
    params = parameters(cogvlm())
    expected = logits_of(cogvlm(), params, STATIC, "static")
    half = cogvlm(dtype=jnp.bfloat16, remat="dots")
    found = logits_of(half, params, STATIC, "static")
    assert found.dtype == np.float32
    spread = np.std(real(STATIC, expected)[0])
    assert np.abs(np.subtract(*real(STATIC, found, expected))).mean() < 0.02 * spread
    grads = gradients(half, params, STATIC, "static")
    assert all(g.dtype == np.float32 and np.isfinite(g).all() for g in grads.values())


def count(model, keep=lambda path: True):
    size = model.image["image_size"]
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 1, size, size, 3)), tokens, tokens)
    )
    flat = trees.flatten(shapes["params"])
    return sum(int(np.prod(leaf.shape)) for path, leaf in flat.items() if keep(path))


def published(image_size=224, vocab_size=32000, mlp_dim=11008, **changes):
    image = {"patch_size": 14, "width": 1792, "layers": 63, "heads": 16, "mlp_dim": 15360}
    image |= {"image_size": image_size, **changes.pop("image", {})}
    text = {"vocab_size": vocab_size, "width": 4096, "layers": 32, "heads": 32, "mlp_dim": mlp_dim}
    text |= changes.pop("text", {})
    return CogVLM(image=image, text=text, adapter_mlp_dim=mlp_dim, **changes)


def trains(path):
    return path.startswith(("language/blocks/vision/", "adapter/"))


def test_sizes_of_the_published_models():
    assert count(published()) == 17_637_948_928
    assert count(published(), trains) == 6_618_628_096
    cogvlm2 = published(
        1344,
        128256,
        14336,
        image={"downsample": True},
        text={"kv_heads": 8},
        expert_qkv_bias=True,
    )
    frequencies = 32 * 64
    assert 2 * (count(cogvlm2) + frequencies) == 39_006_214_656  # bytes of the released files


@pytest.mark.parametrize(
    "changes, billions",
    [
        ({"expert_parts": ()}, 0.14),
        ({"expert_every": 4}, 1.76),
        ({"expert_parts": ("mlp",)}, 4.47),
    ],
)
def test_trainable_sizes_of_the_published_ablations(changes, billions):
    assert count(published(**changes), trains) / 1e9 == pytest.approx(billions, abs=0.006)
