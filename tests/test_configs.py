"""Every recipe builds with all options it documents, and its numbers are those of the papers."""

import dataclasses
import functools
import importlib.util
import inspect
import itertools
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers

from big_vlp import trees
from big_vlp.augment.learned import RangeAugment
from big_vlp.augment.photometric import Photometric
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.models.towers.vit import Tower
from big_vlp.recipes import SCENES_VOCABULARY
from big_vlp.run import step
from evaluators.datasets import tasks
from input_pipeline.checks import parts
from input_pipeline.text import train_tokenizer
from input_pipeline.text.tokenizers import LlamaTokenizer, make_tokenizer
from input_pipeline.words import synsets
from tests.input_pipeline.sources.toy_task import image as picture
from tests.input_pipeline.sources.toy_task import write_task

DIRECTORY = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.py"))
RECIPES = ("cosmos", "clip", "siglip", "lit")
DEMOS = ("demo", "emoji", "openclipart")  # with a choice of methods


@functools.cache
def module(name):
    spec = importlib.util.spec_from_file_location(name, DIRECTORY / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def documented(name):
    """The option strings that the docstring's "Options:" paragraph allows, all combinations."""
    found = re.search(r"Options:(.*?)(\n\n|\nData:|$)", module(name).__doc__, re.DOTALL)
    paragraph = found[1] if found else ""
    choices = [
        # What is written in capitals is the user's to fill in.
        [f"{option}={value}" for value in values.split("|") if not re.search("[A-Z]", value)]
        for option, values in re.findall(r"(\w+)=([\w:]+(?:\|[\w:]+)*)", paragraph)
    ]
    choices = [values for values in choices if values]
    if "runlocal" in paragraph:
        choices.append(["runlocal=false", "runlocal"])
    return [",".join(options) for options in itertools.product(*choices)]


def experiment(name, arg=None):
    return Experiment.from_config(module(name).get_config(arg))


def test_documented_options_are_found():
    assert set(RECIPES) < set(NAMES)
    assert len(documented("cosmos")) == 2 * 5 * 2
    assert "model=vitb32,data=pixelprose,runlocal=false" in documented("cosmos")
    assert set(documented("demo")) == {"method=cosmos", "method=clip"}


@pytest.mark.parametrize("name", NAMES)
def test_all_options_build(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # where there are no prepared data, only vocabularies
    for data in ("cc3m", "datacomp", "emoji", "openclipart"):
        (tmp_path / "data" / data).mkdir(parents=True)
        shutil.copy(SCENES_VOCABULARY, tmp_path / "data" / data / "vocabulary.tsv")
    for model, file in (("vicuna-7b-v1.5", "tokenizer.model"), ("llama-3-8b", "tokenizer.json")):
        (tmp_path / "models" / model).mkdir(parents=True)
        write_tokenizer(tmp_path / "models" / model / file)
    pieces = train_tokenizer.train(["Question: what color is the shape? Short answer:"], 360)
    (tmp_path / "data" / "easy_vqa.model").write_bytes(pieces)
    # Many options give the same parts, and in a laptop's version the same everything.
    distinct = {
        json.dumps(made.as_json()): made
        for made in (experiment(name, arg) for arg in documented(name))
    }
    methods, checkpoints = {}, {}
    for made in distinct.values():
        views = made.make_views(made.preprocess_record.image_size)
        key = json.dumps([made.method, made.preprocess])
        method = methods[key] = methods.get(key) or made.make_method()
        checkpoints[json.dumps(made.checkpoint)] = made
        assert made.make_optimizer(method).schedule.total_steps == made.total_steps
        made.make_mesh()
        assert made.log_every_steps > 0
        spec = views.spec()
        if made.preprocess_record.tokenizer is not None:
            # Ids beyond the table would be looked up as NaN.
            tokenizer = make_tokenizer(made.preprocess_record.tokenizer)
            assert tokenizer.vocab_size <= made.method["model"]["text"]["vocab_size"]
            if made.method["name"] != "cogvlm":  # whose rows hold an image too
                assert spec["tokens"][0][-1] == made.preprocess_record.context_length
        check_evaluators(made)
        if made.data["name"] == "scenes":  # it needs no file, so all of it can be built
            loader = made.make_loader()
            if made.plan["name"] == "constant":
                found = {k: (x.shape[1:], x.dtype) for k, x in loader.batch(0).items()}
                assert found == spec
            averaged = method.shapes[1]
            for evaluator in made.make_evaluators(method, made.make_mesh()).values():
                assert evaluator.weights == "model" or averaged
        else:
            with pytest.raises(ConfigError, match=r"config.data: .*(not exist|is not in)"):
                made.make_loader()
    for number, made in enumerate(checkpoints.values()):
        made.make_checkpoints(tmp_path / str(number)).close()


def write_tokenizer(path):
    """A small one in the place of LLaMA's or Llama 3's."""
    if path.suffix == ".model":
        shutil.copy(LlamaTokenizer("scenes").path, path)
        return
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    names = ("begin_of_text", "end_of_text", "reserved_special_token_0")
    made.add_special_tokens([f"<|{name}|>" for name in names])
    made.save(str(path))


def check_evaluators(made):
    """Each evaluator exists and takes the section's arguments; the data need not be there."""
    assert made.evals or made.method["name"] == "catlip"  # which publishes no held-out data
    for section in made.evals.values():
        arguments = dict(section)
        evaluator = parts.find("evaluator", "evaluators", arguments.pop("evaluator"), "Evaluator")
        assert arguments.pop("weights") in ("model", "averaged")
        assert arguments.pop("every_steps") > 0
        if (task := arguments.pop("task", None)) is not None:
            assert tasks.task(task)
        if (paper := arguments.pop("paper", None)) is not None:
            assert tasks.paper(paper)
        inspect.signature(evaluator).bind("predict_fns", "preprocess", "mesh", **arguments)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_evaluate_what_is_whole_in_data(tmp_path, monkeypatch, capsys, name):
    """A download under way, or a set as it is published, stops no training."""
    monkeypatch.chdir(tmp_path)
    for folder in ("wds_cars_test", "wds_imagenet1k_test", "wds_food101_test"):
        write_task(tmp_path / "data" / folder, [[{"png": picture(), "cls": b"0"}]] * 2)
    (tmp_path / "data" / "wds_food101_test" / "test" / "1.tar").unlink()
    (tmp_path / "data" / "sugarcrepe").mkdir()
    (tmp_path / "data" / "sugarcrepe" / "swap_att.json").touch()
    made = experiment(name)
    often = {section: asked["every_steps"] for section, asked in made.evals.items()}
    end, averaged = made.total_steps, name == "cosmos"
    expected = {"coco_val2017": 2500, "cars": end, "imagenet1k": 2500}
    if averaged:
        expected |= {f"{section}_averaged": steps for section, steps in expected.items()}
        assert made.evals["cars_averaged"]["paper"] == "cosmos_vitb16_cc3m"
    assert often == expected
    assert made.evals["coco_val2017"]["task"] == "cosmos/coco_val2017"
    [line] = capsys.readouterr().err.splitlines()
    assert "wds_food101_test: lacks 1 of 2 tars; sugarcrepe: holds no prepared shards" in line
    local = experiment(name, "runlocal").evals
    assert local.keys() == {"coco_val2017", "coco_val2017_averaged"} & expected.keys()
    assert not any(key in asked for asked in local.values() for key in ("task", "paper"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arg", ["modle=vitb16", "verbose", "batch_size=3"])
def test_unknown_options(name, arg):
    with pytest.raises(ValueError, match=f"Unknown config option '{arg.split('=')[0]}'"):
        module(name).get_config(arg)


@pytest.mark.parametrize(
    "name, arg, message",
    [(name, "model=vitg8", "'vitg8'.*vitb16") for name in RECIPES]
    + [(name, "data=laion", "'laion'.*cc12m") for name in RECIPES]
    + [(name, "runlocal=maybe", "runlocal is a switch, not 'maybe'") for name in RECIPES]
    + [(name, "model", "model.*needs a value") for name in RECIPES]
    + [(name, "method=siglip", "'siglip'.*cosmos") for name in DEMOS]
    + [("catlip", "model=vitb16", "'vitb16'.*h16"), ("catlip", "data=yfcc", "'yfcc'.*cc3m")]
    + [("transfer", "fraction=2", "fraction=2.0"), ("transfer", "layer_decay=0.7", "for mode=fine")]
    + [("transfer", "task=cifar", "'cifar'.*places"), ("transfer", "mode=lora", "'lora'.*probe")]
    + [("siglip", "vocab_size=32k", "vocab_size.*'32k'")],
)
def test_bad_options(name, arg, message):
    with pytest.raises(ValueError, match=message):
        module(name).get_config(arg)


@pytest.mark.parametrize("name", NAMES)
def test_configs_do_not_share_state(name):
    before = module(name).get_config().to_dict()
    for arg in documented(name):
        module(name).get_config(arg)
    assert module(name).get_config().to_dict() == before


@pytest.mark.parametrize("name", [*RECIPES, "catlip", "transfer"])
def test_runlocal_is_the_same_recipe_but_small(name):
    full, local = (module(name).get_config(arg).to_dict() for arg in ("", "runlocal"))
    # It logs more often than the default; the full recipe may leave that to it. LiT needs a model.
    needed = {"init"} if name == "lit" else set()
    assert local.keys() == (full.keys() - needed) | {"log_every_steps"}
    assert local["data"]["name"] == "scenes"
    assert local["method"]["name"] == full["method"]["name"]
    widths = [
        x["method"]["model"].get("image", x["method"]["model"])["width"] for x in (local, full)
    ]
    assert widths[0] < widths[1]
    assert local["total_steps"] * local["global_batch"] < 1000


@functools.cache
def parameter_shapes(name, arg):
    method = experiment(name, arg).make_method()
    return method.shapes[0]


PARAMETERS = {
    ("cosmos", "vitb16"): 152_382_466,
    ("cosmos", "vitb32"): 154_039_042,
    ("clip", "vitb16"): 149_620_737,
    ("clip", "vitb32"): 151_277_313,
    # The published model's 203,155,970, and CLIP's vocabulary instead of 32,000 pieces.
    ("siglip", "vitb16"): 203_155_970 + (49_408 - 32_000) * 768,
}


@pytest.mark.parametrize("name, model", PARAMETERS)
def test_parameter_counts(name, model):
    shapes = parameter_shapes(name, f"model={model}")
    assert sum(x.size for x in jax.tree.leaves(shapes)) == PARAMETERS[name, model]


@pytest.mark.parametrize(
    "name, arg",
    [("cosmos", "model=vitb16"), ("cosmos", "model=vitb32"), ("clip", ""), ("siglip", "")],
)
def test_a_full_size_step_traces(name, arg):
    made = experiment(name, arg)
    method = made.make_method()
    optimizer = made.make_optimizer(method)
    batch = {
        key: jax.ShapeDtypeStruct((made.global_batch, *shape), dtype)
        for key, (shape, dtype) in made.make_views(224).spec().items()
    }
    key = jax.random.key(0)
    state = jax.eval_shape(step.make_init(method, optimizer), key)
    train_step = step.make_train_step(method, optimizer)
    new_state, metrics = jax.eval_shape(train_step, state, batch, 0, key)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == (
        jax.tree.map(lambda x: (x.shape, x.dtype), state)
    )
    assert {x.dtype.name for x in jax.tree.leaves(state["model"])} == {"float32"}
    assert {"loss", "grad_norm", "learning_rate", "bad_steps"} < metrics.keys()
    assert all(x.shape == () for x in metrics.values())


@pytest.fixture
def words_24320(tmp_path, monkeypatch):
    """A vocabulary as large as the released one, of any synsets."""
    keys = list(synsets.load())[:24_320]
    lines = [f"{key}\t{30_000 - i}\t{synsets.load().name(key)}\n" for i, key in enumerate(keys)]
    (tmp_path / "data" / "datacomp").mkdir(parents=True)
    (tmp_path / "data" / "datacomp" / "vocabulary.tsv").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)


# Parameters with the classifier of 24,320 words, per-GPU batch and GPUs, peak learning rate.
CATLIP = {
    "b16": (104_657_414, 1e-3),
    "l16": (328_766_214, 6e-4),
    "h16": (663_152_646, 4e-4),
}


@pytest.mark.parametrize("model", CATLIP)
def test_published_catlip_recipes(words_24320, model):
    parameters, peak = CATLIP[model]
    made = experiment("catlip", f"model={model}")
    method = made.make_method()
    optimizer = made.make_optimizer(method)
    shapes, statistics = trees.split_statistics(method.shapes[0])
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters
    assert len(trees.flatten(statistics)) == 4
    assert (made.global_batch, made.total_steps, len(made.make_plan().shapes)) == (
        65_536,
        200_000,
        13,
    )
    assert (optimizer.schedule.learning_rate, optimizer.schedule.final_learning_rate) == (
        peak,
        peak / 100,
    )
    assert (optimizer.weight_decay, optimizer.schedule.warmup_steps, optimizer.clip_norm) == (
        0.2,
        10_000,
        1,
    )
    assert (optimizer.algorithm.beta1, optimizer.algorithm.beta2, optimizer.algorithm.epsilon) == (
        0.9,
        0.999,
        1e-8,
    )
    for path, (_, wd) in optimizer.assign(shapes).items():
        assert wd == (0 if re.search(r"(bias|scale)$", path) else 1), path
    assert (method.ema_decay, method.prior, method.positive_weight) == (1 - 5e-4, 0.5, 1.0)
    views = made.make_views(224)
    assert (views.crop_scale, views.flip_prob) == ((0.08, 1.0), 0.5)
    pre = made.preprocess_record
    assert (pre.resize_size, pre.interpolation, pre.mean, pre.std) == (
        232, "bilinear", (0, 0, 0), (1, 1, 1),
    )  # fmt: skip


def test_catlip_counts_its_epochs_in_examples():
    """Smaller images come in larger batches, so an epoch has fewer steps than the nominal batch
    makes of it."""
    made = experiment("catlip", "data=cc3m")
    _, last, before = made.make_plan()(made.total_steps - 1)
    assert (before + last) / 2_900_000 == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize(
    "name, arg, epochs",
    [("transfer", "mode=finetune", 10), ("transfer", "", 30), ("segmentation", "", 50)],
)
def test_transfer_learns_at_one_rate_an_epoch(name, arg, epochs):
    """corenet's cosine and RangeAugment's curriculum count epochs, the warm-up counts steps."""
    made = experiment(name, arg)
    optimizer = made.make_optimizer(method := made.make_method())
    steps = made.total_steps // epochs
    rates = jax.vmap(optimizer.schedule)(np.arange(made.total_steps))
    assert rates[0] == np.float32(1e-6)
    expected = [
        optimizer.schedule.final_learning_rate
        + (optimizer.schedule.learning_rate - optimizer.schedule.final_learning_rate)
        * (1 + np.cos(np.pi * epoch / epochs)) / 2
        for epoch in range(epochs)
    ]  # fmt: skip
    after = np.repeat(expected, steps)[500:]
    np.testing.assert_allclose(rates[500:], after, rtol=1e-4)
    if method.augment is not None:
        targets = jax.vmap(RangeAugment(**method.augment).target)(np.arange(made.total_steps))
        assert len(set(np.asarray(targets).tolist())) == epochs


@pytest.mark.parametrize("captions", ["raw", "random"])
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_baselines_read_raw_captions_unless_told(name, captions):
    modes = {
        data: experiment(name, f"data={data},captions={captions}").views["caption_mode"]
        for data in ("cc3m", "pixelprose")
    }
    assert modes == {"cc3m": captions, "pixelprose": f"{captions}_pixelprose"}
    assert experiment(name).views["caption_mode"] == "raw"
    with pytest.raises(ValueError, match="Unknown captions 'long'"):
        experiment(name, "captions=long")


def test_siglip_decays_as_big_vision_does():
    """1e-4 of a kernel a step at the peak, and nothing of tables, the probe and vectors."""
    optimizer = experiment("siglip").make_optimizer(experiment("siglip").make_method())
    assert optimizer.schedule.learning_rate * optimizer.weight_decay == pytest.approx(1e-4)
    for path, (lr, wd) in optimizer.assign(parameter_shapes("siglip", "model=vitb16")).items():
        assert (lr, wd) == (1, path.endswith("kernel")), path


@pytest.mark.parametrize("data", ["cc3m", "cc12m", "merged30m"])
def test_siglip_warms_up_in_a_tenth_of_its_run_at_most(data):
    made = experiment("siglip", f"data={data}")
    assert made.optim["warmup_steps"] <= min(2000, made.total_steps / 10)
    views = made.make_views(32)
    assert views.crop_scale is None and views.flip_prob == 0  # the whole image, squashed
    for tower in ("image", "text"):
        assert made.method["model"][tower]["norm_epsilon"] == 1e-6


TRANSFER = {  # (task, mode): epochs, batch, peak and final learning rate, decay, sizes
    ("imagenet", "probe"): (30, 256, 3e-5, 1e-6, 0.0, 1),
    ("imagenet", "finetune"): (10, 512, 3e-5, 3e-6, 0.05, 7),
    ("places", "finetune"): (10, 512, 3e-5, 3e-6, 0.05, 7),
    ("coco", "finetune"): (10, 128, 1e-5, 1e-6, 0.05, 25),
}
IMAGES = {"imagenet": 1_281_167, "places": 1_803_460, "coco": 118_287}


@pytest.mark.parametrize("task, mode", TRANSFER)
def test_published_transfer_recipes(task, mode):
    epochs, batch, peak, final, decay, sizes = TRANSFER[task, mode]
    made = experiment("transfer", f"task={task},mode={mode}")
    optimizer = made.make_optimizer(method := made.make_method())
    assert made.global_batch == batch
    _, last, before = made.make_plan()(made.total_steps - 1)
    assert abs((before + last) / IMAGES[task] - epochs) < 0.2  # sizes are drawn
    assert (optimizer.schedule.learning_rate, optimizer.schedule.final_learning_rate) == (
        peak,
        final,
    )
    assert optimizer.weight_decay == decay
    assert len(made.make_plan().shapes) == sizes
    trainable = optimizer.is_trainable(parameters := trees.split_statistics(method.shapes[0])[0])
    frozen = [path for path in trees.flatten(parameters) if not trainable(path)]
    assert bool(frozen) == (mode == "probe")
    assert all(path.startswith("tower/") for path in frozen)


def test_transfer_at_512_pixels():
    made = experiment("transfer", "mode=finetune,image_size=512")
    sizes = [size for size, _ in made.make_plan().shapes]
    assert sorted(sizes) == list(range(256, 513, 32))
    record = made.preprocess_record
    assert (record.image_size, record.resize_size) == (512, 512)
    for arg in ("task=coco,image_size=224", "task=scenes,image_size=512", "image_size=384"):
        with pytest.raises(ValueError, match=r"image_size=\d+: task=\w+ has \("):
            experiment("transfer", arg)


def test_lit_trains_the_text_tower_alone():
    made = experiment("lit", "model=vitl14,activation=quick_gelu")
    method = made.make_method()
    trainable = made.make_optimizer(method).is_trainable(method.shapes[0])
    for path in trees.flatten(method.shapes[0]):
        assert trainable(path) != path.startswith("image_tower/"), path
    assert made.make_warm_starts()[0].parts == {"image_tower": "image_tower"}


def test_learning_rates_that_fall_towards_the_first_layer():
    made = experiment("transfer", "mode=finetune,layer_decay=0.5,model=b16")
    method = made.make_method()
    parameters, _ = trees.split_statistics(method.shapes[0])
    rules = made.make_optimizer(method).assign(parameters)
    blocks = tuple(round(0.5 ** (12 - k), 5) for k in range(12))
    for path, (rate, decay) in rules.items():
        if path.startswith("tower/transformer"):
            assert rate == blocks
        elif path.startswith("tower/norm_post"):
            assert rate == 0.5
        elif path.startswith("classifier"):
            assert (rate, decay) == (1, 0)
        else:
            assert rate == round(0.5**13, 5)


COSMOS = {  # data: (global batch, momentum, steps), arXiv 2412.01814 and its training scripts
    "cc3m": (1024, 0.999, 88_576),
    "cc12m": (4096, 0.99, 78_336),
    "yfcc15m": (4096, 0.99, 110_080),
    "merged30m": (4096, 0.99, 210_432),
    "pixelprose": (4096, 0.99, 117_760),
}


@pytest.mark.parametrize(
    "data, model", [*((data, "vitb16") for data in COSMOS), ("merged30m", "vitb32")]
)
def test_published_cosmos_recipes(data, model):
    made = experiment("cosmos", f"data={data},model={model}")
    method = made.make_method()
    optimizer = made.make_optimizer(method)
    assert (made.global_batch, method.ema_decay, made.total_steps) == COSMOS[data]
    assert method.ema_decay_steps is None
    parts = ("cc3m", "cc12m", "yfcc15m") if data == "merged30m" else (data,)
    sources = made.data.get("sources", (made.data,))
    assert tuple(sources) == tuple({"name": "prepared", "path": f"data/{p}"} for p in parts)

    assert (optimizer.schedule.learning_rate, optimizer.weight_decay) == (5e-4, 0.5)
    assert (optimizer.algorithm.beta1, optimizer.algorithm.beta2, optimizer.algorithm.epsilon) == (
        0.9,
        0.98,
        1e-8,
    )
    assert (optimizer.schedule.warmup_steps, optimizer.clip_norm) == (2000, None)
    for path, (lr, wd) in optimizer.assign(parameter_shapes("cosmos", f"model={model}")).items():
        exempt = re.search(r"bias$|norm|class_token|logit_scale", path)
        assert (lr, wd) == (1, 0 if exempt else 1), path

    views = made.make_views(224)
    sizes = views.image_size, views.local_size, views.num_global, views.num_local
    assert sizes == (224, 96, 2, 6)
    assert (views.global_scale, views.local_scale) == ((0.4, 1.0), (0.05, 0.4))
    assert (views.flip_prob, views.num_captions, views.context_length) == (0.5, 8, 77)
    assert views.caption_mode == ("textcrop_pixelprose" if data == "pixelprose" else "textcrop")
    batch = {k: np.zeros((1, *shape), dtype) for k, (shape, dtype) in views.spec().items()}
    kinds = jax.eval_shape(method.model_images, batch, jax.random.split(jax.random.key(0), 1))
    assert {kind: x.shape[1:3] for kind, x in kinds.items()} == {
        "global": (2, 224),
        "local": (6, 96),
    }
    colours = {"jitter_prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
               "hue": 0.1, "grey_prob": 0.2}  # fmt: skip
    photometric = {
        kind: dataclasses.asdict(Photometric(**settings))
        for kind, settings in method.photometric.items()
    }
    assert photometric == {
        "global_1": {**colours, "blur_prob": 1.0, "solarize_prob": 0.0},
        "global_2": {**colours, "blur_prob": 0.1, "solarize_prob": 0.2},
        "local": {**colours, "blur_prob": 0.5, "solarize_prob": 0.0},
    }
    towers = method.network
    image_size = {"width": 768, "layers": 12, "heads": 12, "patch_size": int(model[4:])}
    assert image_size.items() < towers.image.items()
    assert {"width": 512, "layers": 12, "heads": 8, "vocab_size": 49_408}.items() < (
        towers.text.items()
    )
    assert (towers.embed_dim, towers.pooler_heads) == (512, 8)
    assert (towers.image | towers.text).get("activation", Tower.activation) == "gelu"
