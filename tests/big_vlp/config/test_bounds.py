"""Every number that a config can hold has bounds, and they are looked at before anything else."""

import importlib
import inspect
import types
import typing
from collections.abc import Mapping

import pytest

import input_pipeline.sources
from big_vlp import bounds
from big_vlp.augment.learned import RangeAugment
from big_vlp.augment.photometric import Photometric
from big_vlp.experiment import ConfigError, Experiment, ScheduledEvaluator
from big_vlp.models import cogvlm, llama, text, two_towers
from big_vlp.models.heads import dense
from big_vlp.models.lora import Lora
from big_vlp.parallel import meshes
from big_vlp.run.optim import make_optimizer
from big_vlp.run.optim.schedules import SCHEDULES
from big_vlp.run.optim.updates import UPDATES
from big_vlp.storage.checkpoint import Checkpoints
from big_vlp.storage.warm_start import WarmStart
from big_vlp.telemetry.profile import Profile
from big_vlp.telemetry.tracker import Tracker
from input_pipeline.checks import parts
from input_pipeline.loader import Loader
from input_pipeline.preprocess import Preprocess
from tests.big_vlp.config.toy_config import make_config, with_value
from tests.test_configs import NAMES, documented, module

NAN, INF = float("nan"), float("inf")


def of_modules(package, name):
    """The class `name` of every part of a package."""
    return [getattr(importlib.import_module(m), name) for m in parts.known(package).values()]


BUILT = {  # section: what it describes
    "": [Experiment],
    "plan": of_modules("input_pipeline.plans", "Plan"),
    "preprocess": [Preprocess],
    "data": [input_pipeline.sources.make_source, *of_modules("input_pipeline.sources", "Source")],
    "views": of_modules("input_pipeline.views", "Views"),
    "loader": [Loader],
    "method": of_modules("big_vlp.methods", "Method"),
    "method.photometric": [Photometric],
    "method.augment": [RangeAugment],
    "method.head": [dense.DeepLabV3],
    "method.lora": [Lora],
    "method.model": [
        *of_modules("big_vlp.models.towers", "Tower"), cogvlm.CogVLM, llama.Llama,
        two_towers.TwoTowers, two_towers.CosmosTowers, text.TextTransformer,
    ],
    "optim": [make_optimizer, *SCHEDULES.values(), *UPDATES.values()],
    "mesh": [meshes.make_mesh],
    "checkpoint": [Checkpoints],
    "evals.x": [ScheduledEvaluator, *of_modules("evaluators", "Evaluator")],
    "init.x": [WarmStart],
    "profile": [Profile],
    "wandb": [Tracker],
}  # fmt: skip
# Numbers that configs do not give.
DECIDED_ELSEWHERE = {"rows", "plan", "views"}


def parts_of(annotation):
    """The types that an annotation is made of."""
    arguments = typing.get_args(annotation)
    return {annotation}.union(*map(parts_of, arguments)) if arguments else {annotation}


def numeric_keys():
    """(path, annotation) of every argument of what sections describe that is or holds a number."""
    for section, made in BUILT.items():
        for fn in made:
            for name, parameter in inspect.signature(fn).parameters.items():
                annotation = parameter.annotation
                if name in DECIDED_ELSEWHERE or not parts_of(annotation) & {int, float}:
                    continue
                if bool in parts_of(annotation):  # a switch or a number, checked where it is used
                    continue
                path = ("config", *filter(None, section.split(".")), name)
                if typing.get_origin(annotation) is Mapping:
                    path = (*path, "any")
                yield path, annotation


def test_every_number_of_every_part_has_bounds():
    found = dict(numeric_keys())
    assert len(found) > 80
    missing = [".".join(path) for path in found if bounds.bounds_of(path) is None]
    assert not missing, f"add a line for these to BOUNDS in big_vlp/bounds.py: {missing}"


def test_none_is_allowed_where_a_part_takes_it():
    wrong = [
        ".".join(path)
        for path, annotation in numeric_keys()
        if isinstance(annotation, types.UnionType)
        and types.NoneType in typing.get_args(annotation)
        and bounds.bounds_of(path).none is None
        and path[-1] != "embed_dim"  # None is for towers that nothing pools
    ]
    assert not wrong


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_the_recipes_has_bounds_and_is_within(name):
    for arg in ("", *documented(name)):
        config = module(name).get_config(arg).to_dict()
        bounds.check(config)
        for path, value in bounds._leaves(("config",), config):
            numbers = [x for x in flat(value) if isinstance(x, int | float)]
            if any(not isinstance(x, bool) for x in numbers):
                assert bounds.bounds_of(path) is not None, path


def flat(value):
    return [y for x in value for y in flat(x)] if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("name", bounds.BOUNDS)
def test_no_key_takes_nonsense(name):
    section, _, key = name.rpartition(".")
    key = "any" if key == "*" else key
    numbers = bounds.BOUNDS[name]

    def config(value):
        return {section or "section": {key: value}}

    lowest = numbers.low if numbers.low is not None else numbers.above
    highest = numbers.high if numbers.high is not None else numbers.below
    wrong = [NAN, INF, -INF, "3", True, [NAN], [1, [INF]]]
    wrong += [] if lowest is None else [min(lowest, *numbers.also, lowest) - 1]
    wrong += [] if highest is None else [highest + 1]
    wrong += [] if numbers.above is None else [numbers.above]
    wrong += [] if numbers.below is None else [numbers.below]
    wrong += [1.5] if numbers.integer else []
    for value in wrong:
        value = [["a", 0, value]] if numbers.named else value
        if numbers.count is not None and not isinstance(value, list):
            value = [value] * (numbers.count or 1)
        with pytest.raises(ValueError, match=rf"^config\.{section or 'section'}: {key}=.*; give"):
            bounds.check(config(value))
    if numbers.none is not None:
        bounds.check(config(None))


def test_numbers_without_bounds_are_finite():
    bounds.check({"method": {"mine": -3.5, "name": "nan", "pair": (1, -2)}})
    for value in (NAN, (1, INF), [[NAN]]):
        with pytest.raises(ValueError, match=r"config\.method: mine=.*; give a finite number"):
            bounds.check({"method": {"mine": value}})


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("seed", -1, "config.seed=-1; give a whole number from 0 to"),
        ("total_steps", 0, "config.total_steps=0; give"),
        ("global_batch", 2.5, "config.global_batch=2.5; give a whole number, 1 or more"),
        ("checkpoint.keep_latest", 0, "config.checkpoint: keep_latest=0; give 1 or more"),
        ("checkpoint.keep_every_steps", -5, "config.checkpoint: keep_every_steps=-5; give 1 or mo"),
        ("loader.num_threads", 0, "config.loader: num_threads=0; give 1 or more"),
        ("evals.held_out.batch_size", 0, "config.evals.held_out: batch_size=0; give 1 or more"),
        ("evals.held_out.data.size", 0, "config.evals.held_out.data: size=0; give 1 or more"),
        ("mesh.data", -2, "config.mesh: data=-2; give 1 or more, or -1"),
        ("optim.clip_norm", 0.0, "config.optim: clip_norm=0.0; give a number above 0, or None"),
        ("optim.clip_norm", NAN, "config.optim: clip_norm=nan; give a number above 0, or None"),
        ("optim.learning_rate", INF, "config.optim: learning_rate=inf; give a number above 0"),
        ("optim.rules", ((".*", 1.0, NAN),), "config.optim: rules="),
        ("preprocess.std", (0.0, 1.0, 1.0), "config.preprocess: std="),
        ("views.local_size", "8", "config.views: local_size='8'; give a whole number"),
        ("method.ema_decay", 1.5, "config.method: ema_decay=1.5; give a number from 0 to 1"),
        ("method.accumulate_steps", 0, "config.method: accumulate_steps=0; give 1 or more"),
        ("method.model.image.patch_size", 0, "config.method.model.image: patch_size=0; give 1 or"),
        ("method.photometric.local.blur_prob", -1, "config.method.photometric.local: blur_prob=-1"),
        (
            "data",
            dict(name="mixture", sources=(dict(name="scenes", weight=1), dict(name="x", weight=0))),
            "config.data.sources[1]: weight=0; give a number above 0",
        ),
        ("init", dict(old=dict(model="x", min_similarity=2)), "config.init.old: min_similarity=2"),
    ],
)
def test_a_config_is_looked_at_as_a_whole(path, value, message):
    config = make_config()
    with pytest.raises(ConfigError) as error, config.ignore_type():
        Experiment.from_config(with_value(config, path, value))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
