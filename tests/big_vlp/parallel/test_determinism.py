"""config.deterministic: what it asks of XLA and of attention, and that CPUs do not mind."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from big_vlp import determinism
from big_vlp.experiment import Experiment
from big_vlp.models.layers import attention
from tests.big_vlp.config.toy_config import make_config

ROOT = Path(__file__).parents[3]
FLAG = "--xla_gpu_deterministic_ops"


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("", False),
        ("--xla_dump_to=/tmp/x", False),
        (f"--xla_dump_to=/tmp/x {FLAG}=true", True),
        (FLAG, True),
        (f"{FLAG}=false", False),
        (f"{FLAG}=1 {FLAG}=0", False),
        (f"{FLAG}_of_another_name=true", False),
    ],
)
def test_a_users_own_flags_count(monkeypatch, flags, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert determinism.is_required() == expected


def test_the_config_asks_for_it_and_keeps_other_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    config = make_config()
    Experiment.from_config(config)
    assert not determinism.is_required()
    config.deterministic = True
    for _ in range(2):
        Experiment.from_config(config)
        assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/tmp/x {FLAG}=true"


def test_attention_leaves_cudnn(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    query = jax.ShapeDtypeStruct((2, 197, 12, 64), jnp.bfloat16)
    assert attention.pick(query, query) == "cudnn"
    determinism.require()
    assert attention.pick(query, query) == "xla"


def test_xla_knows_the_flag():
    """One that it does not know ends the process."""
    program = "import jax; from big_vlp import determinism as d; d.require(); jax.devices()"
    for name, status in (("_FLAG", 0), ("--xla_gpu_no_such_flag", None)):
        change = "" if status == 0 else f"d._FLAG = {name!r}; "
        run = subprocess.run(
            [sys.executable, "-c", program.replace("d.require", f"{change}d.require")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
        )
        assert (run.returncode == 0) == (status == 0), run.stderr
