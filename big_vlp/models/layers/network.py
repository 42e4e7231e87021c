"""What whole models have in common."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vlp.models.layers.attention import check, using


class Network(nn.Module, kw_only=True):
    """A whole model, with a `dtype`. With fp32 its products are in fp32 on every device, forward
    and backward: by default TPUs round their inputs to bf16, and GPUs to TF32.

    Attributes:
      attention: what computes all of its attention, "auto" or one of `layers.attention.BACKENDS`.
    """

    attention: str = "auto"

    def __post_init__(self):
        check(self.attention)
        super().__post_init__()

    @nn.nowrap
    def apply(self, *args, **kwargs):
        """As every module's."""
        exact = jnp.dtype(self.dtype) == jnp.float32
        precision = jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()
        with precision, using(self.attention):
            return super().apply(*args, **kwargs)
