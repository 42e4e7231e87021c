"""The mesh, and one training step on eight devices against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from big_vlp.sharding import AXES, global_batch, make_mesh

ROOT = Path(__file__).parents[2]

SCRIPT = """
import importlib.util, json, sys
import jax
from big_vlp import sharding, step
from big_vlp.experiment import Experiment

spec = importlib.util.spec_from_file_location("tiny_config", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
config = module.get_config()
config.mesh = json.loads(sys.argv[2])
experiment = Experiment.from_config(config)
mesh, method = experiment.make_mesh(), experiment.make_method()
optimizer = experiment.make_optimizer(method)
whole = sharding.replicated(mesh)
state = jax.jit(step.make_init(method, optimizer), out_shardings=whole)(jax.random.key(0))
train_step = jax.jit(step.make_train_step(method, optimizer), out_shardings=whole)
loader, losses = experiment.make_loader(), []
for i in range(3):
    batch = sharding.global_batch(loader.batch(i), mesh)
    state, metrics = train_step(state, batch, i, jax.random.key(1))
    losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
print(json.dumps(losses))
"""


def run(mesh, devices):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT / "tests" / "tiny_config.py"), json.dumps(mesh)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    return np.array(json.loads(result.stdout))


def test_eight_devices_train_as_one_does():
    """Augmentation, losses, gradients and updates do not depend on how a batch is laid out."""
    np.testing.assert_allclose(run({"data": 8}, 8), run({"data": 1}, 1), rtol=1e-5)


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": -1, "fsdp": -1}, {"data": 0}])
def test_a_mesh_that_does_not_fit(sizes):
    with pytest.raises(ValueError, match="must multiply to that number"):
        make_mesh(**sizes, devices=jax.devices() * 2)


def test_rows_of_a_global_batch():
    mesh = make_mesh()
    assert mesh.axis_names == AXES
    rows = np.arange(4 * len(jax.devices())).reshape(-1, 2)
    np.testing.assert_array_equal(global_batch({"x": rows}, mesh)["x"], rows)
