"""The device mesh, and how a batch lies on it."""

import bisect
import functools
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, slices: int = 1, devices=None
) -> Mesh:
    """A mesh over all devices, axes ("data", "fsdp", "tensor"); -1 takes what is left.

    Several slices are connected by a slower network: only "data" goes over them, as its outermost
    part; "fsdp" and "tensor" stay inside one. TPUs know their slices, other devices are divided by
    processes.

    Args:
      data: over all slices together.
      slices: how many there are.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or do not fit how these are
        connected.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = math.prod(s for s in sizes if s != -1)
    if sizes.count(-1) == 1 and known > 0 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    found = dict(zip(AXES, sizes))
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        asked = ", ".join(f"{a}={s}" for a, s in zip(AXES, (data, fsdp, tensor)))
        raise ValueError(
            f"mesh({asked}) does not fit {len(devices)} devices: the sizes must multiply to that "
            "number; at most one may be -1, which takes the rest."
        )
    if found["data"] % slices:
        raise ValueError(
            f"slices={slices} does not divide data={found['data']}: fsdp={found['fsdp']} and "
            f"tensor={found['tensor']} stay inside a slice, so data must be a multiple of slices."
        )
    parts = _by_slice(devices, slices)
    of_each = (found["data"] // slices, found["fsdp"], found["tensor"])
    try:
        grid = np.concatenate([_laid_out(of_each, part) for part in parts])
    except (NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"jax cannot lay the mesh {found} over the {len(devices)} devices of this topology; "
            f"give other sizes, such as fsdp=1 and tensor=1. It says: {error}"
        ) from error
    # Auto axes: the compiler propagates shardings; linen does not work with explicit ones.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _by_slice(devices, slices: int) -> list[list]:
    """The devices of each slice."""
    if devices[0].platform == "tpu":
        found = {}
        for device in devices:  # those of a single slice have no number
            found.setdefault(getattr(device, "slice_index", 0), []).append(device)
        if len(found) != slices:
            raise ValueError(
                f"slices={slices}, but these TPUs are {len(found)}; set slices={len(found)}."
            )
        return [found[number] for number in sorted(found)]
    owners = sorted({device.process_index for device in devices})
    if len(owners) == 1:  # to try out on one machine what several slices do
        owned = np.split(np.arange(len(devices)), slices)
        return [[devices[i] for i in part] for part in owned]
    if len(owners) % slices:
        raise ValueError(f"slices={slices} does not divide the {len(owners)} processes.")
    parts = np.split(np.asarray(owners), slices)
    return [[d for d in devices if d.process_index in part] for part in parts]


def _laid_out(sizes: tuple[int, int, int], devices) -> np.ndarray:
    """The devices of one slice as an array of these sizes, neighbours beside each other."""
    if devices[0].platform == "tpu":
        return jax.make_mesh(sizes, AXES, devices=devices).devices
    # jax.make_mesh takes GPUs of several hosts for slices, and refuses them.
    return mesh_utils.create_device_mesh(sizes, devices)


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


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
    if not over_devices(len(x)):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def over_devices(rows: int) -> int:
    """Over how many parts of the ambient mesh, data and fsdp, so many rows can be split; 0: they
    cannot, or there is no mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 0 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return 0 if parts and rows % parts else parts


def keep(x, *axes):
    """Tells the compiler over which mesh axes each axis of `x` stays split: a name, several, or
    None; those that are not given are not split, nor those that the mesh does not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x

    def divides(names, length):
        names = (names,) if isinstance(names, str) else names or ()
        return length % math.prod(mesh.shape[name] for name in names) == 0

    spec = (names if divides(names, length) else None for names, length in zip(axes, x.shape))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


@functools.lru_cache(maxsize=64)  # asked for with every batch
def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, ...]:
    """The rows of a global batch that this process' devices hold, ascending.

    Processes that share a part of the batch (split over "tensor") get the same rows.

    Raises:
      ValueError: the batch cannot be split evenly.
    """
    parts = batch_parts(mesh)
    if batch_size % parts:
        raise ValueError(
            f"A batch of {batch_size} cannot be split over data * fsdp = {parts} devices; make it "
            "a multiple."
        )
    spans = over_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    return tuple(sorted({row for (span,) in spans for row in range(*span.indices(batch_size))}))


def global_batch(local_batch: dict, mesh: Mesh, batch_size: int) -> dict:
    """The arrays [batch_size, ...], split over data and fsdp, of which this process has some rows.

    Args:
      local_batch: {name: rows}; rows as `local_rows` lists them.
    """
    sharding, rows = over_batch(mesh), local_rows(mesh, batch_size)

    def to_devices(local):
        def shard(index):
            start, stop, _ = index[0].indices(batch_size)
            first = bisect.bisect_left(rows, start)
            return local[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, shard)

    return {name: to_devices(local) for name, local in local_batch.items()}
