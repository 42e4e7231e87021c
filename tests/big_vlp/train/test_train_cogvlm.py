"""CogVLM's runs as a whole: resume across the switch of image sizes, and the demo's stages."""

import importlib.util
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.run.log import read_log
from big_vlp.storage.checkpoint import Checkpoints
from big_vlp.storage.model_dir import open_model
from big_vlp.train import train

CONFIGS = Path(__file__).parents[3] / "configs"


def published(name, arg):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def recipe(name, arg, **changes):
    config = published(name, arg)
    config.evals = {}
    config.update(log_every_steps=1, global_batch=4, total_steps=6)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def losses(workdir):
    keys = ("loss", "grad_norm", "learning_rate")
    return [
        (line["step"], [line["values"][key] for key in keys])
        for line in read_log(workdir)
        if line["split"] == "train"
    ]


def test_a_run_resumes_across_the_switch_bit_equally(tmp_path):
    """From both sides of it; with dropout, an average, and frozen weights written once."""
    changes = dict(plan__at_step=3, checkpoint__every_steps=2, optim__warmup_steps=2)
    config = recipe("cogvlm", "stage=2,runlocal", **changes)
    config.checkpoint.keep_latest = 5
    assert config.method.model.text.dropout == 0.1 and config.method.ema_decay
    train(config, tmp_path / "whole")
    expected = losses(tmp_path / "whole")
    assert [step for step, _ in expected] == list(range(6))
    model = open_model(tmp_path / "whole", "averaged").load()
    for name, lost in (("before", (4, 6)), ("behind", (6,))):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        for step in lost:
            shutil.rmtree(tmp_path / name / "checkpoints" / str(step))
        train(config, tmp_path / name)
        assert losses(tmp_path / name) == expected
        found = trees.flatten(open_model(tmp_path / name, "averaged").load())
        for path, value in trees.flatten(model).items():
            np.testing.assert_array_equal(found[path], value, err_msg=path)
    saved = Checkpoints(tmp_path / "whole", read_only=True)
    for item in ("model", "averaged"):
        assert not any(path.startswith("vision/") for path in saved.shapes(6, item))
    assert any(path.startswith("vision/") for path in saved.frozen_shapes())


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Work directories of the demo's stages, some steps each."""
    directory = tmp_path_factory.mktemp("demo")
    small = dict(optim__warmup_steps=2, checkpoint__every_steps=10)
    train(recipe("demo_cogvlm", "stage=text", **small), directory / "text")
    start = f"language={directory / 'text'},image={directory / 'image'}"
    train(recipe("demo", None, **small), directory / "image")
    experts = recipe("demo_cogvlm", f"stage=experts,{start}", plan__at_step=3, **small)
    train(experts, directory / "experts")
    return directory


@pytest.mark.slow
def test_the_language_model_stays_what_it_was_while_experts_learn(demo):
    """Its logits of plain text are bit-equal before and after experts were trained beside it."""
    tokens = np.random.default_rng(0).integers(3, 640, (3, 20))
    types = np.zeros_like(tokens)

    def logits(directory):
        stored = open_model(demo / directory, "model")
        model = stored.load()
        cogvlm = stored.make_method().network
        run = jax.jit(lambda model: cogvlm.apply(trees.variables(model), None, tokens, types))
        return np.asarray(run(model)), trees.flatten(model)

    (before, language), (after, whole) = logits("text"), logits("experts")
    assert np.array_equal(before, after)
    # Experts began as its copies, but are that no more.
    for path, value in language.items():
        if "blocks/language" in path:
            expert = np.asarray(whole[path.replace("blocks/language", "blocks/vision")])
            assert 0 < np.abs(expert - value).max() < 0.1, path


@pytest.mark.slow
def test_the_tower_is_the_one_that_was_trained(demo):
    old = open_model(demo / "image").load()["image_tower"]
    new = trees.flatten(open_model(demo / "experts").load()["vision"])
    old = trees.flatten(old)
    assert old.keys() - new.keys() == {"proj/kernel"}  # of the pooled feature
    for path, value in new.items():
        np.testing.assert_array_equal(value, old[path], err_msg=path)
