"""configs/vlm.py: towers fit the runs they come from, what each stage trains, the small run."""

import jax
import pytest

from big_vlp import trees
from big_vlp.experiment import Experiment
from big_vlp.storage import compared
from configs import catlip, clip, cosmos, siglip, vlm

ADAPTER_MLP, WIDTH = 4096, 4096
LANGUAGE = 6_738_415_616


def method_of(config):
    config.preprocess.tokenizer = "llama:scenes"
    made = Experiment.from_config(config)
    return made, made.make_method()


def trained(arg):
    """{part: (trained, frozen)} parameters."""
    made, method = method_of(vlm.get_config(arg))
    shapes, _ = trees.split_statistics(method.shapes[0])
    is_trained = made.make_optimizer(method).is_trainable(shapes)
    found = {}
    for path, shape in trees.flatten(shapes).items():
        part = "experts" if "blocks/vision" in path else path.split("/")[0]
        counts = found.setdefault(part, [0, 0])
        counts[not is_trained(path)] += shape.size
    return {part: tuple(counts) for part, counts in found.items()}


def adapter(width):
    inner = width * WIDTH + 3 * WIDTH * ADAPTER_MLP
    return inner + 4 * WIDTH  # norm, boi and eoi


@pytest.mark.parametrize(
    "arg, moves",
    [
        ("stage=pretrain", {"adapter"}),
        ("stage=tune", {"adapter", "language"}),
        ("stage=pretrain,experts", {"adapter", "experts"}),
        ("stage=tune,experts", {"adapter", "language", "experts"}),
    ],
)
def test_what_is_trained(arg, moves):
    found = trained(arg)
    assert {part for part, (count, _) in found.items() if count} == moves
    assert {part for part, (_, count) in found.items() if count} == found.keys() - moves
    assert sum(found["language"]) == LANGUAGE
    assert found["adapter"] == (adapter(1024), 0)
    assert ("experts" in found) == ("experts" in arg)


SOURCES = {
    "vitb16": lambda: cosmos.get_config("model=vitb16"),
    "vitb32": lambda: clip.get_config("model=vitb32"),
    "siglip_b16": lambda: siglip.get_config("model=vitb16"),
    "catlip_b16": lambda: catlip.get_config("model=b16,data=cc3m,runlocal"),
}


@pytest.mark.parametrize("tower", vlm.TOWERS)
def test_towers_are_those_that_were_trained(tower):
    """A start compares what weights do not tell; shapes are those of the old blocks but one."""
    config = vlm.get_config(f"tower={tower}")
    _, method = method_of(config)
    vision = trees.flatten(method.shapes[0]["vision"])
    if tower not in SOURCES:
        return
    _, old = source(SOURCES[tower]())
    parts = config.init.image.parts.to_dict()
    assert compared.differences(method, old, parts) == []
    assert "norm_post/scale" not in vision
    if tower.startswith("catlip"):
        return  # which needs its vocabulary at full size
    shapes = trees.flatten(old.shapes[0]["image_tower"])
    for path, shape in vision.items():
        blocks = "/blocks/" in f"/{path}"
        assert (shape.shape[0] + 1 if blocks else shape.shape[0]) == shapes[path].shape[0], path
        assert shape.shape[1:] == shapes[path].shape[1:]


def source(config):
    made = Experiment.from_config(config)
    return made, made.make_method()


def test_a_teacher_or_a_student():
    assert vlm.get_config("weights=averaged").init.image.weights == "averaged"
    assert "weights" not in vlm.get_config().init.image
    assert vlm.get_config("stage=tune,start=runs/x").init.model.model == "runs/x"
    copied = vlm.get_config("experts").init.language.parts
    assert copied["language/blocks/vision"] == "language/blocks/language"
    assert vlm.get_config("tower=eva02_l14").init.image.dropped_blocks == 0


def test_llavas_sets_are_wanted():
    evals = vlm.get_config("stage=tune").evals
    assert set(evals) == {"gqa_testdev", "textvqa_val", "pope"}
    assert evals.pope.by == "category" and evals.pope.data.path == "data/pope"
    assert evals.textvqa_val.task == "llava/textvqa_val"


@pytest.mark.parametrize("tower", [name for name in vlm.TOWERS if name != "demo"])
def test_the_small_run_of_every_tower_traces(tower):
    made, method = method_of(vlm.get_config(f"tower={tower},stage=tune,runlocal"))
    batch = {
        key: jax.ShapeDtypeStruct((2, *shape), dtype)
        for key, (shape, dtype) in made.make_views(made.preprocess_record.image_size).spec().items()
    }
    parameters, statistics = trees.split_statistics(method.shapes[0])

    def loss(parameters, statistics, batch):
        key = jax.random.key(0)
        return method.loss(parameters, {}, {}, statistics, batch, rng=key, step=0)[0]

    assert jax.eval_shape(loss, parameters, statistics, batch).shape == ()
