"""Kernels on several devices: each computes its own rows and heads, as the mesh has them split."""

import math

import jax
from jax.sharding import AxisType, PartitionSpec

from big_vlp.parallel.meshes import BATCH_AXES


def platform() -> str:
    """That of the ambient mesh, whose devices may be described only, or of the local devices."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform


def parts() -> tuple[int, int]:
    """Over how many devices the ambient mesh has the compiler split (rows, heads)."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types))
    size = {name: n for name, n in mesh.shape.items() if kinds[name] == AxisType.Auto}
    return math.prod(size.get(axis, 1) for axis in BATCH_AXES), size.get("tensor", 1)


def refusal(query, key) -> str | None:
    """What a kernel takes where rows [B, T, H, D] and [B, S, K, D] do not divide; None: they do."""
    rows, heads = parts()
    if query.shape[0] % rows:
        return f"batches that are a multiple of the {rows} devices over which they are split"
    if query.shape[2] % heads or key.shape[2] % heads:
        return f"heads that are a multiple of the {heads} devices over which they are split"
    return None


def over_devices(fn, *arrays):
    """`fn(*arrays)`, each device for its part of the arrays [B, T, ..., H, D] or [B, T], and of the
    result, [B, T, H, D]."""
    if parts() == (1, 1):
        return fn(*arrays)

    def own(ndim):
        return PartitionSpec(BATCH_AXES, *([None] * (ndim - 3) + ["tensor"] if ndim > 2 else []))

    return jax.shard_map(
        fn,
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=tuple(own(x.ndim) for x in arrays),
        out_specs=own(4),
        check_vma=False,
    )(*arrays)
