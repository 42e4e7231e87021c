"""Text transformer: token ids -> all tokens and one pooled feature."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from big_vlp.models.layers.head import Head
from big_vlp.models.layers.norms import layer_norm
from big_vlp.models.layers.transformer import Transformer, clip_text_init, normal
from big_vlp.models.towers.shared import base


class TextTransformer(nn.Module):
    """CLIP's text tower (arXiv 2103.00020) or SigLIP's bidirectional one.

    pool="eot" takes the position of the largest id, which is CLIP's end-of-text token; "last"
    takes the last position (SigLIP, whose output projection has a bias).

    Attributes:
      causal: tokens see only earlier tokens.
      embed_dim: width of the pooled feature.
      norm_epsilon: of every LayerNorm.
      mlp_dim: hidden width of the MLPs; None is four times the width.
      proj_bias: of the output projection; None is with pool="last".
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    causal: bool = True
    pool: str = "eot"
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    mlp_dim: int | None = None
    proj_bias: bool | None = None
    dtype: jnp.dtype = jnp.float32
    unroll: bool | int = False
    remat: str | None = None

    @nn.compact
    def __call__(self, tokens):
        """Ids i32[B, T], T <= context_length -> (tokens [B, T, W], pooled f32[B, embed_dim]).

        Tokens are after the final norm and not projected; pooled is not L2-normalised.
        """
        if self.pool not in ("eot", "last"):
            raise ValueError(f"pool={self.pool!r}; choose eot or last.")
        length = tokens.shape[1]
        if length > self.context_length:
            raise ValueError(
                f"Captions have {length} tokens but context_length is {self.context_length}."
            )
        x = nn.Embed(
            self.vocab_size, self.width, embedding_init=normal(0.02), name="token_embedding"
        )(tokens)
        table = self.param(
            "position_embedding", normal(0.01), (self.context_length, self.width), jnp.float32
        )
        x = (x + table[:length]).astype(self.dtype)
        norm = functools.partial(layer_norm, epsilon=self.norm_epsilon)

        x = Transformer(
            self.layers,
            self.heads,
            causal=self.causal,
            activation=self.activation,
            dtype=self.dtype,
            inits=clip_text_init(self.width, self.layers),
            unroll=self.unroll,
            remat=self.remat,
            mlp_dim=self.mlp_dim,
            norm=norm,
            name="transformer",
        )(x)
        x = norm("norm_post", self.dtype)(x)

        if self.pool == "eot":
            pooled = jnp.take_along_axis(x, jnp.argmax(tokens, axis=1)[:, None, None], axis=1)[:, 0]
        else:
            pooled = x[:, -1]
        projection = Head(
            self.embed_dim,
            use_bias=self.has_proj_bias,
            dtype=self.dtype,
            kernel_init=normal(self.width**-0.5),
            name="proj",
        )
        return x, projection(pooled)

    @property
    def has_proj_bias(self) -> bool:
        return self.pool == "last" if self.proj_bias is None else self.proj_bias

    @nn.nowrap
    def arguments(self) -> dict:
        """As of an image tower."""
        mlp_dim = self.mlp_dim or 4 * self.width
        return base.arguments(self, proj_bias=self.has_proj_bias, mlp_dim=mlp_dim)
