"""What an image tower is."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

# Arguments that are given, or of no effect on a trained model.
_OTHERS = {"parent", "name", "dtype", "unroll", "remat", "embed_dim", "image_size"}
_OTHERS |= {"context_length", "position_scale"}


def arguments(tower: nn.Module, **resolved) -> dict:
    """A tower's arguments that decide what it computes, with its defaults.

    Args:
      resolved: what stands in the place of a None.
    """
    fields = [field.name for field in dataclasses.fields(tower) if field.name not in _OTHERS]
    return {name: getattr(tower, name) for name in fields} | resolved


class Tower(nn.Module, kw_only=True):
    """Images -> a map of tokens, and one feature for the whole image.

    A tower is a Flax module of this base. It writes `encode` and `token_size`, and `prepare` where
    a part of it needs the whole batch.

    Attributes:
      dtype: of the computation; parameters are fp32.
      unroll, remat: how the blocks are executed, see `models.layers.transformer.Transformer`.
    """

    dtype: jnp.dtype = jnp.float32
    unroll: bool | int = False
    remat: str | None = None

    @property
    def token_size(self) -> int:
        """Pixels per side of a token: an image's sides must be multiples of it."""
        raise NotImplementedError

    @nn.nowrap
    def arguments(self) -> dict:
        """What decides what it computes, beside its parameters; one whose value is None decides
        nothing."""
        return arguments(self)

    def prepare(self, images, train: bool = False):
        """The first half of a call: what depends on the whole batch, which is BatchNorm.

        Args:
          images: [B, S, S', 3], normalised.
          train: whether statistics are those of the batch.

        Returns:
          What `encode` takes, [B, ...]: the images themselves where no row depends on others.
        """
        del train
        return images

    def encode(self, x):
        """The second half, which can run on some of the rows.

        Args:
          x: of `prepare`.

        Returns:
          (tokens [B, N, W], row after row, without a class token; pooled [B, D], or None where the
          tower was told to pool nothing).
        """
        raise NotImplementedError

    def __call__(self, images, train: bool = False):
        """Normalised images [B, S, S', 3] -> (tokens, pooled) of `encode`."""
        return self.encode(self.prepare(images, train))
