"""Runs of two towers that start from others: whole or one tower, and only from what computes the
same."""

import jax
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.methods import make_method
from big_vlp.parallel import meshes
from big_vlp.run import step
from big_vlp.run.optim import make_optimizer
from big_vlp.storage import compared
from big_vlp.storage.checkpoint import CheckpointError
from big_vlp.storage.model_dir import save_model
from big_vlp.storage.warm_start import WarmStart
from input_pipeline.preprocess import Preprocess
from tests.big_vlp.storage.toy_states import drawn

PREPROCESS = Preprocess(16, tokenizer="clip", context_length=8)
MODEL = {
    "image": {"patch_size": 8, "width": 16, "layers": 3, "heads": 2, "activation": "quick_gelu"},
    "text": {"vocab_size": 32, "width": 8, "layers": 2, "heads": 2},
    "embed_dim": 8,
}
LOCKED = (("image_tower/.*", 0.0, 0.0), ("(?!image_tower).*", 1.0, 0.0))


def make(name="clip", preprocess=PREPROCESS, **changes):
    model, given = {**MODEL, **changes}, {}
    if name == "cosmos":
        model, given = {**model, "pooler_heads": 2}, {"ema_decay": 0.9}
    return make_method(name=name, model=model, preprocess=preprocess, **given)


def fresh(method, rules=((".*", 1.0, 0.0),)):
    optimizer = make_optimizer(
        learning_rate=1e-3, total_steps=2, warmup_steps=0, weight_decay=0.0, rules=rules
    )
    return drawn(step.make_init(method, optimizer))


def start(path, method, rules=((".*", 1.0, 0.0),), **options):
    """(flat state before, after, note)."""
    state = fresh(method, rules)
    before = {k: jax.tree.map(np.array, trees.flatten(x)) for k, x in state.items() if x}
    after, note = WarmStart(path, **options).apply(state, meshes.make_mesh(), None, method)
    return before, {k: trees.flatten(x) for k, x in after.items()}, note


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path, rng = str(tmp_path_factory.mktemp("clip")), np.random.default_rng(1)
    model = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), make().shapes[0])
    save_model(path, {"model": model}, {"name": "clip", "model": MODEL}, PREPROCESS, None)
    return path, trees.flatten(model)


def test_the_whole_model_by_default(clip):
    path, weights = clip
    before, after, _ = start(path, make("cosmos"))
    for part in ("model", "averaged"):
        for key, value in after[part].items():
            expected = weights.get(key, before[part][key])
            np.testing.assert_array_equal(value, expected, err_msg=key)
    assert "image_pooler/out/kernel" in after["model"]


def test_a_locked_image_tower(clip):
    """LiT's: the image tower is the old one and frozen, the text tower new and trained. What is
    frozen is kept in the compute dtype."""
    path, weights = clip
    parts = {"image_tower": "image_tower"}
    before, after, _ = start(path, make(), LOCKED, parts=parts)
    assert all(key.startswith("image_tower/") for key in after["frozen"])
    for key, value in after["frozen"].items():
        np.testing.assert_array_equal(value, weights[key].astype(value.dtype), err_msg=key)
    for key, value in after["model"].items():
        np.testing.assert_array_equal(value, before["model"][key], err_msg=key)


def test_the_last_blocks_can_stay_fresh(clip):
    path, weights = clip
    before, after, note = start(path, make(), fresh_blocks=1)
    for key, value in after["model"].items():
        if "/blocks/" in key:
            np.testing.assert_array_equal(value[:-1], weights[key][:-1], err_msg=key)
            np.testing.assert_array_equal(value[-1], before["model"][key][-1], err_msg=key)
        else:
            np.testing.assert_array_equal(value, weights[key], err_msg=key)
    assert "; the last 1 of each tower's blocks are fresh" in note
    with pytest.raises(CheckpointError, match=r"fresh_blocks=2, but text_tower/.* has 2 blocks"):
        start(path, make(), fresh_blocks=2)


def told(path, method, **options):
    with pytest.raises(CheckpointError) as error:
        start(path, method, **options)
    return str(error.value)


def test_towers_that_compute_otherwise_are_refused(clip):
    """Their weights would fit."""
    other = make(
        preprocess=Preprocess(16, "clip", 8, mean=(0.5,) * 3),
        image={**MODEL["image"], "activation": "gelu"},
        text={**MODEL["text"], "norm_epsilon": 1e-6, "pool": "last", "proj_bias": False},
    )
    message = told(clip[0], other)
    for line in (
        "image_tower: activation='gelu', and 'quick_gelu' in the old one's image_tower",
        "image_tower: mean=(0.5, 0.5, 0.5), and",
        "text_tower: norm_epsilon=1e-06, and 1e-05",
        "text_tower: pool='last', and 'eot'",
    ):
        assert line in message
    mean = {"pool": "mean", "class_token": True, "norm_pre": True}
    assert "pool='mean', and 'cls'" in told(clip[0], make(image={**MODEL["image"], **mean}))
    start(clip[0], make(text={**MODEL["text"], "activation": "gelu"}))  # what is the default


def test_towers_under_other_names_are_compared_too(clip):
    """A probe's tower, a CogVLM's, and parts of a tower."""
    gelu = {**MODEL["image"], "activation": "gelu"}

    def probe(**tower):
        model = {"embed_dim": 8, **MODEL["image"], **tower}
        pre = Preprocess(16)
        return make_method(name="transfer", num_classes=3, tower="vit", model=model, preprocess=pre)

    line = "tower: activation='gelu', and 'quick_gelu' in the old one's image_tower"
    assert line in told(clip[0], probe(activation="gelu"))
    start(clip[0], probe())
    blocks = {"image_tower/transformer": "image_tower/transformer"}
    assert f"image_{line}" in told(clip[0], make(image=gelu), parts=blocks)
    start(clip[0], make(image=gelu), parts={"image_tower/patch": "image_tower/patch"})

    class Writer:
        preprocess = PREPROCESS

        def towers(self):
            return {"vision": make(image=gelu).towers()["image_tower"]}

    parts = {"vision": "image_tower"}
    assert compared.differences(Writer(), make(), parts) == [
        "vision: activation='gelu', and 'quick_gelu' in the old one's image_tower"
    ]


def test_poolers_that_may_attend_to_nothing_are_others():
    parts = {name: name for name in ("image_tower", "text_tower", "image_pooler")}
    zero = make("cosmos", zero_attention=True)
    assert compared.differences(zero, make("cosmos"), parts) == [
        "image_pooler: zero_attention=True, and False in the old one's image_pooler"
    ]
    assert not compared.differences(zero, make(), parts)


def test_images_that_are_cut_out_otherwise_are_told(clip):
    squashed = Preprocess(16, "clip", 8, resize="squash")
    _, _, note = start(clip[0], make(preprocess=squashed))
    assert "images have resize='squash', not 'shortest' as there" in note
    parts = {"text_tower": "text_tower"}
    assert "squash" not in start(clip[0], make(preprocess=squashed), parts=parts)[2]


def test_a_method_that_is_gone_still_gives_its_weights(clip, tmp_path):
    section = {"name": "my_lab.gone", "model": MODEL}
    save_model(tmp_path, {"model": trees.unflatten(clip[1])}, section, PREPROCESS, None)
    _, after, note = start(str(tmp_path), make())
    np.testing.assert_array_equal(after["model"]["logit_scale"], clip[1]["logit_scale"])
    assert "nobody compared what its towers compute" in note and "my_lab" in note
