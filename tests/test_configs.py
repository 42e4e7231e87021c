"""Every recipe builds with all options it documents, and its numbers are those of the papers."""

import dataclasses
import functools
import importlib.util
import inspect
import itertools
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from big_vlp import step
from big_vlp.augment import Photometric
from big_vlp.experiment import ConfigError, Experiment
from input_pipeline.tokenizers import make_tokenizer

DIRECTORY = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.py"))
RECIPES = ("cosmos", "clip", "siglip")


@functools.cache
def module(name):
    spec = importlib.util.spec_from_file_location(name, DIRECTORY / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def documented(name):
    """The option strings that the docstring's "Options:" paragraph allows, all combinations."""
    paragraph = re.search(r"Options:(.*?)(\n\n|\nData:|$)", module(name).__doc__, re.DOTALL)[1]
    choices = [
        # What is written in capitals is the user's to fill in.
        [f"{option}={value}" for value in values.split("|") if not re.search("[A-Z]", value)]
        for option, values in re.findall(r"(\w+)=([\w:]+(?:\|[\w:]+)*)", paragraph)
    ]
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
    monkeypatch.chdir(tmp_path)  # where there are no prepared data
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
        assert made.make_optimizer(method).total_steps == made.total_steps
        made.make_mesh()
        assert made.log_every_steps > 0
        spec = views.spec()
        # Ids beyond the table would be looked up as NaN.
        assert (
            make_tokenizer(made.preprocess_record.tokenizer).vocab_size
            <= (made.method["model"]["text"]["vocab_size"])
        )
        assert spec["tokens"][0][-1] == made.preprocess_record.context_length
        check_evaluators(made)
        if made.data["name"] == "scenes":  # it needs no file, so all of it can be built
            loader = made.make_loader()
            assert {k: (x.shape[1:], x.dtype) for k, x in loader.batch(0).items()} == spec
            averaged = jax.eval_shape(method.init, jax.random.key(0))[1]
            for evaluator in made.make_evaluators(method, made.make_mesh()).values():
                assert evaluator.weights == "model" or averaged
        else:
            with pytest.raises(ConfigError, match=r"config.data: .*dataset.json does not exist"):
                made.make_loader()
    for number, made in enumerate(checkpoints.values()):
        made.make_checkpoints(tmp_path / str(number)).close()


def check_evaluators(made):
    """Each evaluator exists and takes the section's arguments; the data need not be there."""
    assert made.evals
    for section in made.evals.values():
        arguments = dict(section)
        evaluator = importlib.import_module(f"evaluators.{arguments.pop('evaluator')}").Evaluator
        assert arguments.pop("weights") in ("model", "averaged")
        assert arguments.pop("every_steps") > 0
        inspect.signature(evaluator).bind("predict_fns", "preprocess", "mesh", **arguments)


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
    + [(name, "method=siglip", "'siglip'.*cosmos") for name in NAMES if name not in RECIPES]
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


@pytest.mark.parametrize("name", RECIPES)
def test_runlocal_is_the_same_recipe_but_small(name):
    full, local = (module(name).get_config(arg).to_dict() for arg in ("", "runlocal"))
    assert full.keys() == local.keys()
    assert local["data"]["name"] == "scenes"
    assert local["method"]["name"] == full["method"]["name"]
    assert local["method"]["model"]["image"]["width"] < full["method"]["model"]["image"]["width"]
    assert local["total_steps"] * local["global_batch"] < 1000


@functools.cache
def parameter_shapes(name, arg):
    method = experiment(name, arg).make_method()
    return jax.eval_shape(method.init, jax.random.key(0))[0]


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
    assert (made.global_batch, method.momentum, made.total_steps) == COSMOS[data]
    assert method.momentum_steps is None
    parts = ("cc3m", "cc12m", "yfcc15m") if data == "merged30m" else (data,)
    sources = made.data.get("sources", (made.data,))
    assert tuple(sources) == tuple({"name": "prepared", "path": f"data/{p}"} for p in parts)

    assert (optimizer.learning_rate, optimizer.weight_decay) == (5e-4, 0.5)
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.98, 1e-8)
    assert (optimizer.warmup_steps, optimizer.clip_norm) == (2000, None)
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
    towers = method.towers
    image_size = {"width": 768, "layers": 12, "heads": 12, "patch_size": int(model[4:])}
    assert image_size.items() < towers.image.items()
    assert {"width": 512, "layers": 12, "heads": 8, "vocab_size": 49_408}.items() < (
        towers.text.items()
    )
    assert (towers.embed_dim, towers.pooler_heads) == (512, 8)
    assert towers.image["activation"] == towers.text["activation"] == "gelu"
