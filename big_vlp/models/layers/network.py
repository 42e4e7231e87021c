"""What whole models have in common."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp


class Network(nn.Module):
    """A whole model, with a `dtype`. With fp32 its products are in fp32 on every device, forward
    and backward: by default TPUs round their inputs to bf16, and GPUs to TF32."""

    @nn.nowrap
    def apply(self, *args, **kwargs):
        """As every module's."""
        exact = jnp.dtype(self.dtype) == jnp.float32
        precision = jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()
        with precision:
            return super().apply(*args, **kwargs)
