"""The mesh, where parameters live on it, and the same numbers on every mesh."""

import json
import os
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from big_vlp.parallel import cluster, meshes, placing
from big_vlp.parallel.meshes import AXES, global_batch, local_rows, make_mesh
from big_vlp.parallel.placing import MAY_STAY_WHOLE, Split, place
from tests.eight_devices import on_eight_devices

PROGRAM = Path(__file__).with_name("eight_devices.py")
QUICK, SLOW = ("clip", "catlip"), ("siglip", "cosmos")
MESH = "2,2,2,2"  # of two slices
MORE_MESHES = ("1,1,1", "8,1,1", "2,4,1")


def found_on_eight_devices(methods, *sizes):
    return json.loads(on_eight_devices(PROGRAM, ",".join(methods), *sizes))


@pytest.fixture(scope="module")
def eight_devices():
    return found_on_eight_devices(QUICK, MESH)


@pytest.mark.parametrize("method", QUICK)
def test_a_mesh_of_all_axes_gives_the_plain_losses_and_gradients(eight_devices, method):
    check(eight_devices[method]["plain"], eight_devices[method][MESH])
    assert eight_devices[method][MESH]["split"] > 0


@pytest.mark.slow
def test_a_mesh_of_all_axes_gives_those_of_the_other_methods():
    found = found_on_eight_devices(SLOW, MESH)
    for method in SLOW:
        check(found[method]["plain"], found[method][MESH])
        assert found[method][MESH]["split"] > 0


def test_texts_in_groups_stay_on_their_device(eight_devices):
    """Devices agree on the turns of the loop, and add up gradients: a table of 64 x 3."""
    sent = {tuple(found) for found in eight_devices["sent"]}
    assert sent == {("all-reduce", "scalars"), ("all-reduce", "f32[64,3]")}


def test_the_attention_kernel_for_whole_rows_splits_rows_and_heads(eight_devices):
    check(eight_devices["rows"]["plain"], eight_devices["rows"]["kernel"])


@pytest.mark.slow
def test_more_meshes_give_the_plain_losses_and_gradients():
    results = found_on_eight_devices(QUICK + SLOW, *MORE_MESHES)
    for method in QUICK + SLOW:
        found = results[method]
        split = [found[mesh]["split"] for mesh in MORE_MESHES]
        assert split[0] == split[1] == 0 < split[2]
        for mesh in MORE_MESHES:
            check(found["plain"], found[mesh])


def check(plain, found):
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert found["arrays"].keys() == plain["arrays"].keys()
    # Keys' biases have no gradient in theory; what rounding leaves is measured on the whole.
    largest = max(np.abs(g).max() for g in plain["arrays"].values())
    for path, expected in plain["arrays"].items():
        size = max(np.abs(expected).max(), 1e-3 * largest)
        np.testing.assert_allclose(
            found["arrays"][path], expected, rtol=0, atol=1e-5 * size, err_msg=path
        )


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": -1, "fsdp": -1}, {"data": 0}])
def test_a_mesh_that_does_not_fit(sizes):
    with pytest.raises(ValueError, match="must multiply to that number"):
        make_mesh(**sizes, devices=jax.devices() * 2)


class Device:
    def __init__(self, id, process, **more):
        self.id, self.process_index, self.platform, self.device_kind = id, process, "gpu", "fake"
        vars(self).update(more)


def test_slices_are_outermost_and_hold_what_is_split_inside_them():
    """Of 16 devices of 4 processes, listed as they may come."""
    devices = [Device(i, i // 4) for i in (*range(8, 16), *range(8))]
    grid = make_mesh(fsdp=2, tensor=2, slices=2, devices=devices).devices
    assert grid.shape == (4, 2, 2)
    found = [{device.process_index for device in part.flat} for part in np.split(grid, 2)]
    assert found == [{0, 1}, {2, 3}]
    one = make_mesh(fsdp=16, devices=devices).devices
    assert [device.id for device in one.flat] == list(range(16))


def test_tpus_say_which_slice_they_are_of(monkeypatch):
    def made(sizes, names, devices):
        return types.SimpleNamespace(devices=np.asarray(devices).reshape(sizes))

    monkeypatch.setattr(jax, "make_mesh", made)
    devices = [Device(i, i // 2, platform="tpu", slice_index=i % 2) for i in range(8)]
    grid = make_mesh(tensor=2, slices=2, devices=devices).devices
    assert grid.shape == (4, 1, 2)
    assert [device.slice_index for device in grid.flat] == [0, 0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="slices=1, but these TPUs are 2; set slices=2"):
        make_mesh(devices=devices)
    alone = [Device(i, i // 2, platform="tpu") for i in range(4)]
    assert make_mesh(devices=alone).devices.shape == (4, 1, 1)
    with pytest.raises(ValueError, match="slices=2, but these TPUs are 1; set slices=1"):
        make_mesh(slices=2, devices=alone)


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(fsdp=4, slices=2), "slices=2 does not divide data=3: fsdp=4 and tensor=1 stay"),
        (dict(slices=4), r"slices=4 does not divide the 3 processes"),
    ],
)
def test_slices_that_do_not_divide(sizes, message):
    devices = [Device(i, i // 4) for i in range(12)]
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes, devices=devices)


def abstract_mesh(data, fsdp, tensor):
    return jax.sharding.AbstractMesh(
        (data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


SPLITS = {
    "attn/qkv/kernel": Split(-2),
    "attn/out/kernel": Split(-3),
    "mlp/fc1/kernel": Split(-1),
    "mlp/fc1/bias": Split(-1),
    "mlp/fc2/kernel": Split(-2),
    "classifier/kernel": Split(-1, must=False),
    "lora_a": MAY_STAY_WHOLE,
}


def specs(mesh, **shapes):
    """Placement of fp32 parameters given as path__with__underscores=shape."""
    tree = {k.replace("__", "/"): jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    return {k: tuple(v.spec) for k, v in place(tree, mesh, SPLITS).items()}


def test_placement_of_large_and_small_parameters():
    found = specs(
        abstract_mesh(2, 4, 2),
        blocks__attn__qkv__kernel=(12, 768, 3, 12, 64),
        blocks__attn__out__kernel=(12, 12, 64, 768),
        blocks__mlp__fc1__kernel=(12, 768, 3072),
        blocks__mlp__fc1__bias=(12, 3072),
        blocks__mlp__fc2__kernel=(12, 3072, 768),
        token_embedding__embedding=(49_408, 512),
        norm__scale=(768,),
        proj__kernel=(768, 512),
        logit_scale=(),
    )
    assert found == {
        "blocks/attn/qkv/kernel": (None, "fsdp", None, "tensor", None),
        "blocks/attn/out/kernel": (None, "tensor", None, "fsdp"),
        "blocks/mlp/fc1/kernel": (None, "fsdp", "tensor"),
        "blocks/mlp/fc1/bias": (None, "tensor"),
        "blocks/mlp/fc2/kernel": (None, "tensor", "fsdp"),
        "token_embedding/embedding": ("fsdp", None),
        "norm/scale": (None,),
        "proj/kernel": (None, None),
        "logit_scale": (),
    }


def test_what_a_mesh_need_not_divide_stays_whole():
    found = specs(abstract_mesh(1, 7, 5), classifier__kernel=(70_000, 37), qkv__lora_a=(1024, 4096))
    assert found == {"classifier/kernel": ("fsdp", None), "qkv/lora_a": (None, None)}
    assert specs(abstract_mesh(1, 1, 5), classifier__kernel=(8, 35)) == {
        "classifier/kernel": (None, "tensor")
    }


def test_layers_are_never_split():
    """Also where their number is the largest axis that the mesh divides."""
    found = specs(abstract_mesh(1, 4, 1), blocks__odd__kernel=(1024, 60, 60))
    assert found["blocks/odd/kernel"] == (None, "fsdp", None)


def test_averages_and_moments_live_where_their_parameters_do():
    leaf = jax.ShapeDtypeStruct((12, 768, 3072), jnp.float32)
    tree = {"blocks": {"mlp": {"fc1": {"kernel": leaf}}}}
    state = {"model": tree, "averaged": tree, "opt": {"moments": {"1": {"mu": tree}}}}
    found = {leaf.spec for leaf in jax.tree.leaves(place(state, abstract_mesh(2, 2, 2), SPLITS))}
    assert found == {PartitionSpec(None, "fsdp", "tensor")}


def test_a_mesh_that_cannot_hold_the_parameters():
    with pytest.raises(ValueError, match="cannot hold these parameters") as error:
        specs(
            abstract_mesh(1, 7, 5),
            blocks__attn__qkv__kernel=(12, 768, 3, 12, 64),
            head__kernel=(1024, 4096),
        )
    assert "tensor=5, which must divide 12" in str(error.value)
    assert "head/kernel (1024, 4096): no free axis is a multiple of fsdp=7" in str(error.value)


def test_rows_of_a_global_batch():
    mesh = make_mesh()
    assert mesh.axis_names == AXES
    rows = np.arange(8).reshape(-1, 2)
    assert local_rows(mesh, 4) == (0, 1, 2, 3)
    np.testing.assert_array_equal(global_batch({"x": rows}, mesh, 4)["x"], rows)


def test_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="batch of 6 cannot be split over data \\* fsdp = 4"):
        local_rows(abstract_mesh(2, 2, 1), 6)


def test_the_table_shows_where_parameters_live():
    mesh = abstract_mesh(2, 4, 1)
    leaf = jax.ShapeDtypeStruct((8, 1024, 4096), jnp.float32)
    placed = place({"blocks": leaf}, mesh, {})["blocks"]
    leaf = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)
    assert placing.split_of(leaf) == "fsdp on axis 2"
    assert placing.bytes_per_device(leaf) == 8 * 1024 * 1024 * 4


@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_COORDINATOR_ADDRESS": "here:1"},
        {"JAX_NUM_PROCESSES": "2"},
        {"JAX_COORDINATOR_ADDRESS": "here", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {"JAX_COORDINATOR_ADDRESS": "here:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
    ],
)
def test_processes_that_cannot_be_joined(monkeypatch, variables):
    for name in cluster.CLUSTER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(cluster.ClusterError, match="Give host:port on the machine of process 0"):
        cluster.connect_processes()


@pytest.fixture
def initialized(monkeypatch):
    """The arguments of each `jax.distributed.initialize`, which does nothing; no variables."""
    calls = []
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    for name in cluster.CLUSTER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return calls


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "node1",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


def test_without_a_cluster_nothing_is_joined(initialized):
    cluster.connect_processes()
    assert initialized == []


def test_a_process_of_a_cluster_can_say_that_it_is_alone(initialized, monkeypatch):
    """Where nothing else was started by `srun`, waiting for the others would never end."""
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    cluster.connect_processes()
    assert initialized == [{"heartbeat_timeout_seconds": 60}]
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    cluster.connect_processes()
    assert len(initialized) == 1


def test_collectives_of_gpus_are_bounded_where_xla_can(initialized, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NCCL_DEBUG", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    cluster.connect_processes()
    assert "NCCL_DEBUG" not in os.environ  # CPUs alone

    monkeypatch.setattr(cluster, "_may_use_gpus", lambda: True)
    bound = "--xla_dump_to=x --xla_gpu_nccl_termination_timeout_seconds=600"
    for _ in range(2):
        cluster.connect_processes()
        assert os.environ["XLA_FLAGS"] == bound and os.environ["NCCL_DEBUG"] == "WARN"
    monkeypatch.setattr(cluster, "_COLLECTIVE_FLAG", "--xla_gpu_of_another_day")
    cluster.connect_processes()
    assert os.environ["XLA_FLAGS"] == bound


@pytest.mark.parametrize("platforms, found", [("", True), ("cuda,cpu", True), ("cpu", False)])
def test_gpus_are_there_with_a_plugin_that_is_wanted(platforms, found, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(cluster, "_GPU_PLUGINS", ("no_such_plugin", "json"))
    assert cluster._may_use_gpus() == found
    monkeypatch.setattr(cluster, "_GPU_PLUGINS", ("no_such_plugin",))
    assert not cluster._may_use_gpus()


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError, OSError])
def test_whatever_a_cluster_raises_is_explained(kind, monkeypatch):
    def initialize(**given):
        raise kind("DEADLINE_EXCEEDED")

    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(cluster.ClusterError, match=r"JAX_NUM_PROCESSES=1 alone.*DEADLINE"):
        cluster.connect_processes()


@pytest.mark.parametrize("kind", [NotImplementedError, AssertionError])
def test_a_topology_that_jax_cannot_lay_out(kind, monkeypatch):
    def make_mesh(*args, **kwargs):
        raise kind("Failed to find assignment for logical_axis_index 2")

    monkeypatch.setattr(jax, "make_mesh", make_mesh)
    with pytest.raises(ValueError, match=r"'tensor': 2.*topology.*logical_axis_index"):
        devices = [Device(i, 0, platform="tpu") for i in range(8)]
        meshes.make_mesh(data=-1, fsdp=1, tensor=2, devices=devices)
