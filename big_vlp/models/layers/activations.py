"""Activations by name, elementwise. They are computed in fp32 whatever they get and give, and again
in the backward pass, for which what they get is kept alone: XLA fuses them into the products around
them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def _in_fp32(fn: Callable) -> Callable:
    def computed(x):
        return fn(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)

    # In a loop XLA cannot merge the recomputation away; written out it may, if that is cheaper.
    return jax.checkpoint(computed, prevent_cse=False)


@_in_fp32
def gelu(x):
    """The exact one, as PyTorch has it. JAX's own goes by erfc, which costs XLA several passes."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * 2**-0.5))


silu = _in_fp32(jax.nn.silu)

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": _in_fp32(lambda x: jax.nn.gelu(x, approximate=True)),
    "quick_gelu": _in_fp32(lambda x: x * jax.nn.sigmoid(1.702 * x)),
}
