"""Blocks whose parameters are stacked `[L, ...]`, looped over or written out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from big_vlp.models.layers import axes


def blocks_of(module: nn.Module, init: Callable, *args) -> dict:
    """The parameter "blocks" of a module, which `init(rng, *args)` makes when there is none.

    `module.param` would trace `init` each time, to compare shapes, as long as the blocks take
    themselves; and they compare their own.
    """
    if module.has_variable("params", "blocks"):
        return module.get_variable("params", "blocks")
    with axes.below((*module.path, "blocks")):
        return module.param("blocks", init, *args)


def init_blocks(rng, block, layers: int, *args) -> dict:
    """Fresh parameters of `layers` blocks, stacked; `args` are what `block` is called with."""
    keys = jax.random.split(rng, layers)
    return jax.vmap(lambda key: block.init(key, *args)["params"])(keys)


def run_blocks(body: Callable, x, stacked, layers: int, unroll: bool | int):
    """Runs `x, output = body(x, slice)` over the slices of a tree of arrays [layers, ...].

    Args:
      unroll: True writes every layer out; False loops over them; a number loops over so many.

    Returns:
      (last x, outputs stacked [layers, ...]).

    Raises:
      ValueError: `unroll` is none of these.
    """
    if unroll is not True:
        if unroll is not False and not (isinstance(unroll, int) and unroll >= 1):
            raise ValueError(f"unroll={unroll}: give True, False, or 1 or more layers.")
        return jax.lax.scan(body, x, stacked, unroll=unroll or 1)
    outputs = []
    for piece in unstack(stacked, layers):
        x, output = body(x, piece)
        outputs.append(output)
    return x, jax.tree.map(lambda *pieces: jnp.stack(pieces), *outputs)


def unstack(tree, length: int) -> list:
    """Stacked arrays -> one tree per layer. A split's gradient is one concatenation, of which XLA
    lets each layer's product write its part; the gradient of indexing adds up `length` padded
    copies."""
    leaves, structure = jax.tree.flatten(tree)
    pieces = [[piece[0] for piece in jax.lax.split(leaf, (1,) * length, axis=0)] for leaf in leaves]
    return [structure.unflatten(layer) for layer in zip(*pieces)]
