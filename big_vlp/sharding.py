"""The device mesh and where arrays live on it."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over all devices, axes ("data", "fsdp", "tensor"); -1 takes what is left.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
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
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def global_batch(local_batch: dict, mesh: Mesh) -> dict:
    """This process' rows of a batch -> global arrays, split over data and fsdp."""
    sharding = over_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in local_batch.items()
    }
