"""configs/cogvlm.py: sizes, what each stage trains, and the numbers of the paper."""

import dataclasses

import numpy as np
import pytest

from big_vlp import trees
from big_vlp.experiment import ConfigError, Experiment
from configs import cogvlm

EXPERTS, ADAPTER = 6_476_005_376, 142_622_720
LANGUAGE, TOWER = 6_738_415_616, 4_280_905_216
# EVA02-CLIP-L's 304,105,152 without the last of 24 blocks, the last norm and the projection.
SMALL_TOWER = 304_105_152 - 2 * 1024 - 1025 * 768 - (4 * 1024**2 + 3 * 1024 * 2730 + 9 * 1024
                                                     + 4 * 2730 + 1024)  # fmt: skip


def parts(arg):
    """(experiment, method, {treatment: parameters}, shapes) of a config string."""
    config = cogvlm.get_config(arg)
    config.preprocess.tokenizer = "llama:scenes"
    made = Experiment.from_config(config)
    method = made.make_method()
    optimizer = made.make_optimizer(method)
    shapes = trees.flatten(method.shapes[0])
    treatment = optimizer.describe(trees.unflatten(shapes))
    sizes = {"trained": 0, "frozen": 0}
    for path, shape in shapes.items():
        sizes[treatment[path].split(",")[0]] += shape.size
    return made, method, sizes, treatment, shapes


@pytest.mark.parametrize(
    "arg, trained, frozen",
    [
        ("stage=1", EXPERTS + ADAPTER, LANGUAGE + TOWER),
        ("stage=2", EXPERTS + ADAPTER, LANGUAGE + TOWER),
        ("stage=sft", EXPERTS + ADAPTER + LANGUAGE + TOWER, 0),
        ("stage=sft_v1", EXPERTS + ADAPTER + LANGUAGE, TOWER),
        ("stage=grounding", EXPERTS + ADAPTER + LANGUAGE + TOWER, 0),
        ("ablation=adapter", ADAPTER, LANGUAGE + TOWER),
        ("ablation=llm", ADAPTER + LANGUAGE, TOWER),
        ("ablation=every4", EXPERTS // 4 + ADAPTER, LANGUAGE + TOWER),
        ("ablation=ffn", 32 * 3 * 4096 * 11_008 + ADAPTER, LANGUAGE + TOWER),
        ("ablation=ssl", EXPERTS + ADAPTER + 4096 * 1792, LANGUAGE + TOWER),
        ("ablation=random", EXPERTS + ADAPTER, LANGUAGE + TOWER),
        ("ablation=eva2_l", EXPERTS + ADAPTER - (1792 - 1024) * 4096, LANGUAGE + SMALL_TOWER),
    ],
)
def test_what_is_trained(arg, trained, frozen):
    """17,637,948,928 parameters, of which pretraining trains 6,618,628,096; the ablations' sizes
    are those of the paper's table, to its two digits."""
    assert LANGUAGE + TOWER + EXPERTS + ADAPTER == 17_637_948_928
    *_, sizes, _, _ = parts(arg)
    assert sizes == {"trained": trained, "frozen": frozen}


def test_lora_is_that_of_the_released_example():
    _, method, sizes, treatment, shapes = parts("stage=lora")
    assert sum(sizes.values()) == 17_657_466_368  # as a log of the released code says
    assert treatment["vision/transformer/blocks/attn/qkv/lora_a"] == "trained, lr x1, wd x1"
    assert treatment["language/blocks/vision/attn/qkv/kernel"] == "frozen"
    factors = {path for path in shapes if path.endswith("lora_a")}
    language = {path for path in factors if path.startswith("language/blocks/language/attn/")}
    assert {path.split("/")[-2] for path in language} == {"qkv", "out"} and len(factors) == 4
    grouped = parts("size=19b,stage=lora")[-1]
    names = {path.split("/")[-2] for path in grouped if path.endswith("lora_a")}
    assert names == {"qkv", "query", "key_value", "out"}
    assert method.lora["alpha"] / method.lora["rank"] == 0.1


def test_lora_is_not_for_the_smaller_tower():
    with pytest.raises(ValueError, match="63 blocks of EVA2-CLIP-E; ablation=eva2_l has 23"):
        cogvlm.get_config("stage=lora,ablation=eva2_l")


def test_several_images_need_their_layout():
    """Said when a run begins, not when its first batch is there."""
    config = cogvlm.get_config("stage=sft")
    config.preprocess.tokenizer = "llama:scenes"
    config.views.max_images = 2
    with pytest.raises(ConfigError, match=r"config\.method: layout='static' .* max_images"):
        Experiment.from_config(config).make_method()
    config.method.layout = "general"
    Experiment.from_config(config).make_method()


def test_grounding_learns_all_that_has_boxes():
    tasks = cogvlm.STAGES["grounding"]["tasks"]
    assert {"rec", "reg", "grounded", "pointing", "cot"} < tasks.keys()


def test_only_the_lora_stage_begins_at_a_twentieth_of_the_peak():
    """As the released trainer does where it fine-tunes, for 100 steps."""
    for stage in cogvlm.STAGES:
        made = Experiment.from_config(cogvlm.get_config(f"stage={stage}"))
        held = made.optim["hold_steps"]
        assert held == (100 if stage == "lora" else 0)
    local = cogvlm.get_config("stage=lora,runlocal")
    assert local.optim.hold_steps == 0  # it has 30 steps


def test_what_is_dead():
    _, method, _, treatment, shapes = parts("stage=1")
    dead = {
        path: np.broadcast_to(0, shapes[path].shape)[index].size
        for path, index in method.dead_parameters().items()
    }
    assert sum(dead.values()) == 4096**2 * 2 + 3 * 4096 * 11_008  # 168.8 M
    assert all("no gradient" in treatment[path] for path in dead)


def test_the_stages_of_the_paper():
    made, method, *_ = parts("stage=1")
    optim = made.make_optimizer(method)
    assert (made.total_steps, made.global_batch) == (120_000, 8192)
    assert (optim.schedule.learning_rate, optim.schedule.warmup_steps, optim.weight_decay) == (
        1e-4,
        12_000,
        0.05,
    )
    assert (optim.algorithm.beta1, optim.algorithm.beta2, optim.algorithm.epsilon) == (
        0.9,
        0.95,
        1e-8,
    )
    assert made.method["model"]["text"]["dropout"] == 0.1
    assert made.make_plan().shapes == [(224, 8192)]
    assert made.make_views(224).spec()["tokens"][0] == (1 + 258 + 58,)

    made, method, *_ = parts("stage=2")
    plan = made.make_plan()
    assert (made.total_steps, made.make_optimizer(method).schedule.warmup_steps) == (60_000, 1200)
    assert (plan(29_999)[:2], plan(30_000)[:2]) == ((224, 1024), (490, 1024))
    assert made.make_views(490).spec()["tokens"][0] == (1 + 1227 + 58,)

    new, old = (parts(f"stage={stage}") for stage in ("sft", "sft_v1"))
    assert (new[0].total_steps, new[0].global_batch) == (6000, 1024)
    assert (old[0].total_steps, old[0].global_batch) == (8000, 640)
    base, tower = "language/head/kernel", "vision/patch/kernel"
    assert (new[3][base], new[3][tower]) == ("trained, lr x1, wd x1", "trained, lr x0.1, wd x1")
    assert (old[3][base], old[3][tower]) == ("trained, lr x0.1, wd x1", "frozen")
    for treatment in (new[3], old[3]):
        assert treatment["language/norm/scale"].endswith("wd x0")
        assert treatment["adapter/boi"] == "trained, lr x1, wd x1"


def test_what_ablations_change():
    methods = {name: parts(f"ablation={name}")[1] for name in ("none", *cogvlm.ABLATIONS)}
    plain = methods["none"]
    changed = {
        name: {
            field.name
            for field in dataclasses.fields(method)
            if getattr(method, field.name) != getattr(plain, field.name)
        }
        for name, method in methods.items()
    }
    assert changed.pop("none") == changed.pop("random") == set()
    assert changed.pop("no_ema") == {"ema_decay"}
    assert changed.pop("ssl") == {"image_loss"}
    assert set(map(frozenset, changed.values())) == {frozenset({"model"})}
    starts = parts("ablation=random")[0].make_warm_starts()
    assert starts[0].parts["language/blocks/vision"] is None
    assert methods["full_mask"].network.image_mask == "full"


def test_the_second_size_is_cogvlm2s():
    *_, treatment, shapes = parts("size=19b")
    # The released index counts bytes: bf16, positions of 1344 pixels, and rotary frequencies.
    positions, frequencies = (96**2 - 16**2) * 1792, 32 * 64
    count = sum(x.size for x in shapes.values())
    assert 2 * (count + positions + frequencies) == 39_006_214_656
    assert treatment["language/blocks/vision/attn/query/bias"].startswith("trained, lr x1, wd x0")
    assert "vision/conv/kernel" in shapes
