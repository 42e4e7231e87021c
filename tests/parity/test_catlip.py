"""CatLIP against numbers of the reference implementation, for every fixture at hand.

All sizes come from the fixture. The method and the step are the ones the training loop uses, once
plainly and once with scanned, rematerialised blocks and accumulation.
"""

import dataclasses
import json
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import losses, trees
from big_vlp.augment import learned
from big_vlp.augment.learned import RangeAugment
from big_vlp.convert import catlip as convert
from big_vlp.convert import catlip_dense as dense
from big_vlp.methods.catlip import Method
from big_vlp.methods.segmentation import Method as Segmentation
from big_vlp.methods.segmentation import mean_pixel_loss, upsample
from big_vlp.models.heads.dense import Pyramid, as_map
from big_vlp.models.layers.positions import resize_sequence
from big_vlp.models.towers.catlip_vit import Tower as CatlipViT
from big_vlp.recipes import CATLIP_RULES
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from input_pipeline.words.mining import LabelMiner
from tests.parity.fixtures import fixtures, micro_batches

FILES = [
    path
    for path in fixtures("catlip_*.npz")
    if any(name.startswith("logits/") for name in np.load(path).files)
]
CAPTION_FILES = fixtures("catlip_captions*.jsonl")
# Another tagger than the reference's: what its nouns and ours must have in common at least.
PRECISION = RECALL = 0.95
TOLERANCE = 3e-5  # of an array's largest magnitude
SEGMENTATION, PYRAMIDS = (
    [
        path
        for path in fixtures("catlip_*dense*.npz")
        if any(name.startswith(part) for name in np.load(path).files)
    ]
    for part in ("seg/", "fpn/")
)
EXECUTIONS = {
    "plain": {"unroll": True, "remat": None},
    "scan_remat": {"unroll": False, "remat": "full"},  # and micro-batches
}


class Case(NamedTuple):
    arrays: dict
    info: dict
    model: dict
    method: Method


def close(actual, expected, name=""):
    expected = np.asarray(expected)
    actual = np.asarray(actual).reshape(expected.shape)
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=TOLERANCE * max(np.abs(expected).max(), 1e-30), err_msg=name
    )


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def arrays(request):
    return dict(np.load(request.param))


@pytest.fixture(scope="module", params=EXECUTIONS)
def case(arrays, request):
    info = json.loads(str(arrays["config_json"]))
    model, arguments, preprocess = convert.from_reference(
        state_dict(arrays), head_dim=info["head_dim"]
    )
    plain = request.param == "plain"
    method = Method(
        preprocess=preprocess,
        dtype="float32",
        accumulate_steps=1 if plain else micro_batches(len(arrays["train/logits"])),
        **EXECUTIONS[request.param],
        **arguments,
    )
    return Case(arrays, info, model, method)


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def state_dict(arrays):
    return {k.removeprefix("sd/"): v for k, v in arrays.items() if k.startswith("sd/")}


def sizes(arrays, prefix):
    return [k.removeprefix(prefix) for k in arrays if k.startswith(prefix)]


def images_of(arrays, size):
    return np.moveaxis(arrays[f"image_u8/{size}"], 1, -1)


def channels_first(x, like):
    """Tokens [B, N, W] -> [B, W, rows, cols]."""
    return np.moveaxis(np.asarray(x), 2, 1).reshape(like.shape)


def test_state_dict_round_trip(arrays):
    state = state_dict(arrays)
    model, _, _ = convert.from_reference(
        state, head_dim=json.loads(str(arrays["config_json"]))["head_dim"]
    )
    found = convert.to_reference(model, convert._out_name(state))
    assert found.keys() == state.keys()
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found[key], value, err_msg=key)
            assert found[key].dtype == value.dtype


def test_forward_at_every_size(case):
    classify, features = (case.method.predict_fns()[k] for k in ("classify", "features"))
    for size in sizes(case.arrays, "logits/"):
        batch = {"image": images_of(case.arrays, size)}
        close(jax.jit(classify)(case.model, batch), case.arrays[f"logits/{size}"], size)
        close(jax.jit(features)(case.model, batch), case.arrays[f"cls_feature/{size}"], size)


def test_what_happens_inside(case):
    """Stem, tokens with positions, tokens after each block, patch tokens after the last norm."""
    tower = case.method.network.tower
    params, statistics = trees.split_statistics(case.model)
    variables = {"params": params["tower"], "batch_stats": statistics["batch_stats"]["tower"]}
    for size in sizes(case.arrays, "stem/"):
        expected = {k.rpartition("/")[0]: v for k, v in case.arrays.items() if k.endswith(size)}
        images = images_of(case.arrays, size).astype(np.float32) / 255
        embedded = tower.apply(variables, images, method="prepare")
        positions = resize_sequence(params["tower"]["position_embedding"], embedded.shape[1])
        close(channels_first(embedded - positions, expected["stem"]), expected["stem"], size)
        cls = jnp.broadcast_to(params["tower"]["class_token"], (len(images), 1, tower.width))
        tokens_in = jnp.concatenate([cls, embedded], axis=1)
        close(tokens_in, expected["tokens_in"], size)
        (tokens, _), sown = tower.apply(
            variables, embedded, method="encode", mutable=["intermediates"]
        )
        blocks = sown["intermediates"]["transformer"]["block_outputs"][0]
        names = sorted(name for name in expected if name.startswith("tokens_block"))
        assert len(names) == len(blocks) == tower.layers
        for number, name in enumerate(names):
            close(blocks[int(name.removeprefix("tokens_block"))], expected[name], name)
            assert number < tower.layers
        like = expected["image_embeddings"]
        close(channels_first(tokens, like), like, size)


def test_position_tables(case):
    table = case.model["tower"]["position_embedding"]
    for count in sizes(case.arrays, "pos_table/"):
        close(resize_sequence(table, int(count)), case.arrays[f"pos_table/{count}"], count)


def padded_labels(multi_hot):
    """Multi-hot [B, C] -> i32[B, K], padded with -1."""
    rows = [np.flatnonzero(row) for row in multi_hot]
    labels = np.full((len(rows), max(1, *map(len, rows))), -1, np.int32)
    for row, ids in zip(labels, rows):
        row[: len(ids)] = ids
    return labels


def test_binary_cross_entropy(case):
    for size in sizes(case.arrays, "targets/"):
        logits, targets = case.arrays[f"logits/{size}"], case.arrays[f"targets/{size}"]
        found = losses.binary_cross_entropy(logits, padded_labels(targets))
        close(found.mean(), case.arrays["bce/batch_mean"])
        close(found.sum(), case.arrays["bce/sum"])
        close(found.sum() / targets.size, case.arrays["bce/mean"])
        close(found, case.arrays["bce/none"].sum(axis=1))
        by_class = [
            losses.binary_cross_entropy(logits[:, [c]], np.where(targets[:, [c]] == 1, 0, -1))
            for c in range(targets.shape[1])
        ]
        close(np.stack(by_class, axis=1), case.arrays["bce/none"])


def test_training_step(case):
    """Loss, gradients, clipping, AdamW, EMA, BatchNorm's statistics; RangeAugment is off there."""
    arrays, recipe = case.arrays, case.info["train_step"]
    size = sizes(arrays, "targets/")[0]
    batch = {"image": images_of(arrays, size), "labels": padded_labels(arrays[f"targets/{size}"])}
    method = dataclasses.replace(case.method, augment=None, ema_decay=1 - recipe["ema_momentum"])
    model = {k: v for k, v in case.model.items() if k != "augment"}
    optimizer = make_optimizer(
        learning_rate=recipe["lr"],
        total_steps=10**9,  # the rate stays at its peak
        warmup_steps=0,
        weight_decay=recipe["weight_decay"],
        beta1=recipe["betas"][0],
        beta2=recipe["betas"][1],
        epsilon=recipe["eps"],
        clip_norm=recipe["clip"],
        rules=tuple(rule for rule in CATLIP_RULES if "augment" not in rule[0]),
    )
    params, statistics = trees.split_statistics(model)

    def loss_of(params):
        key = jax.random.key(0)
        return method.loss(params, {}, {}, statistics, batch, rng=key, step=0)[0]

    loss, grads = jax.jit(jax.value_and_grad(loss_of))(params)
    close(loss, arrays["train/loss"])
    out = convert._out_name(state_dict(arrays))
    found = convert.to_reference({**grads, **statistics}, out)
    found = {name: found[name] for name in case.info["grad_norm_names"]}
    for name in sizes(arrays, "train/grad/"):
        close(found[name], arrays[f"train/grad/{name}"], name)
    norms = [np.linalg.norm(value.astype(np.float64)) for value in found.values()]
    close(norms, arrays["train/grad_norm_each"])

    state = jax.eval_shape(step.make_init(method, optimizer), jax.random.key(0))
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    state |= {"model": jax.tree.map(jnp.asarray, model)}
    state |= {"averaged": state["model"]}
    state["opt"]["bad_steps"]["first"] = jnp.int32(-1)
    train_step = jax.jit(step.make_train_step(method, optimizer))
    state, metrics = train_step(state, batch, 0, jax.random.key(0))
    close(metrics["loss"], arrays["train/loss"])
    close(metrics["grad_norm"], arrays["train/grad_norm_total_before_clip"])
    for part, prefix in (("model", "train/after_step/"), ("averaged", "train/ema_after_step/")):
        after = convert.to_reference(state[part], out)
        for name in sizes(arrays, prefix):
            if name.endswith("num_batches_tracked"):
                continue
            expected = np.array(arrays[prefix + name])
            if name in found:
                # The gradient of a key's bias is zero, as softmax ignores it, but for rounding;
                # Adam's first step makes steps of full size of that noise.
                noise = np.abs(found[name]) < 1e-6 * np.abs(found[name]).max()
                assert (np.abs(after[name] - expected)[noise] <= 2.01 * recipe["lr"]).all()
                expected[noise] = after[name][noise]
            close(after[name], expected, prefix + name)


def test_logits_in_training_mode(case):
    size = sizes(case.arrays, "targets/")[0]
    params, statistics = trees.split_statistics(case.model)
    variables = {"params": {k: params[k] for k in ("tower", "classifier")}, **statistics}
    images = images_of(case.arrays, size).astype(np.float32) / 255
    logits, _ = case.method.network.apply(variables, images, True, mutable=["batch_stats"])
    close(logits, case.arrays["train/logits"])


def curriculum_length(steps, targets):
    """Not stored, but the target of a step half-way tells it."""
    start, end = targets[0], targets[-1]
    half = np.argmin(np.abs(targets - (start + end) / 2))
    angle = np.arccos(2 * (targets[half] - end) / (start - end) - 1)
    return round(np.pi * steps[half] / angle) - 1


def test_range_augment(arrays):
    """Bounds, operations and the loss' curriculum."""
    params = {
        name: {bound: arrays[f"sd/neural_augmentor.{name}._{bound}"] for bound in ("low", "high")}
        for name in learned.RANGES
    }
    for name in params:
        expected = [arrays[f"aug/{name}_low"], arrays[f"aug/{name}_high"]]
        close(learned.bounds(params, name), expected, name)
    magnitude = arrays["aug/magnitude"]
    size = next(
        s
        for s in sizes(arrays, "image_u8/")
        if arrays[f"image_u8/{s}"].shape[0] == magnitude.shape[0]
    )
    images = images_of(arrays, size).astype(np.float32) / 255
    outputs = {}
    for name in ("brightness", "contrast"):
        shares = learned.OPERATIONS[name](magnitude.reshape(-1))
        outputs[name] = jnp.clip(learned.mix(images, shares, 0 * images), 0, 1)
        (stored,) = (k for k in arrays if k.startswith(f"aug/{name}_out_sample"))
        rows = [int(row) for row in stored.rpartition("sample")[2].split("_")]
        expected = np.moveaxis(arrays[stored], 1, -1)
        _, height, width, _ = expected.shape
        close(outputs[name][np.array(rows), :height, :width], expected, name)
    steps = arrays["aug/psnr_iterations"]
    augment = RangeAugment(total_steps=curriculum_length(steps, arrays["aug/psnr_target_mse"]))
    found = [augment.target(int(i)) for i in steps]
    close(found, arrays["aug/psnr_target_mse"])
    found = [augment.loss(images, outputs["brightness"], int(i)) for i in steps]
    close(found, arrays["aug/psnr_loss_brightness"])


def read_captions(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


@pytest.mark.parametrize("path", CAPTION_FILES, ids=lambda path: path.stem)
def test_captions_give_the_same_keys_in_the_same_order(path):
    miner = LabelMiner()
    rows = read_captions(path)
    wrong = [row["id"] for row in rows if miner.keys(row["caption"]) != row["keys"]]
    assert rows and not wrong, f"{len(wrong)} of {len(rows)} captions differ: {wrong[:20]}"


@pytest.mark.parametrize("path", CAPTION_FILES, ids=lambda path: path.stem)
def test_nouns_are_mostly_the_same(path):
    rows = [row for row in read_captions(path) if "keys_if_pos_noun_filtered" in row]
    if not rows:
        pytest.skip(f"{path.name} has no keys_if_pos_noun_filtered")
    pytest.importorskip("textblob", reason="the extra [pos] is not installed")
    miner = LabelMiner("paper")
    found = Counter((row["id"], key) for row in rows for key in miner.keys(row["caption"]))
    expected = Counter((row["id"], key) for row in rows for key in row["keys_if_pos_noun_filtered"])
    common = (found & expected).total()
    precision, recall = common / found.total(), common / expected.total()
    print(f"{path.name}: nouns with precision {precision:.3f}, recall {recall:.3f}")
    assert precision >= PRECISION and recall >= RECALL


def close_maps(actual, expected, name=""):
    """Maps are [B, h, w, C] here and [B, C, h, w] there."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.ndim == 4:
        actual = np.moveaxis(actual, 3, 1)
    assert actual.shape == expected.shape, name
    atol = TOLERANCE * max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=name)


def part(path, name):
    """(state dict, other arrays, sizes) of "seg" or "fpn"."""
    arrays = dict(np.load(path))
    info = json.loads(str(arrays["config_json"]))
    found = {k.removeprefix(f"{name}/"): x for k, x in arrays.items() if k.startswith(f"{name}/")}
    state = {k.removeprefix("sd/"): x for k, x in found.items() if k.startswith("sd/")}
    others = {k: x for k, x in found.items() if not k.startswith("sd/")}
    head_dim = info["embed_dim"] // info["n_attn_heads"]
    return state, others, {**info[name], "head_dim": head_dim}


def as_images(array):
    return np.moveaxis(array, 1, -1)


def same_state(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found[key], value, err_msg=key)


def segmentation(path):
    """(model, method, other arrays, state dict)."""
    state, arrays, info = part(path, "seg")
    model, arguments, preprocess = dense.segmentation_from_reference(
        state,
        head_dim=info["head_dim"],
        output_stride=info["output_stride"],
        rates=tuple(info["aspp_rates"]),
    )
    assert arguments["num_classes"] == info["n_classes"]
    assert arguments["head"]["channels"] == info["aspp_out_channels"]
    method = Segmentation(preprocess=preprocess, dtype="float32", **arguments)
    return model, method, arrays, state


@pytest.mark.parametrize("path", SEGMENTATION, ids=lambda path: path.stem)
def test_segmentation_round_trip(path):
    model, _, _, state = segmentation(path)
    out = dense._out_name(state, dense.ENCODER)
    same_state(dense.segmentation_to_reference(model, out), state)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("path", SEGMENTATION, ids=lambda path: path.stem)
def test_segmentation(path, execution):
    model, method, arrays, _ = segmentation(path)
    method = dataclasses.replace(method, **EXECUTIONS[execution])
    params, statistics = trees.split_statistics(model)
    images = as_images(arrays.pop("image_u8"))
    segmenter, size = method.network, images.shape[1:3]

    def inside(network, images):
        tokens, _ = network.tower(images)
        maps = as_map(tokens, size, network.tower.output_stride)
        return maps, network.head.features(maps), network(images)

    variables = {"params": {k: params[k] for k in ("tower", "head")}, **statistics}
    run = jax.jit(lambda images: segmenter.apply(variables, images, method=inside))
    out_l5, aspp, logits = run(images.astype(np.float32) / 255)
    close_maps(out_l5, arrays.pop("out_l5"), "out_l5")
    close_maps(aspp, arrays.pop("aspp"), "aspp")
    close_maps(logits, arrays.pop("logits_stride8"), "logits_stride8")

    coarse = jax.jit(method.predict_fns()["segment"])(model, {"image": images})
    pixels = upsample(coarse, images.shape[1:3])
    assert pixels.shape == (*images.shape[:3], method.num_classes)
    close_maps(pixels[:, ::8, ::8], arrays.pop("logits_subsampled_8"), "logits_subsampled_8")

    labels = arrays.pop("mask").astype(np.int32)
    expected = arrays.pop("loss_ce_ignore-1")
    assert (labels == -1).any() and (labels >= 0).any()
    close_maps(mean_pixel_loss(logits, labels + 1), expected, "loss of the method")
    sums, counts = losses.pixel_cross_entropy(pixels, labels)
    close_maps(sums.sum() / counts.sum(), expected, "loss of all pixels at once")
    assert not arrays, f"not compared: {list(arrays)}"


@pytest.mark.parametrize("path", PYRAMIDS, ids=lambda path: path.stem)
def test_pyramid_round_trip(path):
    state, _, info = part(path, "fpn")
    model, _ = dense.fpn_from_reference(state, head_dim=info["head_dim"])
    same_state(dense.fpn_to_reference(model, dense._out_name(state, "")), state)
    state = {f"model.backbone.encoder.{key}": value for key, value in state.items()}
    again, _ = dense.fpn_from_reference(
        {**state, "model.rpn.head.weight": np.zeros(3)},
        head_dim=info["head_dim"],
        prefix="model.backbone.encoder.",
    )
    jax.tree.map(np.testing.assert_array_equal, again, model)
    out = dense._out_name(state, "model.backbone.encoder.")
    same_state(dense.fpn_to_reference(again, out, "model.backbone.encoder."), state)


@pytest.mark.parametrize("path", PYRAMIDS, ids=lambda path: path.stem)
def test_pyramid_at_every_size(path):
    """With as many tokens as channels the reference's LayerNorm is another; both are checked."""
    state, arrays, info = part(path, "fpn")
    model, arguments = dense.fpn_from_reference(state, head_dim=info["head_dim"])
    params, statistics = trees.split_statistics(model)
    variables = {"params": {k: params[k] for k in ("tower", "fpn")}, **statistics}
    sizes = [k.removeprefix("image_u8/") for k in arrays if k.startswith("image_u8/")]
    assert sizes
    for size in sizes:
        images = as_images(arrays.pop(f"image_u8/{size}")).astype(np.float32) / 255
        quirk = images.shape[1] * images.shape[2] // 16**2 == arguments["width"]
        results = {}
        for channel_first in (True, False):
            network = Pyramid(CatlipViT(**arguments, channel_first_norm=channel_first))
            maps, pooled = jax.jit(network.apply)(variables, images)
            # The largest map is stored in part.
            maps["l2"] = maps["l2"][:, ::4, ::4]
            results[channel_first] = {**{f"out_{k}": v for k, v in maps.items()}, "mean": pooled}
        difference = np.abs(results[True]["out_l4"] - results[False]["out_l4"]).max()
        assert (difference > 0.1) if quirk else (difference < 1e-5), size
        expected = {k: arrays.pop(f"{k}/{size}") for k in ("out_l2", "out_l3", "out_l4", "out_l5")}
        expected["mean"] = arrays.pop(f"cls_embedding/{size}")
        for channel_first, found in results.items():
            if channel_first or not quirk:
                assert found.keys() == expected.keys()
                for name, value in expected.items():
                    close_maps(found[name], value, f"{name} at {size}")
    assert not arrays, f"not compared: {list(arrays)}"
