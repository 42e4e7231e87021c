"""Where the arrays of a state live on the mesh."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Smaller parameters are cheaper to keep on every device than to gather.
FSDP_MIN_BYTES = 4 * 2**20


class Split(NamedTuple):
    """How the mesh axis "tensor" splits a parameter.

    Attributes:
      axis: from the end of its shape, so that stacked layers do not count; None: not at all.
      must: whether the mesh has to divide that axis; else the parameter may stay whole.
    """

    axis: int | None
    must: bool = True


# Small, and of any shape: "fsdp" need not divide it, either.
MAY_STAY_WHOLE = Split(None, must=False)


def place(tree, mesh: Mesh, splits: Mapping[str, Split]):
    """Where every array of a state lives: the tree with a NamedSharding for each leaf.

    "tensor" splits what modules declare; "fsdp" splits the largest axis that it divides, of
    parameters above FSDP_MIN_BYTES, but never the axis of stacked layers. Only the end of a path
    and the shape count, so averages and moments live where their parameters do.

    Args:
      tree: nested dict of arrays or jax.ShapeDtypeStruct.
      splits: by parameters' paths in the model, see `Method.splits`; others "tensor" leaves whole.

    Raises:
      ValueError: the mesh does not divide a parameter that it has to split; names each.
    """
    problems = []

    def one(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        try:
            return NamedSharding(mesh, _spec(path, leaf.shape, mesh, _of(path, splits)))
        except ValueError as error:
            problems.append(f"{path} {tuple(leaf.shape)}: {error}")

    placed = jax.tree.map_with_path(one, tree)
    if problems:
        raise ValueError("The mesh cannot hold these parameters:\n  " + "\n  ".join(problems))
    return placed


def _of(path: str, splits: Mapping[str, Split]) -> Split | None:
    """What is declared for the longest end of a path."""
    names = path.split("/")
    ends = ("/".join(names[i:]) for i in range(len(names)))
    return next((splits[end] for end in ends if end in splits), None)


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh, split: Split | None) -> PartitionSpec:
    axes: list[str | None] = [None] * len(shape)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    if tensor > 1 and split is not None and split.axis is not None:
        size = shape[split.axis]
        if size % tensor == 0:
            axes[split.axis] = "tensor"
        elif split.must:
            raise ValueError(
                f"axis {len(shape) + split.axis} is split over tensor={tensor}, which must divide "
                f"{size}"
            )
    # In fp32, whatever the dtype: all that belongs to a parameter is split alike.
    if fsdp > 1 and 4 * math.prod(shape) > FSDP_MIN_BYTES:
        first = 1 if re.search(r"\bblocks/", path) else 0
        free = [i for i in range(first, len(shape)) if axes[i] is None]
        fitting = [i for i in free if shape[i] % fsdp == 0]
        if fitting:
            axes[max(fitting, key=lambda i: shape[i])] = "fsdp"
        elif free and split != MAY_STAY_WHOLE:
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
