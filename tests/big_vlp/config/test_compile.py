"""The compile command: what it reports for devices of this machine."""

import importlib.util
from pathlib import Path

import pytest

from big_vlp.compile import collectives, make_mesh, show
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.telemetry.flops import flops_per_sample

CONFIG = Path(__file__).parents[2] / "tiny_config.py"


@pytest.fixture(scope="module")
def config():
    spec = importlib.util.spec_from_file_location("tiny_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("method=clip")


def test_report(config, capsys):
    show(config, topology=None)
    text = capsys.readouterr().out
    assert "image_tower/patch/kernel" in text
    assert "On each of 1 devices (data=1, fsdp=1, tensor=1):" in text
    assert "A step of 8 examples at 16 pixels:" in text
    assert "1.00 times as many" in text  # nothing is computed twice
    # Parameters and two moments, in fp32; the tokens' embedding alone has 790,528.
    state_mib = float(text.split("training state")[1].split("MiB")[0])
    assert 3 * 4 * 790_528 / 2**20 < state_mib < 11


def test_flops_do_not_depend_on_how_blocks_are_executed(config):
    plain = flops_per_sample(Experiment.from_config(config))
    config.method.update(remat="full", unroll=False, accumulate_steps=2)
    assert flops_per_sample(Experiment.from_config(config)) == plain
    config.method.model.image.layers = 4
    assert flops_per_sample(Experiment.from_config(config)) > 1.05 * plain


def test_flops_of_methods_without_accumulation():
    config = configs_module("segmentation").get_config("data=scenes")
    assert flops_per_sample(Experiment.from_config(config)) > 1e6


def configs_module(name):
    path = CONFIG.parents[1] / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_collectives_are_listed_by_size_and_pieces_count_once():
    found = collectives(
        """
  %a = f32[4,8]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1}}
  %b = f32[4,8]{1,0:S(1)} all-gather(%x), channel_id=1, replica_groups={{0,1}}
  %c = f32[4,8]{1,0} all-gather(%y), channel_id=2, replica_groups={{0,1}}
  %d = (f32[16,16]{1,0}, f32[]) all-reduce(%x, %y), channel_id=3, to_apply=%add
  %e = (f32[2]{0}, f32[2]{0}, u32[]) collective-permute-start(%x), channel_id=4
  %f = f32[4,8]{1,0} add(%a, %b)
"""
    )
    assert found == [
        ("all-reduce", "f32[16,16]", 1),
        ("all-gather", "f32[4,8]", 2),
        ("collective-permute", "f32[2]", 1),
    ]


def test_a_topology_that_is_none(config):
    with pytest.raises(ConfigError, match="written as v5e:4x4, and needs libtpu"):
        make_mesh(Experiment.from_config(config), "no such thing")


def test_a_topology_has_the_slices_of_the_mesh(config, monkeypatch):
    asked = []

    def describe(**given):
        asked.append(given)
        raise RuntimeError("no libtpu here")

    monkeypatch.setattr("big_vlp.compile.topologies.get_topology_desc", describe)
    config = config.copy_and_resolve_references()
    for slices in (1, 2):
        config.mesh.slices = slices
        with pytest.raises(ConfigError, match="no libtpu here"):
            make_mesh(Experiment.from_config(config), "v5e:4x4")
    v5e = {"platform": "tpu", "topology_name": "v5e:4x4"}
    assert asked == [{**v5e, "num_slices": 1}, {**v5e, "num_slices": 2}]
