"""The last layer of a model, whose outputs are ranked, thresholded or go into a loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Head(nn.Dense):
    """A dense layer whose products are summed up and kept in fp32, bias included.

    A half-precision result would make equals of outputs that are close: bf16 tells logits of 8 to
    16 apart in steps of 1/16. Inputs and kernel are in `dtype`, as in other layers.

    Attributes:
      window: axes of size 1 that the stored kernel has in front, as that of a 1x1 convolution.
    """

    window: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x):
        """[..., W] -> f32[..., features]."""
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        kernel = kernel.reshape(shape[-2:])
        if self.dtype is not None:
            x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = jax.lax.dot_general(
            x,
            kernel,
            (((x.ndim - 1,), (0,)), ((), ())),
            precision=self.precision,
            preferred_element_type=jnp.float32,
        )
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return y
