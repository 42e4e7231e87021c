"""configs/vlm.py: towers fit the runs they come from, what each stage trains, the small run."""

import jax
import pytest

from big_vlp import trees
from big_vlp.convert.dual import open_clip, published
from big_vlp.experiment import Experiment
from big_vlp.models.towers import make_tower
from big_vlp.storage import compared
from configs import catlip, clip, cosmos, demo, siglip, vlm
from input_pipeline.preprocess import CLIP_MEAN, CLIP_STD

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


# Where each tower comes from: a recipe, or a file that the converter describes.
SOURCES = {
    "vitb16": lambda: cosmos.get_config("model=vitb16"),
    "vitb32": lambda: clip.get_config("model=vitb32"),
    "siglip_b16": lambda: siglip.get_config("model=vitb16"),
    "catlip_b16": lambda: catlip.get_config("model=b16,data=cc3m,runlocal"),
    "catlip_l16": lambda: catlip.get_config("model=l16,data=cc3m,runlocal"),
    "catlip_h16": lambda: catlip.get_config("model=h16,data=cc3m,runlocal"),
    "demo": lambda: demo.get_config(),
}


@pytest.mark.parametrize("tower", SOURCES)
def test_towers_are_those_that_were_trained(tower):
    """A start compares what weights do not tell; shapes are those of the old blocks but one."""
    config = vlm.get_config(f"tower={tower}")
    _, method = method_of(config)
    vision = trees.flatten(method.shapes[0]["vision"])
    _, old = source(SOURCES[tower]())
    parts = config.init.image.parts.to_dict()
    assert compared.towers_of(method, parts)
    assert compared.differences(method, old, parts) == []
    if tower.startswith("catlip"):
        config.preprocess.mean = (0.5, 0.5, 0.5)
    else:
        config.method.model.image.activation = "gelu_tanh" if tower != "siglip_b16" else "gelu"
    assert compared.differences(method_of(config)[1], old, parts)
    assert "norm_post/scale" not in vision
    if tower.startswith("catlip"):
        return  # which needs its vocabulary at full size
    shapes = trees.flatten(old.shapes[0]["image_tower"])
    for path, shape in vision.items():
        blocks = "/blocks/" in f"/{path}"
        assert (shape.shape[0] + 1 if blocks else shape.shape[0]) == shapes[path].shape[0], path
        assert shape.shape[1:] == shapes[path].shape[1:]


def test_the_tower_of_clip_is_the_published_one():
    _, method = method_of(vlm.get_config())
    released = open_clip.from_config(published.config("ViT-L-14-336/openai"), None)
    record, tower = released.preprocess, method.network.image_tower.arguments()
    same = ("activation", "norm_epsilon", "patch_size", "width", "heads", "norm_pre", "class_token")
    theirs = released.model["image"]
    assert {name: tower[name] for name in same} == {name: theirs[name] for name in same}
    assert tower["layers"] == theirs["layers"] - 1
    for name in ("image_size", "mean", "std"):
        assert getattr(method.preprocess, name) == getattr(record, name)


def test_the_tower_of_eva02_is_the_published_one():
    """As its importer reads it, with what a model of its own has by default."""
    _, method = method_of(vlm.get_config("tower=eva02_l14"))
    tower = method.network.image_tower
    wanted = ("image_size", "patch_size", "width", "layers", "heads", "mlp_dim")
    own = make_tower("model.image", "eva02", {name: getattr(tower, name) for name in wanted})
    assert tower.arguments() == own.arguments() and tower.epsilon == 1e-6
    assert tower.image_size // tower.patch_size == tower.rope_grid == 16
    assert (method.preprocess.mean, method.preprocess.std) == (CLIP_MEAN, CLIP_STD)


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


def test_published_numbers_stand_beside_the_published_tower_alone():
    assert all(x.paper == "llava-1.5-7b" for x in vlm.get_config("stage=tune").evals.values())
    others = vlm.get_config("stage=tune,tower=vitb16").evals
    assert not any("paper" in x for x in others.values())


def test_the_demo_has_its_own_tower():
    with pytest.raises(ValueError, match=r"data=scenes .* not tower=vitb16"):
        vlm.get_config("data=scenes,tower=vitb16")
    assert vlm.get_config("data=scenes") == vlm.get_config("data=scenes,tower=demo")


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
