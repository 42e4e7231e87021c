"""What modules declare about axes reaches the mesh and LoRA, also from outside and in a scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from big_vlp import trees
from big_vlp.models.layers import axes, stack
from big_vlp.models.layers.axes import Axes, Split, inputs, outputs
from big_vlp.models.lora import Lora
from big_vlp.parallel.meshes import AXES
from big_vlp.parallel.placing import MAY_STAY_WHOLE, place

X = jnp.zeros((1, 5, 8))


class Experts(nn.Module):
    """A layer of someone else: two dense layers a group, and a table without a layer."""

    tensor_axes = outputs("up", -2) | inputs("down", -3) | dict(table=Split(-2, must=False))
    fused_layers = ("both",)

    groups: int = 4

    @nn.compact
    def __call__(self, x):
        y = nn.DenseGeneral((self.groups, 6), name="up")(x)
        y = nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="down")(y)
        both = nn.DenseGeneral((2, x.shape[-1]), name="both")(y)
        table = self.param("table", nn.initializers.zeros, (3, x.shape[-1]))
        return both[..., 0, :] + nn.Conv(x.shape[-1], (1,), name="conv")(both[..., 1, :]) + table[0]


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x):
        block = Experts(parent=None)
        params = stack.blocks_of(self, stack.init_blocks, block, 3, x)
        return stack.run_blocks(
            lambda x, p: (block.apply({"params": p}, x), None), x, params, 3, False
        )[0]


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        run = nn.scan(
            lambda block, x: (block(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return run(Experts(name="blocks"), x)[0]


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Scanned(name="b")(Stacked(name="a")(x))


def test_declarations_are_found_below_their_modules():
    shapes, found = axes.traced(Model().init, jax.random.key(0), X)
    splits = {
        "up/kernel": Split(-2),
        "up/bias": Split(-2),
        "down/kernel": Split(-3),
        "table": Split(-2, must=False),
    }
    starts = ("a/blocks/", "b/blocks/")
    assert found.splits == {s + name: split for s in starts for name, split in splits.items()}
    kernels = {
        "up/kernel": Axes(outputs=2),
        "down/kernel": Axes(inputs=2),
        "both/kernel": Axes(parts=1),
    }
    assert found.kernels == {s + name: kernel for s in starts for name, kernel in kernels.items()}
    assert found.splits.keys() | found.kernels.keys() < trees.flatten(shapes["params"]).keys()


def test_the_mesh_splits_what_is_declared():
    shapes, found = axes.traced(Model().init, jax.random.key(0), X)
    mesh = AbstractMesh((1, 1, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    state = {"model": shapes["params"], "opt": {"mu": shapes["params"]}}
    placed = trees.flatten(place(state, mesh, found.splits))
    is_split = {path: tuple(x.spec) for path, x in placed.items() if any(x.spec)}
    expected = {
        "up/kernel": (None, None, "tensor", None),
        "up/bias": (None, "tensor", None),
        "down/kernel": (None, "tensor", None, None),
    }
    assert is_split == {
        f"{tree}/{part}/blocks/{name}": spec
        for tree in ("model", "opt/mu")
        for part in "ab"
        for name, spec in expected.items()
    }


def test_lora_goes_by_the_same_declarations():
    lora = Lora([".*kernel"], rank=2, alpha=1)

    def init(key):
        with axes.recording() as found:
            params = Stacked().init(key, X)["params"]
        del params["blocks"]["conv"]
        return lora.add(key, params, found.kernels)

    shapes, found = axes.traced(init, jax.random.key(0))
    shapes = {path: x.shape for path, x in trees.flatten(shapes).items() if "lora" in path}
    assert shapes == {
        "blocks/up/lora_a": (3, 8, 2),
        "blocks/up/lora_b": (3, 2, 4, 6),
        "blocks/down/lora_a": (3, 4, 6, 2),
        "blocks/down/lora_b": (3, 2, 8),
        "blocks/both/lora_a": (3, 8, 2, 2),
        "blocks/both/lora_b": (3, 2, 2, 8),
    }
    assert all(found.splits[path] == MAY_STAY_WHOLE for path in shapes)
