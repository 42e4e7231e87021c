"""The general layout: each token through one expert, wherever images lie and however many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.models import layout
from big_vlp.models.decoder import EXPERT_PARTS, DecoderBlock, Places, apart, together
from big_vlp.models.layers.rope import rope_angles, rotate
from tests.big_vlp.models.towers.toy_towers import randn
from tests.big_vlp.models.toy_cogvlm import (
    LANGUAGE,
    PADDING,
    SLOTS,
    STATIC,
    TEXT,
    apply_method,
    cogvlm,
    inputs,
    padded,
    parameters,
    row,
)

# With place for two images there is room for 10 tokens of text, the ends of images among them.
RAGGED = padded(
    [
        row(1, "image", 2, "image", 3),
        row(4, "image", 3),
        row(2, "image", 1, "image"),  # the last token is the end of an image
        row(7),
        row(9),
    ]
)
RAGGED = np.pad(RAGGED, ((0, 0), (0, 2)), constant_values=PADDING)


def by_both_experts(model, params, x, positions, mask, spans=None, segments=None):
    """The language model in which each expert handles all tokens, of which `mask` chooses, and
    attention is written out. Plain: blocks that all have experts."""
    language = params["language"]
    width, heads = TEXT["width"], TEXT["heads"]
    kv_heads = model.text.get("kv_heads") or heads
    angles = rope_angles(positions, width // heads, 10000.0)
    index = np.arange(x.shape[1])
    seen = np.broadcast_to(index[:, None] >= index, (len(x), len(index), len(index)))
    if spans is not None:
        seen = seen | ((spans[:, :, None] == spans[:, None]) & (spans > 0)[:, None])
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None])
    block = DecoderBlock(
        heads, kv_heads, width, TEXT["mlp_dim"], 1e-5, EXPERT_PARTS, False, jnp.float32, parent=None
    )

    def run(module, x):
        def part(name, x):
            image, text = (e.part(name, x) for e in (module.vision, module.language))
            choose = lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 2)), a, b)  # noqa: E731
            return jax.tree.map(choose, image, text)

        query, key, value = part("qkv", module.norm1(x))
        query, key = rotate(query, angles), rotate(key, angles)
        key, value = (jnp.repeat(a, heads // kv_heads, axis=2) for a in (key, value))
        logits = jnp.einsum("bthd,bshd->bhts", query, key) * (width // heads) ** -0.5
        weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -jnp.inf), axis=-1)
        x = x + part("out", jnp.einsum("bhts,bshd->bthd", weights, value))
        return x + part("mlp", module.norm2(x))

    for number in range(TEXT["layers"]):
        of_block = jax.tree.map(lambda a, at=number: a[at], language["blocks"])
        x = block.apply({"params": of_block}, x, method=run)
    size = jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-5)
    return x / size * language["norm"]["scale"]


def case(model, types, images=2):
    """(params, tokens, types, features)"""
    params = parameters(model)
    pixels, tokens, types = inputs(types, count=images)
    return params, tokens, types, apply_method(model, params, "encode_images", pixels)


def with_gradients(run, params, features, types):
    """(hidden states of what is no padding, gradients of parameters and features)."""
    real = types != PADDING
    weight = real[..., None] * randn(*types.shape, TEXT["width"], seed=3)

    def loss(params, features):
        x = run(params, features)
        return (jnp.where(real[..., None], x, 0) * weight).sum(), x

    gradients, x = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, features)
    return np.asarray(x)[real], {**trees.flatten(gradients[0]), "features": gradients[1]}


def close(found, expected, tolerance=1e-5):
    """Values and gradients, of their largest."""
    (x, gradients), (y, others) = found, expected
    assert np.abs(x - y).max() < tolerance * np.abs(y).max()
    assert gradients.keys() == others.keys()
    for path, value in others.items():
        size = max(np.abs(value).max(), 1e-2)
        np.testing.assert_allclose(gradients[path], value, atol=tolerance * size, err_msg=path)


def of_model(model, tokens, types, kind, **options):
    def run(params, features):
        arguments = tokens, types, features, kind
        return model.apply({"params": params}, *arguments, method="hidden", **options)[0]

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"remat": "full", "image_mask": "full", "text": {"kv_heads": 2}},
        {"remat": "dots", "unroll": True},
    ],
)
@pytest.mark.parametrize("kind", ["general", "any"])
def test_rows_of_all_kinds_are_what_both_experts_make_of_them(changes, kind):
    model = cogvlm(**changes)
    with jax.default_matmul_precision("highest"):
        params, tokens, types, features = case(model, RAGGED)

        def plain(params, features):
            arguments = tokens, types, features, "general"
            x = model.apply({"params": params}, *arguments, method="merge")
            spans = layout.image_spans(types) if model.image_mask == "full" else None
            places = layout.position_ids(types), layout.expert_mask(types), spans
            return by_both_experts(model, params, x, *places)

        expected = with_gradients(plain, params, features, types)
        found = with_gradients(of_model(model, tokens, types, kind), params, features, types)
    close(found, expected)


def test_in_half_precision_the_layouts_round_the_same():
    model = cogvlm(dtype=jnp.bfloat16)
    params, tokens, types, features = case(model, STATIC, images=1)
    static, general = (
        with_gradients(of_model(model, tokens, types, kind), params, features, types)
        for kind in ("static", "general")
    )
    np.testing.assert_allclose(*map(np.float32, (general[0], static[0])), atol=2e-2)
    close(general, static, tolerance=2e-2)


@pytest.mark.parametrize("changes", [{"remat": "full"}, {"expert_every": 2, "unroll": True}])
def test_dropout_draws_what_the_static_layout_draws(changes):
    model = cogvlm(text={"dropout": 0.3}, **changes)
    params, tokens, types, features = case(model, STATIC, images=1)
    keys = jax.random.split(jax.random.key(5), len(STATIC))

    def run(kind, keys):
        hidden = of_model(model, tokens, types, kind, dropout_keys=keys)
        return with_gradients(hidden, params, features, types)

    close(run("general", keys), run("static", keys))
    assert np.abs(run("general", keys)[0] - run("general", None)[0]).max() > 0.01


def test_rows_without_room_are_nan_or_given_some():
    """The second row has one token too many beside one image, with place for two."""
    types = padded([row(1, "image", 1, "image", 2), row(1, "image", 5), row(6)])
    model = cogvlm()
    params, tokens, types, features = case(model, types)
    assert layout.room(types, 2, SLOTS) == types.shape[1] + 1
    general, any_ = (
        np.asarray(jax.jit(of_model(model, tokens, types, kind))(params, features))
        for kind in ("general", "any")
    )
    assert np.isnan(general[1]).all() and np.isfinite(any_).all()
    real = types != PADDING
    others = real & (np.arange(3) != 1)[:, None]
    np.testing.assert_allclose(general[others], any_[others], atol=1e-5 * np.abs(any_).max())
    # One token more makes room; what follows a row changes nothing in it.
    more = np.pad(types, ((0, 0), (0, 1)), constant_values=PADDING)
    longer = of_model(model, jnp.pad(tokens, ((0, 0), (0, 1))), jnp.asarray(more), "general")
    found = np.asarray(jax.jit(longer)(params, features))[:, :-1]
    np.testing.assert_allclose(found[real], any_[real], atol=1e-5 * np.abs(any_).max())


@pytest.mark.parametrize("experts", [EXPERT_PARTS, ()])
@pytest.mark.parametrize("kind", ["general", "any", "static", None])
def test_rows_that_are_not_what_they_promise_are_nan(experts, kind):
    """More slots than features, by all layouts; by "static" also images elsewhere, or none."""
    model, promised = cogvlm(expert_parts=experts), None
    params, tokens, types, features = case(model, RAGGED)
    if kind is None:  # no features: by whatever layout
        kind, features, promised = "general", None, [False, False, False, True, True]
    else:
        features = features[:, :1]
    if kind == "static":
        more = RAGGED.shape[1] - STATIC.shape[1]
        right = np.pad(STATIC, ((0, 0), (0, more)), constant_values=PADDING)
        types = jnp.concatenate([types, right])
        tokens, features = (
            jnp.pad(x, ((0, len(STATIC)), *[(0, 0)] * (x.ndim - 1))) for x in (tokens, features)
        )
        promised = [False] * len(RAGGED) + [True] * len(STATIC)
    found = np.isnan(jax.jit(of_model(model, tokens, types, kind))(params, features))
    right = ~found.any(axis=(1, 2))
    np.testing.assert_array_equal(right, promised or [False, True, False, True, True])
    assert found[~right].all()


def test_an_unknown_layout_is_refused_with_and_without_images():
    model = cogvlm()
    params, tokens, types, features = case(model, STATIC, images=1)
    for given in (features, None):
        with pytest.raises(ValueError, match="layout='ragged'; choose one of"):
            of_model(model, tokens, types, "ragged")(params, given)


@pytest.mark.parametrize("images", [1, 2, 4])
def test_the_gradient_of_features_is_read_not_scattered(images):
    """With fewer places than slots, as many, and more than a row is long."""
    model = cogvlm()
    params, tokens, types, _ = case(model, RAGGED)
    features = randn(len(RAGGED), images, SLOTS, TEXT["width"], seed=4)
    weight = randn(*RAGGED.shape, TEXT["width"], seed=5)

    def loss(features):
        merged = model.apply({"params": params}, tokens, types, features, "general", method="merge")
        return (jnp.where(jnp.isnan(merged), 0, merged) * weight).sum()

    gradient = jax.jit(jax.grad(loss))(features)
    expected = np.zeros((len(RAGGED), images * SLOTS, TEXT["width"]), np.float32)
    for of_row, kinds, weights in zip(expected, RAGGED, weight):
        own = weights[kinds == layout.VISION]
        if len(own) <= len(of_row):
            of_row[: len(own)] = own
    np.testing.assert_array_equal(gradient, expected.reshape(features.shape))
    assert "scatter" not in str(jax.make_jaxpr(jax.grad(loss))(features))


def test_images_that_no_slot_asks_for_change_nothing():
    """Their places are zeros; their features have no gradient, and nothing is NaN."""
    model = cogvlm()
    params, tokens, types, _ = case(model, RAGGED)
    pixels, *_ = inputs(RAGGED, count=2)
    used = np.array([2, 1, 2, 0, 0])[:, None] > np.arange(2)
    pixels = jnp.asarray(pixels * used[..., None, None, None])

    def run(params, pixels):
        features = model.apply({"params": params}, pixels, method="encode_images")
        return of_model(model, tokens, types, "general")(params, features)

    expected, gradients = with_gradients(run, params, pixels, types)
    of_pixels = np.asarray(gradients["features"])
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert not of_pixels[~used].any() and all(image.any() for image in of_pixels[used])
    other = pixels + 3 * (~used)[..., None, None, None]
    found, others = with_gradients(run, params, other, types)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    for path, value in gradients.items():
        size = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(others[path], value, atol=1e-5 * size, err_msg=path)


def test_examples_that_share_a_row_see_themselves_only():
    """Against the written out model, and each example in a row of its own."""
    alone = padded([row(1, "image", 3), row(5), row(2, "image", 1, "image", 2)])
    both = np.concatenate([r[r != PADDING] for r in alone[:2]])
    types = padded([both.tolist(), alone[2].tolist() + 3 * [PADDING]])
    segments = np.where(types == PADDING, 0, 1)
    segments[0, SLOTS + 4 :][types[0, SLOTS + 4 :] != PADDING] = 2
    model = cogvlm(image_mask="full")
    with jax.default_matmul_precision("highest"):
        params, tokens, types, features = case(model, types)
        segments = jnp.asarray(segments)
        places = layout.position_ids(types, segments), layout.expert_mask(types)

        def plain(params, features):
            x = model.apply({"params": params}, tokens, types, features, "any", method="merge")
            spans = layout.image_spans(types)
            return by_both_experts(model, params, x, *places, spans, segments)

        expected = with_gradients(plain, params, features, types)
        for kind in ("general", "any"):
            run = of_model(model, tokens, types, kind, segments=segments)
            close(with_gradients(run, params, features, types), expected)
        packed = np.asarray(jax.jit(run)(params, features))
        own = np.zeros(alone.shape, np.int32)
        for i, (r, first, stop) in enumerate([(0, 0, 10), (0, 10, 15), (1, 0, 17)]):
            own[i, : stop - first] = tokens[r, first:stop]
        separate = of_model(model, jnp.asarray(own), jnp.asarray(alone), "any")
        unpacked = jax.jit(separate)(params, features[jnp.array([0, 0, 1])])
    for i, (r, first, stop) in enumerate([(0, 0, 10), (0, 10, 15), (1, 0, 17)]):
        tolerance = 1e-5 * np.abs(packed).max()
        np.testing.assert_allclose(
            packed[r, first:stop], unpacked[i, : stop - first], atol=tolerance
        )


def test_streams_of_each_row_and_their_gradients():
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(7) for _ in range(3)]).astype(np.int32)
    route, x = Places(order, np.argsort(order, axis=1), 4), randn(3, 7, 2)
    text, image = apart(route, x)
    for b in range(3):
        np.testing.assert_array_equal(text[b], x[b][order[b, :4]])
        np.testing.assert_array_equal(image[b], x[b][order[b, 4:]])
    np.testing.assert_array_equal(together(route, (text, image)), x)

    def loss(x):
        text, image = apart(route, x)
        again = together(route, (2 * text, image))
        return (text * randn(3, 4, 2, seed=1)).sum() + (again**3).sum()

    number = jax.jit(jax.grad(loss))(x)
    for at in [(0, 0, 0), (1, 3, 1), (2, 6, 0)]:
        step = np.zeros_like(x)
        step[at] = 1e-2
        slope = (loss(x + step) - loss(x - step)) / 2e-2
        np.testing.assert_allclose(number[at], slope, rtol=2e-2, atol=1e-2)
    # The gradient reads, too: nothing is scattered.
    assert "scatter" not in str(jax.make_jaxpr(jax.grad(loss))(x))


def flops(kind, backward):
    """Of a model of usual proportions, two images a row."""
    width, images, slots, text = 256, 2, 66, 31
    model = cogvlm(
        image={"image_size": 32, "patch_size": 4},
        text={"width": width, "layers": 2, "heads": 4, "mlp_dim": 688},
        unroll=True,
    )
    count = 1 if kind == "static" else images
    slots = slots if kind != "static" else images * (slots - 1) + 1  # as many for the expert
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs(STATIC, size=32))
    rows = jax.ShapeDtypeStruct((1, 1 + images * 66 + text), jnp.int32)
    features = jax.ShapeDtypeStruct((1, count, slots, width), jnp.float32)

    def run(params, tokens, types, features):
        features = None if kind is None else features
        x, _ = model.apply(params, tokens, types, features, kind or "any", method="hidden")
        return x.sum()

    run = jax.grad(run, argnums=(0, 3)) if backward else run
    return jax.jit(run).lower(shapes, rows, rows, features).cost_analysis()["flops"]


@pytest.mark.parametrize("backward", [False, True])
def test_each_token_costs_one_expert(backward):
    language, static, general, without_room = (
        flops(kind, backward) for kind in (None, "static", "general", "any")
    )
    assert static < 1.03 * language and general < 1.05 * static
    assert 1.5 * general < without_room < 2 * general


def test_what_a_compiled_program_cannot_look_at_is_checked_before():
    two = padded([row(1, "image", 1, "image", 2), row(1, "image", 2)])
    layout.check("general", two, 2, SLOTS)
    layout.check("general", RAGGED, 2, SLOTS)
    layout.check("static", STATIC, 1, SLOTS)
    layout.check("static", padded([row(3)]), 0, 0)
    crowded = padded([row(1, "image", 1, "image", 2), row(1, "image", 5)])
    layout.check("any", crowded, 2, SLOTS)
    one, other = [LANGUAGE] + [layout.VISION] * 5, [LANGUAGE] + [layout.VISION] * 7
    for kind, types, count, message in [
        ("static", two, 2, "use layout='general'"),
        ("static", padded([row(9), row(1, "image", 2)]), 1, "use layout='general'"),
        ("general", crowded, 2, "7 tokens of text; rows of 16 .* room for 6: make them 17"),
        ("general", two, 1, "there are 1 images a row"),
        ("any", two, 0, "no image features"),
        ("any", np.array([one]), 1, "takes 6 slots"),
        ("any", np.array([one + other]), 2, r"row 0 has runs of \[5, 7\] slots"),
        ("general", np.array([[LANGUAGE] * 14, other + one]), 2, r"row 1 has runs of \[7, 5\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            layout.check(kind, types, count, SLOTS)
