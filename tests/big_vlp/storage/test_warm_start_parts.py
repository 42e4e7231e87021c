"""Runs of CogVLM that start from parts of other models: weights arrive exactly, or nothing does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.methods import make_method
from big_vlp.parallel import meshes
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from big_vlp.storage.checkpoint import CheckpointError
from big_vlp.storage.model_dir import save_model
from big_vlp.storage.warm_start import WarmStart
from input_pipeline.preprocess import Preprocess
from tests.big_vlp.methods.toy_cogvlm_method import EXPERTS, MODEL, TEXT_ONLY, make
from tests.big_vlp.storage.toy_states import drawn

TEXT = {"vocab_size": 40, "width": 16, "layers": 4, "heads": 2, "mlp_dim": 24}
EVERYTHING = ((".*", 1.0, 0.0),)
LANGUAGE, VISION = "language/blocks/language", "language/blocks/vision"
COPY = {"language": "language", VISION: LANGUAGE}
CATLIP = {"width": 16, "layers": 2, "heads": 2, "num_positions": 4, "output_stride": 8}
VIT = {"patch_size": 8, "width": 16, "layers": 2, "heads": 2}
PIXELS = Preprocess(16, mean=(0.0,) * 3, std=(1.0,) * 3)
CLIP = {
    "image": VIT,
    "text": {"vocab_size": 32, "width": 16, "layers": 1, "heads": 2},
    "embed_dim": 8,
}


def arbitrary(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), tree)


def save(directory, section, preprocess, seed):
    """(directory, {"model", "averaged"}) of arbitrary weights."""
    method = make_method(**section, preprocess=preprocess)
    shapes = method.shapes
    items = {
        name: arbitrary(tree, seed + i)
        for i, (name, tree) in enumerate(zip(("model", "averaged"), shapes))
    }
    save_model(directory, items, section, preprocess, None)
    return str(directory), items


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    model = {"text": TEXT, "expert_parts": ()}
    section = {"name": "cogvlm", "model": model, "dtype": "float32"}
    path, items = save(tmp_path_factory.mktemp("language"), section, TEXT_ONLY, 0)
    return path, items["model"]


@pytest.fixture(scope="module")
def catlip(tmp_path_factory):
    section = {"name": "catlip", "model": CATLIP, "num_classes": 3, "dtype": "float32"}
    section["ema_decay"] = 0.9
    path, items = save(tmp_path_factory.mktemp("catlip"), section, PIXELS, 2)
    return path, items["averaged"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    preprocess = Preprocess(16, tokenizer="clip", context_length=8)
    path, items = save(
        tmp_path_factory.mktemp("clip"), {"name": "clip", "model": CLIP}, preprocess, 4
    )
    return path, items["model"]


def fresh(rules=EXPERTS, ema_decay=None, dtype="float32", **model):
    """A training state of CogVLM."""
    method = make(model={**MODEL, "text": TEXT, **model}, ema_decay=ema_decay, dtype=dtype)
    optimizer = make_optimizer(
        learning_rate=1e-3, total_steps=2, warmup_steps=0, weight_decay=0.0, rules=rules
    )
    return drawn(step.make_init(method, optimizer))


def start(path, parts, state, **options):
    return WarmStart(path, parts=parts, **options).apply(state, meshes.make_mesh(), None)


def all_of(state):
    return trees.flatten(trees.merge(state["model"], state["frozen"]))


def same(found, expected):
    """Both are {path: array}."""
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].shape == value.shape, path
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.mark.parametrize(
    "changes, every, kept, leaves",
    [
        pytest.param({}, 1, ("attn/qkv", "attn/out", "mlp"), 5, marks=pytest.mark.slow),
        ({"expert_every": 2}, 2, ("attn/qkv", "attn/out", "mlp"), 5),
        pytest.param({"expert_parts": ("mlp",)}, 1, ("mlp",), 3, marks=pytest.mark.slow),
        ({"expert_parts": ("qkv",), "expert_every": 4}, 4, ("attn/qkv",), 1),
    ],
)
def test_experts_begin_as_copies_of_the_language_model(language, changes, every, kept, leaves):
    path, model = language
    state = fresh(**changes)
    started, note = start(path, COPY, state)
    old, before = trees.flatten(model), all_of(state)
    expected = {p: x for p, x in before.items() if not p.startswith("language/")} | old
    for name, value in old.items():
        if name.startswith(tuple(f"{LANGUAGE}/{part}/" for part in kept)):
            expected[name.replace(LANGUAGE, VISION)] = value[::every]
    assert sum(p.startswith(f"{VISION}/") for p in expected) == leaves
    same(all_of(started), expected)
    assert started["model"].keys() == state["model"].keys()
    same(trees.flatten(started["opt"]), trees.flatten(state["opt"]))
    assert "step 0" in note and "model weights" in note


def test_none_leaves_a_part_as_it_was_initialised(language):
    path, model = language
    state = fresh()
    started, _ = start(path, {"language": "language", VISION: None}, state)
    expected = all_of(state) | trees.flatten(model)
    same(all_of(started), expected)
    with pytest.raises(CheckpointError) as error:  # where it is not said
        start(path, {"language": "language"}, state)
    missing = [f"missing: {p} {x.shape}" for p, x in all_of(state).items() if VISION in p]
    assert f"({len(missing)} differences)" in str(error.value) and len(missing) == 5
    assert all(line in str(error.value) for line in missing)


def test_a_bias_that_the_language_model_lacks_stays_fresh(language):
    path, model = language
    state, bias = fresh(expert_qkv_bias=True), f"{VISION}/attn/qkv/bias"
    started, _ = start(path, {**COPY, bias: None}, state)
    np.testing.assert_array_equal(all_of(started)[bias], all_of(state)[bias])
    kernel = f"{VISION}/attn/qkv/kernel"
    old = trees.flatten(model)[kernel.replace(VISION, LANGUAGE)]
    np.testing.assert_array_equal(all_of(started)[kernel], old)
    with pytest.raises(CheckpointError, match=rf"missing: {bias} \(4, 3, 2, 8\)"):
        start(path, COPY, state)


def test_the_experts_of_another_cogvlm(tmp_path):
    """All of it, in the blocks that have one; the average and half precision follow."""
    section = {"name": "cogvlm", "model": {**MODEL, "text": TEXT}, "dtype": "float32"}
    path, items = save(tmp_path, section, make().preprocess, 7)
    state = fresh(ema_decay=0.9, dtype="bfloat16", expert_every=2)
    started, _ = start(path, {p: p for p in ("language", "vision", "adapter")}, state)
    same(trees.flatten(started["averaged"]), trees.flatten(started["model"]))
    expected = trees.flatten(items["model"])
    expected = {p: x[::2] if p.startswith(VISION) else x for p, x in expected.items()}
    found = all_of(started)
    assert found[f"{LANGUAGE}/mlp/up/kernel"].dtype == jnp.bfloat16
    same(found, {p: jnp.asarray(x).astype(found[p].dtype) for p, x in expected.items()})


@pytest.mark.parametrize(
    "rules, class_token",
    [
        (EXPERTS, True),
        (EVERYTHING, False),
        pytest.param(EXPERTS, False, marks=pytest.mark.slow),
        pytest.param(EVERYTHING, True, marks=pytest.mark.slow),
    ],
)
def test_catlips_tower_with_its_statistics(catlip, class_token, rules):
    path, averaged = catlip
    image = {**CATLIP, "class_token": class_token}
    state = fresh(rules, ema_decay=0.9, tower="catlip_vit", image=image)
    started, note = start(path, {"vision": "tower"}, state)
    old = {
        p.replace("tower/", "vision/", 1): x
        for p, x in trees.flatten(averaged).items()
        if not p.startswith("classifier")
    }
    if not class_token:
        del old["vision/class_token"]
    statistics = {p for p in old if p.startswith("batch_stats/vision/stem/")}
    assert len(statistics) == 4
    same(all_of(started), all_of(state) | old)
    same(trees.flatten(started["averaged"]), trees.flatten(started["model"]))
    assert statistics <= trees.flatten(started["model"]).keys()
    assert "averaged weights" in note


def test_the_tower_of_two_towers(clip):
    path, model = clip
    state = fresh(tower="vit", image={**VIT, "image_size": 16})
    started, _ = start(path, {"vision": "image_tower"}, state)
    old = {f"vision/{p}": x for p, x in trees.flatten(model["image_tower"]).items()}
    assert old.pop("vision/proj/kernel").shape == (16, 8)  # of what it pools
    assert "vision/class_token" in old
    same(all_of(started), all_of(state) | old)


def test_one_start_after_the_other(language, catlip):
    state = fresh(tower="catlip_vit", image=CATLIP)
    once, _ = start(language[0], COPY, state)
    twice, _ = start(catlip[0], {"vision": "tower"}, once)
    found, first, second = all_of(twice), all_of(once), trees.flatten(catlip[1]["tower"])
    for path, value in found.items():
        if path.startswith("vision/"):
            np.testing.assert_array_equal(value, second[path.removeprefix("vision/")], path)
        elif not path.startswith("batch_stats"):
            np.testing.assert_array_equal(value, first[path], path)


@pytest.mark.parametrize(
    "parts, lines",
    [
        ({"vison": "tower"}, ["init.parts names 'vison', but no parameter of the model is below"]),
        ({"visio": "tower"}, ["init.parts names 'visio'"]),  # a beginning of a name is no part
        ({"vision": "twoer"}, ["missing: vision/position_embedding (9, 16)"]),
        (
            {"vision": "tower"},
            [
                "does not fit the config's model",
                "wrong shape: vision/position_embedding is (4, 16), should be (9, 16)",
                "wrong shape: vision/transformer/blocks/mlp/fc1/bias is (2, 64), should be (1, 64)",
            ],
        ),
        (None, ["without parts is for methods with one image tower"]),
    ],
)
def test_what_does_not_fit_is_named(catlip, parts, lines):
    image = {**CATLIP, "layers": 1, "num_positions": 9}
    state = fresh(tower="catlip_vit", image=image)
    with pytest.raises(CheckpointError) as error:
        start(catlip[0], parts, state)
    for line in lines:
        assert line in str(error.value)


def test_what_the_new_part_has_no_place_for_is_named(clip):
    """All but a class token and pooling: here the norm of CLIP's form."""
    state = fresh(tower="vit", image={**VIT, "image_size": 16, "pool": "mean"})
    with pytest.raises(CheckpointError) as error:
        start(clip[0], {"vision": "image_tower"}, state)
    assert "unexpected: vision/norm_pre/scale (16,)" in str(error.value)
    assert "class_token" not in str(error.value) and "proj" not in str(error.value)


@pytest.mark.parametrize("kind", ["vit", "catlip_vit"])
def test_a_tower_without_its_last_block_and_norm(clip, catlip, kind):
    (path, model), part, sizes = {
        "vit": (clip, "image_tower", {**VIT, "image_size": 16}),
        "catlip_vit": (catlip, "tower", CATLIP),
    }[kind]
    image = {**sizes, "layers": 1, "final_norm": False}
    state = fresh(tower=kind, image=image)
    started, note = start(path, {"vision": part}, state, dropped_blocks=1)
    assert "without the last 1 of the old blocks" in note
    old, found = trees.flatten(model[part]), trees.flatten(started["frozen"]["vision"])
    assert not any("norm_post" in name for name in found)
    for name, value in found.items():
        expected = old[name][:1] if "/blocks/" in name else old[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)
    with pytest.raises(CheckpointError, match="differences"):
        start(path, {"vision": part}, fresh(tower=kind, image=image))
    with pytest.raises(CheckpointError, match=r"dropped_blocks=2, but what vision/.* has 2 blocks"):
        start(path, {"vision": part}, state, dropped_blocks=2)
    with pytest.raises(CheckpointError, match=r"Its stacks of blocks lack init\.dropped_blocks=1"):
        start(path, {"vision": part}, fresh(tower=kind, image=sizes), dropped_blocks=1)
    normed = make(model={**MODEL, "tower": kind, "image": {**image, "final_norm": True}})
    init = WarmStart(path, parts={"vision": part}, dropped_blocks=1)
    of_normed = fresh(tower=kind, image={**image, "final_norm": True})
    with pytest.raises(CheckpointError, match="set final_norm=False there"):
        init.apply(of_normed, meshes.make_mesh(), None, normed)
    with pytest.raises(ValueError, match="dropped_blocks=-1: 0 or more"):
        WarmStart(path, dropped_blocks=-1)
