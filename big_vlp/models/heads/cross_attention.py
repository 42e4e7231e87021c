"""COSMOS' cross-attention pooler: features of one modality query the tokens of the other."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vlp.models.layers.attention import attention, attention_weights
from big_vlp.models.layers.axes import inputs, outputs
from big_vlp.models.layers.norms import layer_norm
from big_vlp.models.layers.transformer import torch_kernel_init

# Xavier over PyTorch's fused [D, 3 * D] input projection, also where its parts stand apart.
_fused_xavier_init = jax.nn.initializers.variance_scaling(0.5, "fan_in", "uniform")


class CrossPool(nn.Module):
    """out(attention(query=norm_q(q), key=value=norm_k(tokens))), COSMOS section 3.

    No MLP, no residual, no key mask: padding tokens are attended to, as in the published models.
    The queries of a sample share its keys and values, which are therefore projected once.

    Attributes:
      zero_attention: adds a key and a value of zeros, so that a query may attend to nothing.
    """

    tensor_axes = outputs("query", -2) | outputs("key_value", -2) | inputs("out", -3)  # by heads
    fused_layers = ("key_value",)

    heads: int
    dtype: jnp.dtype
    zero_attention: bool = False

    @nn.compact
    def __call__(self, tokens, queries, return_weights: bool = False):
        """Tokens [B, N, D], queries [B, V, D] -> f32[B, V, D].

        With `return_weights`, the softmax weights [B, heads, V, N] in fp32 instead.
        """
        width = queries.shape[-1]
        if width % self.heads:
            raise ValueError(f"embed_dim {width} must be a multiple of the {self.heads} heads.")
        head = (self.heads, width // self.heads)

        def project(features, name):
            return nn.DenseGeneral(
                features, dtype=self.dtype, kernel_init=_fused_xavier_init, name=name
            )

        query = project(head, "query")(layer_norm("norm_q", self.dtype)(queries))
        key_value = project((2, *head), "key_value")(layer_norm("norm_k", self.dtype)(tokens))
        if self.zero_attention:
            key_value = jnp.pad(key_value, ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
        key, value = key_value[:, :, 0], key_value[:, :, 1]
        out = nn.DenseGeneral(
            width,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=torch_kernel_init,
            # It is a part of what the losses compare, see `head.Head`.
            dot_general=functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32),
            name="out",
        )
        if return_weights:
            return attention_weights(query, key)[..., : tokens.shape[1]]
        return out(attention(query, key, value))
