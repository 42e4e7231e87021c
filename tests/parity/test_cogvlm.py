"""CogVLM and CogVLM2 against numbers of the reference implementation, for every fixture at hand.

All sizes come from the fixture. Each model runs plainly and with scanned, rematerialised blocks,
and each case by every layout that its rows allow.
"""

import dataclasses
import functools
import io
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from big_vlp import trees
from big_vlp.augment.photometric import normalise
from big_vlp.convert.cogvlm import names as convert
from big_vlp.methods import make_method
from big_vlp.models import layout
from big_vlp.models.cogvlm import CogVLM, dead_parameters
from big_vlp.models.layers.positions import resize_grid
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from input_pipeline.images.crops import eval_image
from input_pipeline.preprocess import Preprocess
from tests.parity.fixtures import fixtures

TOLERANCE = 5e-5  # of an array's largest magnitude
IGNORED = -100  # label
EXECUTIONS = {
    "plain": {"unroll": True, "remat": None},
    "scan_remat": {"unroll": False, "remat": "full"},
}
# A forward pass and a step are made in both.
as_trained = pytest.mark.parametrize("execution", ["scan_remat"], indirect=True)


class Case(NamedTuple):
    arrays: dict
    params: dict
    arguments: dict
    preprocess: Preprocess
    model: CogVLM


def close(actual, expected, name=""):
    expected = np.asarray(expected)
    actual = np.asarray(actual).reshape(expected.shape)
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=TOLERANCE * max(np.abs(expected).max(), 1e-30), err_msg=name
    )


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module", params=fixtures("cogvlm*_*.npz"), ids=lambda path: path.stem)
def arrays(request):
    return dict(np.load(request.param))


@pytest.fixture(scope="module", params=EXECUTIONS)
def execution(request):
    return request.param


@pytest.fixture(scope="module")
def case(arrays, execution):
    state = below(arrays, "sd")
    params, arguments, preprocess = convert.from_reference(state, config_of(arrays))
    model = CogVLM(**arguments, **EXECUTIONS[execution])
    return Case(arrays, jax.tree.map(jnp.asarray, params), arguments, preprocess, model)


def config_of(arrays):
    return json.loads(bytes(arrays["config_json"]))


def below(arrays, prefix):
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


def cases(arrays, name):
    """Names of the cases that have an array of that name."""
    return [key.removesuffix(f"/{name}") for key in arrays if key.endswith(f"/{name}")]


class Inputs(NamedTuple):
    images: jax.Array | None  # [B, I, S, S, 3]
    counts: np.ndarray  # images of each row
    tokens: jax.Array
    types: jax.Array


def inputs_of(case, found) -> Inputs:
    types = layout.token_types(found["token_type_ids"], found["attention_mask"])
    tokens = jnp.asarray(found["input_ids"])
    if "pixel_values" not in found:
        return Inputs(None, np.zeros(len(types), int), tokens, types)
    pixels = np.moveaxis(found["pixel_values"], 1, -1)
    side = pixels.shape[1] // case.model.image_token_size
    counts = (np.asarray(types) == layout.VISION).sum(axis=1) // (side**2 + 2)
    images = np.zeros((len(types), counts.max(), *pixels.shape[1:]), np.float32)
    images[np.arange(counts.max()) < counts[:, None]] = pixels
    return Inputs(jnp.asarray(images), counts, tokens, types)


def layouts(inputs, features) -> list[str]:
    """Those that the rows allow; without images there is nothing to choose."""
    if features is None:
        return ["any"]
    count, slots = features.shape[1:3]
    if count == 1 and layout.is_static(inputs.types, slots):
        return ["static", "general"]
    return (
        ["general"] if layout.room(inputs.types, count, slots) <= inputs.types.shape[1] else ["any"]
    )


def bound(case, method, *static):
    """`method` of the case's model with its weights, compiled; `static` names arguments."""
    return jax.jit(
        functools.partial(case.model.apply, {"params": case.params}, method=method),
        static_argnames=static,
    )


def features_of(case, inputs):
    return None if inputs.images is None else bound(case, "encode_images")(inputs.images)


def forward(case, inputs, features, kind):
    """Embeddings, block outputs, final hidden states, logits."""

    @jax.jit
    def run(tokens, types, features):
        apply = functools.partial(case.model.apply, {"params": case.params})
        embedded = apply(tokens, method=lambda module, tokens: module.language.embed(tokens))
        if features is not None:
            embedded = apply(tokens, types, features, kind, method="merge")
        (hidden, _), sown = apply(
            tokens, types, features, kind, method="hidden", mutable=["intermediates"]
        )
        blocks = sown["intermediates"]["language"]["block_outputs"][0]
        return embedded, blocks[:, :, : tokens.shape[1]], hidden, apply(hidden, method="logits")

    return run(inputs.tokens, inputs.types, features)


def next_token_loss(logits, labels):
    labels = labels[:, 1:]
    log_probs = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    picked = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.where(labels == IGNORED, 0, picked).sum() / (labels != IGNORED).sum()


def test_state_dict_round_trip(arrays):
    state = below(arrays, "sd")
    params, arguments, preprocess = convert.from_reference(state, config_of(arrays))
    found = convert.to_reference(params, arguments)
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert found[key].dtype == value.dtype
        if key.endswith("inv_freq"):  # made anew; a power may be rounded otherwise
            np.testing.assert_allclose(found[key], value, rtol=2e-7, err_msg=key)
        else:
            np.testing.assert_array_equal(found[key], value, err_msg=key)
    config = config_of(arrays)
    again = convert.to_config(arguments)
    assert again.items() <= config.items()
    assert preprocess.image_size == config["vision_config"]["image_size"]


def test_positions_and_experts(arrays):
    for name in cases(arrays, "position_ids"):
        found = below(arrays, name)
        types = layout.token_types(found["token_type_ids"], found["attention_mask"])
        np.testing.assert_array_equal(layout.position_ids(types), found["position_ids"], name)
        if "vision_expert_mask" in found:
            experts = found["vision_expert_mask"].astype(bool)
            np.testing.assert_array_equal(layout.expert_mask(types), experts, name)


@as_trained
def test_image_tower_and_adapter(case):
    for name in cases(case.arrays, "pixel_values"):
        found = below(case.arrays, name)
        if "image_features" not in found:
            continue
        images = jnp.asarray(np.moveaxis(found["pixel_values"], 1, -1))

        def run(module, images):
            embedded = module.vision.embed(images)
            encoded = module.vision.transformer(embedded)
            pooled, _ = module.vision(images)
            adapted = module.adapter.project(pooled)
            return embedded, encoded, pooled, adapted, module.encode_images(images[None])[0]

        results = bound(case, run)(images)
        keys = ("patch_embed", "vit_out", "conv_out", "adapter_out", "image_features")
        for key, result in zip(keys, results):
            if key == "conv_out" and "conv_out_nchw" in found:
                expected = found["conv_out_nchw"]  # [n, W, h, w]
                close(np.moveaxis(result, 2, 1), expected.reshape(*expected.shape[:2], -1), key)
            elif key in found:
                close(result, found[key], f"{name}/{key}")


def test_forward_by_every_layout(case):
    names = cases(case.arrays, "logits")
    assert names
    for name in names:
        found = below(case.arrays, name)
        inputs = inputs_of(case, found)
        features = features_of(case, inputs)
        real = np.asarray(inputs.types) != layout.PADDING
        for kind in layouts(inputs, features):
            embedded, blocks, hidden, logits = forward(case, inputs, features, kind)
            states = np.stack([embedded, *blocks[:-1], hidden])
            assert len(states) == len(found["hidden_states"])
            for i, (state, expected) in enumerate(zip(states, found["hidden_states"])):
                close(state[real], expected[real], f"{name}, {kind}: hidden state {i}")
            if "last_layer_prenorm" in found:
                expected = found["last_layer_prenorm"][real]
                close(np.asarray(blocks[-1])[real], expected, f"{name}, {kind}: before the norm")
            close(np.asarray(logits)[real], found["logits"][real], f"{name}, {kind}: logits")
            loss = next_token_loss(logits, jnp.asarray(found["labels"]))
            np.testing.assert_allclose(loss, found["loss"], atol=2e-5, err_msg=name)


def gradients(case, inputs, labels, kind):
    def loss(params):
        logits = case.model.apply(
            {"params": params}, inputs.images, inputs.tokens, inputs.types, kind
        )
        return next_token_loss(logits, labels)

    return jax.jit(jax.grad(loss))(case.params)


@as_trained
def test_gradients_by_every_layout(case):
    prefixes = {key.split("/gradnorm/")[0] for key in case.arrays if "/gradnorm/" in key}
    if not prefixes:
        pytest.skip("this fixture has no gradients")
    for name in prefixes:
        found = below(case.arrays, name)
        inputs, labels = inputs_of(case, found), jnp.asarray(found["labels"])
        for kind in layouts(inputs, features_of(case, inputs)):
            grads = gradients(case, inputs, labels, kind)
            flat = trees.flatten(grads)
            dead = dead_parameters(case.model)
            assert dead
            for path, index in dead.items():
                assert not np.asarray(flat[path])[index].any(), (kind, path)
            grads = convert.to_reference(grads, case.arguments)
            for key, expected in below(found, "grad").items():
                close(grads[key], expected, f"{name}, {kind}: {key}")
            norms = below(found, "gradnorm")
            assert norms.keys() == {key for key in grads if not key.endswith("inv_freq")}
            for key, expected in norms.items():
                norm = np.linalg.norm(grads[key].astype(np.float64))
                if expected == 0:
                    assert norm == 0, (kind, key)
                else:
                    np.testing.assert_allclose(norm, expected, rtol=1e-4, err_msg=f"{kind}: {key}")


def without_pixels_change(preprocess):
    """The record for the fixtures' images, which are normalised already."""
    return dataclasses.replace(preprocess, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_a_training_step(case, execution):
    """Loss and gradients as the method and the step make them, where rows have one image each."""
    checked = 0
    for name in cases(case.arrays, "pixel_values"):
        found = below(case.arrays, name)
        if "labels" not in found:
            continue
        inputs = inputs_of(case, found)
        if "static" not in layouts(inputs, features_of(case, inputs)):
            continue
        method = make_method(
            "cogvlm",
            preprocess=without_pixels_change(case.preprocess),
            model=case.arguments,
            dtype="float32",
            accumulate_steps=len(inputs.tokens) if execution == "scan_remat" else 1,
            **EXECUTIONS[execution],
        )
        loss_mask = found["labels"] != IGNORED
        np.testing.assert_array_equal(inputs.tokens[loss_mask], found["labels"][loss_mask])
        batch = {
            "images": inputs.images,
            "tokens": inputs.tokens,
            "token_types": inputs.types,
            "loss_mask": loss_mask,
        }
        grads, metrics = one_step(method, case.params, batch)
        np.testing.assert_allclose(metrics["loss"], found["loss"], atol=2e-5, err_msg=name)
        norms = {key: np.float64(value) for key, value in below(found, "gradnorm").items()}
        if norms:
            whole = np.sqrt(sum(norm**2 for norm in norms.values()))
            np.testing.assert_allclose(metrics["grad_norm"], whole, rtol=1e-4)
        grads = convert.to_reference(grads, case.arguments)
        for key, expected in below(found, "grad").items():
            close(grads[key], expected, f"{name}: {key}")
        for key, expected in norms.items():
            norm = np.linalg.norm(grads[key].astype(np.float64))
            np.testing.assert_allclose(norm, expected, rtol=1e-4, err_msg=f"{name}: {key}")
        checked += 1
    assert checked


def one_step(method, params, batch):
    """(gradients, metrics) of a training step: without momentum Adam's mean is the gradient."""
    optimizer = make_optimizer(
        **dict(learning_rate=1e-3, total_steps=10, warmup_steps=0, weight_decay=0.1),
        beta1=0.0,
        rules=((".*", 1.0, 0.0),),
        dead=method.dead_parameters(),
    )
    state = jax.eval_shape(step.make_init(method, optimizer), jax.random.key(0))
    assert trees.differences(state["model"], params) == [] and state["frozen"] == {}
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    train_step = jax.jit(step.make_train_step(method, optimizer))
    new, metrics = train_step({**state, "model": params}, batch, 0, jax.random.key(0))
    assert metrics["bad_steps"] == 0
    return jax.tree.map(np.asarray, new["opt"]["moments"]["mu"]), metrics


@as_trained
def test_greedy_generation(case):
    """Prompts are moved to the left of their rows, and each row goes on from its own length."""
    for name in cases(case.arrays, "generated_ids"):
        found = below(case.arrays, name)
        inputs = inputs_of(case, found)
        positions = layout.position_ids(inputs.types)
        lengths, types, tokens, positions = layout.pad_right(inputs.types, inputs.tokens, positions)
        inputs = inputs._replace(tokens=tokens, types=types)
        features = features_of(case, inputs)
        prefill, decode = bound(case, "prefill", "layout"), bound(case, "decode")
        empty_cache = bound(case, "empty_cache", "rows", "length")
        for kind in layouts(inputs, features):
            logits, cache = prefill(
                tokens, types, lengths, features, layout=kind, positions=positions
            )
            steps = found["generated_ids"].shape[1]
            written = empty_cache(rows=len(tokens), length=steps)
            position = jnp.take_along_axis(positions, lengths[:, None] - 1, axis=1)[:, 0]
            results = []
            for i in range(steps):
                token = jnp.argmax(logits, axis=-1)
                results.append((token, logits, position))
                position = position + 1
                logits, written = decode(cache, written, token, position, lengths, i)
            ids, step_logits, origins = (np.stack(x, axis=1) for x in zip(*results))
            np.testing.assert_array_equal(ids, found["generated_ids"], f"{name}, {kind}")
            np.testing.assert_array_equal(origins, found["generated_from_position_ids"], name)
            close(step_logits, found["step_logits"], f"{name}, {kind}")


def test_position_tables(arrays):
    found = below(arrays, "posinterp")
    if not found:
        pytest.skip("this fixture has no position tables")
    for name, expected in found.items():
        if name.startswith("out_"):
            side = int(name.rpartition("to")[2])
            close(resize_grid(found["in"], (side, side)), expected, name)


def test_preprocessing(arrays):
    found = below(arrays, "preproc")
    if not found:
        pytest.skip("this fixture has no images")
    expected = found["resized_uint8_hwc"]
    preprocess = Preprocess(image_size=expected.shape[0], resize="squash")
    encoded = io.BytesIO()
    Image.fromarray(found["uint8_hwc"]).save(encoded, "PNG")
    image = eval_image(encoded.getvalue(), preprocess)
    np.testing.assert_array_equal(image, expected)
    pixels = normalise(jnp.asarray(image), preprocess.mean, preprocess.std)
    close(np.moveaxis(pixels, -1, 0), found["pixel_values_chw"])
