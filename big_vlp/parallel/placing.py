"""Where the arrays of a state live on the mesh."""

import math
import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


def place(tree, mesh: Mesh):
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

    def one(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        try:
            return NamedSharding(mesh, _spec(path, leaf.shape, mesh))
        except ValueError as error:
            problems.append(f"{path} {tuple(leaf.shape)}: {error}")

    placed = jax.tree.map_with_path(one, tree)
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
