"""CogVLM's modules: layouts, routing, ablations, image tower, sizes of the published models."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.models import layout
from big_vlp.models.cogvlm import CogVLM, dead_parameters
from big_vlp.models.eva import EvaTower, bicubic_weights, resize_positions
from big_vlp.models.llama import EXPERT_PARTS, extend_cache
from tests.big_vlp.toy_towers import apply, arbitrary, randn

IMAGE = {"image_size": 8, "patch_size": 4, "width": 12, "layers": 2, "heads": 2, "mlp_dim": 20}
TEXT = {"vocab_size": 30, "width": 16, "layers": 2, "heads": 4, "mlp_dim": 24}
SLOTS = 6  # 2 x 2 patches, boi and eoi
LANGUAGE, VISION, PADDING = layout.LANGUAGE, layout.VISION, layout.PADDING


def cogvlm(**changes):
    changes["image"] = {**IMAGE, **changes.get("image", {})}
    changes["text"] = {**TEXT, **changes.get("text", {})}
    return CogVLM(**{"adapter_mlp_dim": 20, **changes})


def row(*parts):
    """Types of a row: an int is so many language tokens, "image" one image's slots."""
    types = []
    for part in parts:
        types += [VISION] * SLOTS if part == "image" else [LANGUAGE] * part
    return types


def padded(rows, left=False):
    length = max(map(len, rows))
    pad = [[PADDING] * (length - len(r)) for r in rows]
    return np.array([p + r if left else r + p for r, p in zip(rows, pad)], np.int32)


STATIC = padded([row(1, "image", 5), row(1, "image", 3)])


def inputs(types, count=1, seed=0, size=IMAGE["image_size"]):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, TEXT["vocab_size"], types.shape)
    tokens[types != LANGUAGE] = 0
    images = randn(len(types), count, size, size, 3, seed=seed)
    return images, jnp.asarray(tokens), jnp.asarray(types)


def parameters(model):
    return arbitrary(model, *inputs(STATIC, size=model.image["image_size"]))["params"]


def logits_of(model, params, types, kind="general"):
    images, tokens, types = inputs(types, size=model.image["image_size"])
    run = jax.jit(lambda params: model.apply({"params": params}, images, tokens, types, kind))
    return np.asarray(run(params))


def apply_method(model, params, method, *args, **options):
    run = functools.partial(model.apply, {"params": params}, method=method, **options)
    return jax.jit(run)(*args)


def real(types, *arrays):
    return [np.asarray(a)[types != PADDING] for a in arrays]


def random_rows(seed):
    """Rows of every kind, also such as no processor makes, padded on either side."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 2, rng.integers(1, 14)).tolist() for _ in range(8)]
    rows += [row(1, "image", "image", 2), row("image"), row(2, "image", 1, "image")]
    return padded(rows, left=bool(seed % 2))


def positions_by_walking(types):
    """Position ids of one row, token after token, from the rule in words."""
    length = len(types)
    kinds = list(types)
    for t, kind in enumerate(types):
        begins = t == 0 or types[t - 1] == LANGUAGE
        ends = t == length - 1 or types[t + 1] == LANGUAGE
        if kind == VISION and (begins or ends):
            kinds[t] = LANGUAGE
    ids = [0]
    for before, kind in itertools.pairwise(kinds):
        counts = kind == LANGUAGE or (kind == VISION and before == LANGUAGE)
        ids.append(ids[-1] + counts)
    return ids


@pytest.mark.parametrize("seed", range(4))
def test_positions_and_experts_by_walking_along_the_row(seed):
    types = random_rows(seed)
    expected = [positions_by_walking(r.tolist()) for r in types]
    np.testing.assert_array_equal(layout.position_ids(jnp.asarray(types)), expected)
    expected = np.zeros(types.shape, bool)
    for b, t in np.ndindex(types.shape[0], types.shape[1] - 1):
        expected[b, t] = types[b, t] == VISION and types[b, t + 1] == VISION
    np.testing.assert_array_equal(layout.expert_mask(jnp.asarray(types)), expected)


def test_positions_of_the_usual_row():
    types = jnp.asarray([row(1, "image", 3)])
    expected = [[0, 1, 2, 2, 2, 2, 3, 4, 5, 6]]
    np.testing.assert_array_equal(layout.position_ids(types), expected)


def test_padding_moves_to_the_right():
    types = padded([row(1, "image", 2), row(3)], left=True)
    tokens = np.arange(types.size).reshape(types.shape)
    lengths, moved, found = layout.pad_right(jnp.asarray(types), tokens)
    np.testing.assert_array_equal(lengths, [9, 3])
    np.testing.assert_array_equal(moved, padded([row(1, "image", 2), row(3)]))
    np.testing.assert_array_equal(found[1], [*tokens[1, 6:], *tokens[1, :6]])
    again = layout.pad_right(moved, found)
    np.testing.assert_array_equal(again[2], found)


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([row(1, "image", 2), row(1, "image")], True),
        ([row(1, "image", 2), row(2, "image", 1)], False),
        ([row(1, "image", 2), row(9)], False),
        ([row(1, "image", 1, "image")], False),
        ([row(1)], False),
    ],
)
def test_which_rows_are_static(rows, expected):
    assert bool(layout.is_static(padded(rows), SLOTS)) == expected


def test_a_full_mask_lets_an_image_see_itself():
    types = padded([row(1, "image", 1, "image", 1), row(2, "image")])
    mask = np.asarray(layout.full_image_mask(jnp.asarray(types)))
    experts = np.asarray(layout.expert_mask(jnp.asarray(types)))
    for b, t, s in np.ndindex(*types.shape, types.shape[1]):
        between = experts[b, min(t, s) : max(t, s) + 1]
        assert mask[b, 0, t, s] == (s <= t or between.all()), (b, t, s)


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
        {},
        {"text": {"kv_heads": 2}, "expert_qkv_bias": True, "remat": "dots"},
        {"expert_every": 2, "unroll": True, "remat": "full"},
        {"expert_parts": ("mlp",), "image_mask": "full"},
        {"image": {"downsample": True, "image_size": 16}},
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


@pytest.mark.parametrize("unroll, remat", [(True, None), (False, "full"), (False, "dots")])
@pytest.mark.parametrize("expert_every", [1, 2])
def test_every_execution_computes_the_same(unroll, remat, expert_every):
    sizes = {"expert_every": expert_every, "text": {"layers": 4}}
    model = cogvlm(**sizes)
    params = parameters(model)
    expected = logits_of(model, params, STATIC, "static")
    other = cogvlm(**sizes, unroll=unroll, remat=remat)
    found = logits_of(other, params, STATIC, "static")
    np.testing.assert_allclose(*real(STATIC, found, expected), rtol=1e-4, atol=1e-4)


def test_the_static_layout_costs_what_the_language_model_costs():
    def flops(kind):
        model = cogvlm(unroll=True)
        images, tokens, types = inputs(STATIC)
        params = {"params": parameters(model)}
        features = model.apply(params, images, method="encode_images")
        features = None if kind is None else features
        hidden = functools.partial(model.apply, method="hidden", layout=kind)
        return jax.jit(hidden).lower(params, tokens, types, features).cost_analysis()["flops"]

    language, static, general = flops(None), flops("static"), flops("general")
    assert static < 1.03 * language
    assert general > 1.7 * language


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


@pytest.mark.parametrize("kind", ["static", "general"])
@pytest.mark.parametrize(
    "changes",
    [{"expert_every": 2}, {"expert_every": 4, "expert_parts": ("qkv", "out")}, {"expert_parts": ()}]
    + [{"expert_parts": (part,)} for part in EXPERT_PARTS],
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


@pytest.mark.parametrize(
    "changes",
    [{}, {"text": {"kv_heads": 2}, "expert_qkv_bias": True}, {"expert_parts": ("qkv", "mlp")}],
)
def test_what_is_dead_and_what_is_not(changes):
    model = cogvlm(**changes)
    grads = gradients(model, parameters(model), STATIC, "static")
    dead = dead_parameters(model)
    for path, grad in grads.items():
        if "blocks/vision" not in path:
            continue
        grad = np.array(grad)
        assert grad.any(), path
        alive = grad.reshape(len(grad), -1).any(axis=1)
        if path in dead:
            assert not grad[dead[path]].any(), path
            grad[dead[path]] = 1
            alive = grad.reshape(len(grad), -1).any(axis=1)
        assert alive.all(), path
    assert any(path.endswith("query/kernel") for path in dead) == ("text" in changes)
    assert dead_parameters(cogvlm(expert_every=2)) == {}


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
    rows, cache = jnp.arange(2), extend_cache(cache, 12)
    np.testing.assert_allclose(logits, expected[rows, start - 1], rtol=1e-4, atol=1e-4)
    positions = layout.position_ids(types)
    for step in range(2):
        at = start + step
        arguments = (cache, tokens[rows, at], positions[rows, at], at)
        logits, cache = apply_method(model, params, "decode", *arguments)
        np.testing.assert_allclose(logits, expected[rows, at], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes, types, count, kind, message",
    [
        ({"image_mask": "half"}, STATIC, 1, "general", "image_mask='half'"),
        ({"expert_every": 3}, STATIC, 1, "general", "expert_every=3"),
        ({"image": {"image_size": 10}}, STATIC, 1, "general", "multiple of 4"),
        ({"image": {"downsample": True, "image_size": 12}}, STATIC, 1, "general", "multiple of 8"),
        ({}, STATIC, 1, "any", "layout='any'"),
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


def tower(**changes):
    return EvaTower(**{**IMAGE, **changes})


def test_the_image_tower_takes_other_sizes():
    images = randn(2, 12, 12, 3)
    params = arbitrary(tower(), images[:, :8, :8])
    assert params["params"]["position_embedding"].shape == (5, 12)
    assert apply(tower(), params, images).shape == (2, 9, 12)
    with pytest.raises(ValueError, match="multiple of 4 pixels"):
        apply(tower(), params, images[:, :11])


def test_the_image_tower_norms_what_its_branches_return():
    images = randn(1, 8, 8, 3)
    params = arbitrary(tower(layers=1), images)
    # A norm without a scale turns any branch into its bias.
    flat = trees.flatten(params["params"])
    for name in ("norm1", "norm2"):
        flat[f"transformer/blocks/{name}/scale"] *= 0
    shift = sum(flat[f"transformer/blocks/{name}/bias"][0] for name in ("norm1", "norm2"))
    params = {"params": trees.unflatten(flat)}
    embedded = tower(layers=1).apply(params, images, method="embed")
    found = tower(layers=1).apply(params, embedded, method="encode")
    np.testing.assert_allclose(found, embedded + shift, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size_in, size_out", [(4, 7), (16, 35), (35, 16), (3, 3)])
def test_positions_are_resized_as_pytorch_does(size_in, size_out):
    weights = bicubic_weights(size_in, size_out)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    torch = pytest.importorskip("torch")
    table = randn(1 + size_in**2, 5)
    grid = torch.from_numpy(table[1:].reshape(1, size_in, size_in, 5)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        grid, size=(size_out, size_out + 1), mode="bicubic", align_corners=False
    )
    found = resize_positions(jnp.asarray(table), (size_out, size_out + 1))
    np.testing.assert_array_equal(found[0], table[0])
    expected = resized[0].numpy().reshape(5, -1).T
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)


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
