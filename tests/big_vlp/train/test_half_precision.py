"""Runs in bf16, the dtype of every full recipe: they train, evaluate and resume like others."""

import shutil

import jax
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.experiment import Experiment
from big_vlp.run.log import read_log
from big_vlp.storage.checkpoint import Checkpoints
from big_vlp.storage.model_dir import open_model
from big_vlp.telemetry.meter import CLOCKED
from big_vlp.train import train
from tests.tiny_config import get_config

METHODS = ("cogvlm", "catlip", "clip", "cosmos")


def config_of(method, dtype):
    config = get_config(f"method={method},dtype={dtype}")
    config.total_steps, config.checkpoint.every_steps = 4, 2
    config.plan = dict(name="constant")  # one program
    return config


def lines(workdir):
    """All numbers of a run that do not depend on the clock."""
    return [
        (x["step"], x["split"], {k: v for k, v in x["values"].items() if k not in CLOCKED})
        for x in read_log(workdir)
    ]


def first_loss(config):
    """Of the untrained model and the run's first batch."""
    experiment = Experiment.from_config(config)
    method, loader = experiment.make_method(), experiment.make_loader()
    init_key, run_key = jax.random.split(jax.random.key(experiment.seed))
    batch = loader.batch(0)

    @jax.jit
    def loss(init_key, batch, key):
        model, averaged = method.init(init_key)
        parameters, statistics = trees.split_statistics(model)
        averaged, _ = trees.split_statistics(averaged)
        rng = jax.random.fold_in(key, 0)
        return method.loss(parameters, {}, averaged, statistics, batch, rng=rng, step=0)[0]

    return float(loss(init_key, batch, run_key))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumes_to_the_bit_near_the_losses_of_fp32(method, tmp_path):
    config = config_of(method, "bfloat16")
    train(config, tmp_path / "whole")
    expected = lines(tmp_path / "whole")
    assert {split for _, split, _ in expected} == {"train", *config.evals}
    assert all(np.isfinite(v) for *_, values in expected for v in values.values())
    loss = expected[0][2]["loss"]
    np.testing.assert_allclose(loss, first_loss(config_of(method, "float32")), rtol=0.02)

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "4")
    train(config, tmp_path / "resumed")
    assert lines(tmp_path / "resumed") == expected
    kept = Checkpoints(tmp_path / "whole", read_only=True)
    for item in ("model", "averaged", "opt"):
        if kept.has(4, item):  # rounded to bf16, small updates would get lost
            dtypes = {x.dtype for x in kept.shapes(4, item).values()}
            assert dtypes <= {np.dtype(np.float32), np.dtype(np.int32)}, item
    before, after = (open_model(tmp_path / name).load() for name in ("whole", "resumed"))
    jax.tree.map(np.testing.assert_array_equal, before, after)
