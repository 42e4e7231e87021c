"""Normalisation: LayerNorm with exact fp32 statistics, BatchNorm over the global batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def layer_norm(name: str, dtype, epsilon: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm with two-pass fp32 statistics (the one-pass form loses digits)."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


class ChannelFirstLayerNorm(nn.Module):
    """The LayerNorm that released CatLIP detectors were trained with, quirk included.

    Where there are as many tokens as channels, the reference takes the tokens for the channels: it
    normalises over them, by (std + epsilon), and scales token t with the gain of channel t. Any
    other shape is a plain LayerNorm. (ViT-L at 512 pixels has 1024 tokens and 1024 channels.)
    """

    dtype: jnp.dtype
    epsilon: float

    @nn.compact
    def __call__(self, x):
        """[B, T, W] -> [B, T, W]."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        x = x.astype(jnp.float32)
        if x.shape[1] == width:
            centred = x - x.mean(axis=1, keepdims=True)
            std = jnp.sqrt(jnp.square(centred).mean(axis=1, keepdims=True))
            x = centred / (std + self.epsilon) * scale[:, None] + bias[:, None]
        else:
            centred = x - x.mean(axis=-1, keepdims=True)
            var = jnp.square(centred).mean(axis=-1, keepdims=True)
            x = centred * jax.lax.rsqrt(var + self.epsilon) * scale + bias
        return x.astype(self.dtype)


class BatchNorm(nn.Module):
    """BatchNorm (arXiv 1502.03167) with the statistics of the global batch, in fp32.

    Running statistics are as PyTorch keeps them: new = (1 - momentum) * old + momentum * batch, the
    batch's variance without bias (n - 1), though it is normalised with the biased one.
    """

    dtype: jnp.dtype
    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, train: bool):
        """[B, ..., W] -> [B, ..., W].

        Args:
          train: normalise with the batch and, where "batch_stats" is mutable, move the running
            statistics; else normalise with these.
        """
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (width,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (width,))
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            var = jnp.square(x - mean).mean(axes)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                count = x.size // width
                unbiased = var * count / max(count - 1, 1)
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        x = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return x.astype(self.dtype)
