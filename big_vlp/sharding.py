"""The device mesh, where arrays live on it, and what the processes of a run agree on."""

import functools
import json
import math
import os
import re

import jax
import numpy as np
from jax._src.clusters.cluster import ClusterEnv  # there is no public way to ask
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Which axis of a parameter "tensor" splits, counted from its end. Attention goes by heads and an
# MLP by its hidden units, so either costs one sum over devices.
TENSOR_RULES = (
    (r".*\b(qkv|query|key|value|key_value)/(kernel|bias)", -2),  # [..., heads, head_dim]
    (r".*\b(attn|image_pooler|text_pooler|map)/out/kernel", -3),  # [..., heads, head_dim, width]
    (r".*\bmlp/fc1/(kernel|bias)", -1),
    (r".*\bmlp/fc2/kernel", -2),
    (r".*\bmlp/(gate|up)/kernel", -1),
    (r".*\bmlp/down/kernel", -2),
)
# By classes, or by tokens; their number is the data's, so what does not divide stays whole.
CLASSIFIER = r".*\b(classifier|language/head)/(kernel|bias)"
# LoRA's factors are small, and their axes are what they are.
UNSPLIT = ("/lora_a", "/lora_b")
# Smaller parameters are cheaper to keep on every device than to gather.
FSDP_MIN_BYTES = 4 * 2**20
CLUSTER_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class ClusterError(Exception):
    """The processes of a run cannot find each other; the message says what to set."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over all devices, axes ("data", "fsdp", "tensor"); -1 takes what is left.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or do not fit how these are
        connected.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        asked = ", ".join(f"{a}={s}" for a, s in zip(AXES, (data, fsdp, tensor)))
        raise ValueError(
            f"mesh({asked}) does not fit {len(devices)} devices: the sizes must multiply to that "
            "number; at most one may be -1, which takes the rest."
        )
    # Auto axes: the compiler propagates shardings; linen does not work with explicit ones.
    axis_types = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(sizes, AXES, axis_types=axis_types, devices=devices)
    except (NotImplementedError, AssertionError) as error:
        found = dict(zip(AXES, sizes))
        raise ValueError(
            f"jax cannot lay the mesh {found} over the {len(devices)} devices of this topology; "
            f"give other sizes, such as fsdp=1 and tensor=1. It says: {error}"
        ) from error


def placement(tree, mesh: Mesh):
    """Where every array of a state lives: the tree with a NamedSharding for each leaf.

    "tensor" splits what TENSOR_RULES name; "fsdp" splits the largest axis that it divides, of
    parameters above FSDP_MIN_BYTES, but never the axis of stacked layers. Only the end of a path
    and the shape count, so averages and moments live where their parameters do.

    Args:
      tree: nested dict of arrays or jax.ShapeDtypeStruct.

    Raises:
      ValueError: the mesh does not divide a parameter that it has to split; names each.
    """
    problems = []

    def place(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        try:
            return NamedSharding(mesh, _spec(path, leaf.shape, mesh))
        except ValueError as error:
            problems.append(f"{path} {tuple(leaf.shape)}: {error}")

    placed = jax.tree.map_with_path(place, tree)
    if problems:
        raise ValueError("The mesh cannot hold these parameters:\n  " + "\n  ".join(problems))
    return placed


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    axes: list[str | None] = [None] * len(shape)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    if tensor > 1:
        for pattern, axis in TENSOR_RULES:
            if re.fullmatch(pattern, path):
                if shape[axis] % tensor:
                    raise ValueError(
                        f"axis {len(shape) + axis} is split over tensor={tensor}, which must "
                        f"divide {shape[axis]}"
                    )
                axes[axis] = "tensor"
        if re.fullmatch(CLASSIFIER, path) and shape[-1] % tensor == 0:
            axes[-1] = "tensor"
    # In fp32, whatever the dtype: all that belongs to a parameter is split alike.
    if fsdp > 1 and 4 * math.prod(shape) > FSDP_MIN_BYTES:
        first = 1 if re.search(r"\bblocks/", path) else 0
        free = [i for i in range(first, len(shape)) if axes[i] is None]
        fitting = [i for i in free if shape[i] % fsdp == 0]
        if fitting:
            axes[max(fitting, key=lambda i: shape[i])] = "fsdp"
        elif free and not path.endswith(UNSPLIT):
            raise ValueError(f"no free axis is a multiple of fsdp={fsdp}")
    return PartitionSpec(*axes)


def split_of(leaf) -> str:
    """How an array is split over the mesh: "fsdp on axis 1", or "whole"."""
    spec = getattr(leaf.sharding, "spec", ())
    return ", ".join(f"{name} on axis {axis}" for axis, name in enumerate(spec) if name) or "whole"


def bytes_per_device(leaf) -> int:
    """What an array with a sharding takes on each of its devices."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def keep_over_batch(x):
    """Tells the compiler that the leading axis stays split over data and fsdp, and no other is.

    Where parameters are split, it could as well split the activations by features and hold the
    whole batch. Without an ambient mesh, or where the axis does not divide, `x` is left alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a global batch that this process' devices hold, ascending.

    Processes that share a part of the batch (split over "tensor") get the same rows.

    Raises:
      ValueError: the batch cannot be split evenly.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise ValueError(
            f"A batch of {batch_size} cannot be split over data * fsdp = {parts} devices; make it "
            "a multiple."
        )
    spans = over_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (span,) in spans for row in range(*span.indices(batch_size))})


def global_batch(local_batch: dict, mesh: Mesh, batch_size: int) -> dict:
    """The arrays [batch_size, ...], split over data and fsdp, of which this process has some rows.

    Args:
      local_batch: {name: rows}; rows as `local_rows` lists them.
    """
    sharding, rows = over_batch(mesh), local_rows(mesh, batch_size)

    def to_devices(local):
        def shard(index):
            start, stop, _ = index[0].indices(batch_size)
            first = int(np.searchsorted(rows, start))
            return local[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

    return {name: to_devices(local) for name, local in local_batch.items()}


def largest_of_processes(values, mesh: Mesh):
    """The elementwise maximum of what each process gives, the same on all.

    Returns at once; reading the result (np.asarray) waits until the devices have come to it.

    Args:
      values: i32[N].
    """
    if jax.process_count() == 1:
        return values
    values = np.asarray(values, np.int32)
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    shape = (mesh.size, *values.shape)
    rows = jax.make_array_from_callback(shape, sharding, lambda index: values[None])
    return _largest(replicated(mesh))(rows)


@functools.cache
def _largest(sharding: NamedSharding):
    return jax.jit(lambda rows: rows.max(axis=0), out_shardings=sharding)


def gather(value) -> list:
    """What each process gives, in their order, on all of them; values must be JSON data."""
    if jax.process_count() == 1:
        return [value]
    payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(payload.size))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: payload.size] = payload
    parts = multihost_utils.process_allgather(padded)
    return [json.loads(part[:size].tobytes()) for part, size in zip(parts, sizes)]


def connect_processes() -> None:
    """Joins the processes of a cluster, where there is one or the environment asks for it.

    To be called before anything else of jax. What clusters jax detects is its own affair (TPU pods,
    SLURM, Open MPI and others); elsewhere set JAX_COORDINATOR_ADDRESS (host:port on the machine of
    process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. JAX_NUM_PROCESSES=1 alone says that there is
    only this process, as in a batch script of SLURM that does not start it by `srun`.

    Raises:
      ClusterError: a part of the three is missing or wrong, or a cluster cannot be joined.
    """
    address, count, index = (os.environ.get(name, "") for name in CLUSTER_VARIABLES)
    asked = {}
    if count == "1" and not address and index in ("", "0"):
        return
    if count or index:
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise ClusterError(_how_to_connect())
        asked = {"num_processes": int(count), "process_id": int(index)}
    if (asked or address) and not re.fullmatch(r".+:\d+", address):
        raise ClusterError(_how_to_connect())
    if not (asked or address or _in_cluster()):
        return
    try:
        jax.distributed.initialize(**asked)
    except Exception as error:  # each kind of cluster has its own
        raise ClusterError(f"{_how_to_connect()} ({type(error).__name__}: {error})") from error


def _in_cluster() -> bool:
    """Whether jax detects a cluster by itself."""
    kinds = ClusterEnv._cluster_types
    return any(kind.is_env_present() for kind in kinds if not kind.opt_in_only_method)


def _how_to_connect() -> str:
    found = ", ".join(f"{name}={os.environ.get(name, '')!r}" for name in CLUSTER_VARIABLES)
    return (
        f"Cannot join the processes of this run with {found}. Give host:port on the machine of "
        "process 0, the number of processes, and this one's, from 0; or none of them on a cluster "
        "that jax detects. JAX_NUM_PROCESSES=1 alone is for a run of one process on such a cluster."
    )
