"""Pre-norm transformer blocks, stacked `[L, ...]`, shared by the image and the text tower."""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vlp.models.layers.activations import ACTIVATIONS
from big_vlp.models.layers.attention import correlative_attention, self_attention
from big_vlp.models.layers.axes import inputs, outputs
from big_vlp.models.layers.norms import layer_norm
from big_vlp.models.layers.remat import named, rematerialised
from big_vlp.models.layers.stack import blocks_of, init_blocks, run_blocks
from big_vlp.parallel import meshes

normal = jax.nn.initializers.normal

# PyTorch's default for Linear and Conv weights, kaiming_uniform(a=sqrt(5)): U(+-1/sqrt(fan_in)).
torch_kernel_init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

# PyTorch's MultiheadAttention: Xavier over the fused [width, 3 * width] matrix.
xavier_init = jax.nn.initializers.xavier_uniform()


def torch_bias_init(fan_in: int):
    """PyTorch's default bias of a layer with `fan_in` inputs: U(+-1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class BlockInit(NamedTuple):
    """Initialisers of a block's four kernels (flax hands DenseGeneral's to them as 2-D).

    `mlp_bias` makes the initialiser of the MLP's biases from their layer's number of inputs.
    """

    qkv: Callable = xavier_init
    out: Callable = torch_kernel_init
    fc1: Callable = torch_kernel_init
    fc2: Callable = torch_kernel_init
    mlp_bias: Callable = torch_bias_init


def clip_text_init(width: int, layers: int) -> BlockInit:
    """CLIP's rule for the text tower (arXiv 2103.00020; COSMOS keeps it)."""
    attn_std = width**-0.5
    proj_std = attn_std * (2 * layers) ** -0.5
    return BlockInit(
        qkv=normal(attn_std),
        out=normal(proj_std),
        fc1=normal((2 * width) ** -0.5),
        fc2=normal(proj_std),
    )


class SelfAttention(nn.Module):
    """Multi-head self-attention with a fused input projection.

    `qkv/kernel` is [width, 3, heads, head_dim], so a tensor-parallel split falls on whole heads.

    Attributes:
      correlative: takes `attention.correlative_attention`, with the same parameters.
    """

    tensor_axes = outputs("qkv", -2) | inputs("out", -3)  # by heads
    fused_layers = ("qkv",)

    heads: int
    causal: bool
    dtype: jnp.dtype
    inits: BlockInit
    correlative: bool = False

    @nn.compact
    def __call__(self, x):
        """[B, T, W] -> [B, T, W]."""
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} must be a multiple of the {self.heads} heads.")
        qkv = nn.DenseGeneral(
            (3, self.heads, width // self.heads),
            dtype=self.dtype,
            kernel_init=self.inits.qkv,
            name="qkv",
        )(x)
        qkv = named(qkv, "qkv")
        if self.correlative:
            out = correlative_attention(qkv)
        else:
            out = self_attention(qkv, causal=self.causal)
        out = nn.DenseGeneral(
            width, axis=(-2, -1), dtype=self.dtype, kernel_init=self.inits.out, name="out"
        )(out)
        return named(out, "out")


class Mlp(nn.Module):
    """Two linear layers around an activation; the hidden width is `mlp_dim`, by default 4x."""

    tensor_axes = outputs("fc1") | inputs("fc2")  # by hidden units

    activation: str
    dtype: jnp.dtype
    inits: BlockInit
    mlp_dim: int | None = None

    @nn.compact
    def __call__(self, x):
        """[..., W] -> [..., W]."""
        width = x.shape[-1]

        def dense(features, kernel_init, fan_in, name):
            return nn.Dense(
                features,
                dtype=self.dtype,
                kernel_init=kernel_init,
                bias_init=self.inits.mlp_bias(fan_in),
                name=name,
            )

        hidden = self.mlp_dim or 4 * width
        x = named(dense(hidden, self.inits.fc1, width, "fc1")(x), "hidden")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"Unknown activation {self.activation!r}; choose one of {list(ACTIVATIONS)}."
            )
        x = ACTIVATIONS[self.activation](x)
        return dense(width, self.inits.fc2, hidden, "fc2")(x)


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    heads: int
    causal: bool
    activation: str
    dtype: jnp.dtype
    inits: BlockInit
    mlp_dim: int | None = None
    norm: Callable = layer_norm
    correlative: bool = False

    @nn.compact
    def __call__(self, x):
        """[B, T, W] -> [B, T, W]."""
        y = self.norm("norm1", self.dtype)(x)
        attend = SelfAttention(
            self.heads, self.causal, self.dtype, self.inits, self.correlative, name="attn"
        )
        x = x + attend(y)
        y = self.norm("norm2", self.dtype)(x)
        return x + Mlp(self.activation, self.dtype, self.inits, self.mlp_dim, name="mlp")(y)


class Transformer(nn.Module):
    """`layers` blocks whose parameters are stacked on a leading axis, under "blocks".

    Attributes:
      unroll: True writes every block out in the program (longest compile, best fusion); False
        compiles one block and loops; a number so many to a round of the loop. The parameters are
        the same.
      remat: what the backward pass computes again, see `remat.rematerialised`.
      mlp_dim: hidden width of the MLPs; None is four times the width.
      norm: `norm(name, dtype)` makes the module that normalises.
    """

    layers: int
    heads: int
    causal: bool
    activation: str
    dtype: jnp.dtype
    inits: BlockInit
    unroll: bool | int
    remat: str | None
    mlp_dim: int | None = None
    norm: Callable = layer_norm

    @nn.compact
    def __call__(self, x, both_ways: bool = False):
        """[B, T, W] -> [B, T, W]; sows "block_outputs" [L, B, T, W] where that is asked for.

        With `both_ways` [2, B, T, W]: what the last block gives as it was trained, and with
        correlative self-attention.
        """
        # No parent: the block is a pure function of its slice of the stacked parameters.
        block = Block(
            self.heads,
            self.causal,
            self.activation,
            self.dtype,
            self.inits,
            self.mlp_dim,
            self.norm,
            parent=None,
        )
        params = blocks_of(self, init_blocks, block, self.layers, x)
        keep_outputs = self.is_mutable_collection("intermediates")

        def body(x, params):
            x = block.apply({"params": params}, meshes.keep_over_batch(x))
            return x, x if keep_outputs else None

        body = rematerialised(body, self.remat, self.unroll)
        if both_ways:
            first = jax.tree.map(lambda stacked: stacked[:-1], params)
            last = jax.tree.map(lambda stacked: stacked[-1], params)
            if self.layers > 1:
                x, _ = run_blocks(body, x, first, self.layers - 1, self.unroll)
            x = meshes.keep_over_batch(x)
            ways = (block, block.clone(correlative=True))
            return jnp.stack([way.apply({"params": last}, x) for way in ways])
        x, outputs = run_blocks(body, x, params, self.layers, self.unroll)
        if keep_outputs:
            self.sow("intermediates", "block_outputs", outputs)
        return x
