"""Flags by name: the config sets them, and the compilers know them: they end a process else."""

import importlib.util
import os
import subprocess
import sys

import pytest

from big_vlp import flag_sets
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.flag_sets import GPU, SETS, TPU
from tests.big_vlp.config.toy_config import make_config


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    for variable in (GPU, TPU):
        monkeypatch.setenv(variable, "")


def test_the_config_names_sets(monkeypatch):
    monkeypatch.setenv(GPU, "--xla_dump_to=/tmp/x")
    config = make_config()
    Experiment.from_config(config)
    assert os.environ[GPU] == "--xla_dump_to=/tmp/x" and not os.environ[TPU]
    config.xla_flags = ("tpu_large_vmem", "tpu_overlap_slices", "gpu_search_kernels")
    for _ in range(2):
        Experiment.from_config(config)
        expected = [*SETS["tpu_large_vmem"][1], *SETS["tpu_overlap_slices"][1]]
        assert os.environ[TPU].split() == expected
        assert os.environ[GPU].split() == ["--xla_dump_to=/tmp/x", *SETS["gpu_search_kernels"][1]]


def test_names_in_a_text_and_a_users_own_flag_that_stays(monkeypatch):
    monkeypatch.setenv(TPU, "--xla_tpu_scoped_vmem_limit_kib=65536")
    flag_sets.require("tpu_large_vmem,gpu_search_kernels")
    assert os.environ[TPU] == "--xla_tpu_scoped_vmem_limit_kib=65536"
    assert os.environ[GPU].split() == [*SETS["gpu_search_kernels"][1]]


def test_an_unknown_set_is_one_error():
    config = make_config()
    config.xla_flags = "gpu_overlaps"
    with pytest.raises(ConfigError, match=r"config\.xla_flags: .*did you mean 'gpu_overlap'"):
        Experiment.from_config(config)


def test_no_flag_is_in_two_sets():
    flags = [flag for _, flags in SETS.values() for flag in flags]
    assert len(flags) == len(set(flags))


def status(variable, flags, program):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    environment[variable] = " ".join(flags)
    run = [sys.executable, "-c", program]
    return subprocess.run(run, env=environment, capture_output=True, text=True)


def test_xla_knows_those_for_gpus():
    flags = [flag for variable, flags in SETS.values() if variable == GPU for flag in flags]
    program = "import jax; jax.devices()"
    done = status(GPU, flags, program)
    assert done.returncode == 0, done.stderr
    assert status(GPU, [*flags, "--xla_gpu_no_such_flag=true"], program).returncode != 0


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_libtpu_knows_those_for_tpus():
    flags = [flag for variable, flags in SETS.values() if variable == TPU for flag in flags]
    program = (
        "import jax; from jax.experimental import topologies\n"
        "topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2')"
    )
    done = status(TPU, flags, program)
    assert done.returncode == 0, done.stderr
    assert status(TPU, [*flags, "--xla_tpu_no_such_flag=true"], program).returncode != 0
