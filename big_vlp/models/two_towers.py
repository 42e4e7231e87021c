"""Dual encoders: CLIP, SigLIP, and COSMOS' towers with cross-attention poolers."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from big_vlp.models.heads.cross_attention import CrossPool
from big_vlp.models.layers.network import Network
from big_vlp.models.layers.transformer import torch_bias_init, torch_kernel_init
from big_vlp.models.text import TextTransformer
from big_vlp.models.towers import vit
from input_pipeline.checks import arguments


def l2_normalise(x, eps: float = 1e-12):
    """x / max(||x||, eps) over the last axis, in fp32, with a finite gradient at zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, eps**2))


def scalar(value: float):
    return lambda key: jnp.asarray(value, jnp.float32)


class TwoTowers(Network):
    """An image and a text tower that meet in a joint space, with a learned temperature.

    Attributes:
      image, text: keyword arguments of `vit.Tower` and `TextTransformer`.
      embed_dim: width of the joint space.
      init_scale: initial exp(logit_scale).
      init_bias: initial logit_bias; None for losses without one.
    """

    image: dict
    text: dict
    embed_dim: int
    init_scale: float = 1 / 0.07
    init_bias: float | None = None
    dtype: jnp.dtype = jnp.float32
    unroll: bool | int = False
    remat: str | None = None

    def setup(self):
        shared = {
            "embed_dim": self.embed_dim,
            "dtype": self.dtype,
            "unroll": self.unroll,
            "remat": self.remat,
        }
        self.image_tower = arguments.call("model.image", vit.Tower, self.image, **shared)
        self.text_tower = arguments.call("model.text", TextTransformer, self.text, **shared)
        self.logit_scale = self.param("logit_scale", scalar(math.log(self.init_scale)))
        if self.init_bias is not None:
            self.logit_bias = self.param("logit_bias", scalar(self.init_bias))

    def encode_image(self, images):
        """Normalised images [B, S, S, 3] -> unit vectors f32[B, D]."""
        return l2_normalise(self.image_tower(images)[1])

    def encode_patches(self, images):
        """Normalised images [B, S, S', 3] -> unit vectors f32[B, 2, h, w, D], of each patch.

        The class token's projection makes them comparable to texts. They are there with the last
        block's attention as trained, and with correlative self-attention (arXiv 2312.01597).
        """
        _, patches = self.image_tower.encode(images, each_patch=True)
        height, width = (size // self.image_tower.token_size for size in images.shape[1:3])
        patches = jnp.moveaxis(patches, 0, 1).reshape(len(images), 2, height, width, -1)
        return l2_normalise(patches)

    def encode_text(self, tokens):
        """Ids i32[B, T] -> unit vectors f32[B, D]."""
        return l2_normalise(self.pool_text(tokens))

    def pool_text(self, tokens):
        """Ids i32[B, T] -> features [B, D] before normalisation."""
        return self.text_tower(tokens)[1]

    def __call__(self, images, tokens):
        """Both encodings; creates every parameter."""
        return self.encode_image(images), self.encode_text(tokens)


class CosmosTowers(TwoTowers):
    """Two towers and the modules of COSMOS (arXiv 2412.01814, section 3).

    Each pooler is named after the modality whose tokens it pools.

    Attributes:
      pooler_heads, zero_attention: of both poolers, see `CrossPool`.
    """

    pooler_heads: int = 8
    zero_attention: bool = False

    def setup(self):
        super().setup()
        self.distill_logit_scale = self.param(
            "distill_logit_scale", scalar(math.log(self.init_scale))
        )

        def mapping(width):
            return nn.Dense(
                self.embed_dim,
                dtype=self.dtype,
                kernel_init=torch_kernel_init,
                bias_init=torch_bias_init(width),
            )

        self.image_token_mapping = mapping(self.image["width"])
        self.text_token_mapping = mapping(self.text["width"])
        self.image_pooler = CrossPool(self.pooler_heads, self.dtype, self.zero_attention)
        self.text_pooler = CrossPool(self.pooler_heads, self.dtype, self.zero_attention)

    def encode_views(self, global_images, local_images, tokens, more_text=None):
        """All views of a batch, plain and cross-modal.

        Keys and values of every query come from the first global view of the other modality.

        Args:
          global_images: normalised [B, V_g, S_g, S_g, 3].
          local_images: normalised [B, V_l, S_l, S_l, 3]; V_l may be 0.
          tokens: i32[B, C, T], captions; the first is a global one, and whole.
          more_text: [B, C_m, D], of `pool_text`: further captions; they come last.

        Returns:
          Dict of unit vectors f32: image [B, V_g + V_l, D], text [B, C + C_m, D], and their sums
          with what they pool from the other modality, cross_image and cross_text.
        """
        patches, image = over_views(self.image_tower, global_images)
        if local_images.shape[1]:
            _, local = over_views(self.image_tower, local_images)
            image = jnp.concatenate([image, local], axis=1)
        words, text = over_views(self.text_tower, tokens)
        if more_text is not None:
            text = jnp.concatenate([text, more_text], axis=1)
        patches = self.image_token_mapping(patches[:, 0])  # [B, N, D]
        words = self.text_token_mapping(words[:, 0])  # [B, T, D]
        return {
            "image": l2_normalise(image),
            "text": l2_normalise(text),
            # The residual sum takes the features before normalisation.
            "cross_image": l2_normalise(image + self.text_pooler(words, image)),
            "cross_text": l2_normalise(text + self.image_pooler(patches, text)),
        }

    def attention_maps(self, images, tokens):
        """What each modality attends to in the other, for one image and one caption a row.

        Args:
          images: normalised [B, S, S, 3].
          tokens: i32[B, T].

        Returns:
          (weights over patches [B, heads, N], weights over tokens [B, heads, T]), fp32.
        """
        patches, image = self.image_tower(images)
        words, text = self.text_tower(tokens)
        over_patches = self.image_pooler(
            self.image_token_mapping(patches), text[:, None], return_weights=True
        )
        over_words = self.text_pooler(
            self.text_token_mapping(words), image[:, None], return_weights=True
        )
        return over_patches[:, :, 0], over_words[:, :, 0]

    def __call__(self, images, tokens):
        """Creates every parameter."""
        return self.encode_views(images[:, None], images[:, None], tokens[:, None])


def over_views(tower, x):
    """Applies `tower` to [B, V, ...] as [B * V, ...]; results get their view axis back."""
    batch, views = x.shape[:2]
    outputs = tower(x.reshape(batch * views, *x.shape[2:]))
    return tuple(y.reshape(batch, views, *y.shape[1:]) for y in outputs)


def completed(model: Mapping[str, Any]) -> dict:
    """The argument `model` of a method with the defaults of its towers, without what is of no
    effect on a trained model; without others than towers and embed_dim."""
    embed_dim = model["embed_dim"]
    # Sizes that the preprocess record states are no part of it.
    given = {"embed_dim": embed_dim, "parent": None}
    image = arguments.call("model.image", vit.Tower, {**model["image"], "image_size": 0}, **given)
    text = {**model["text"], "context_length": 0}
    text = arguments.call("model.text", TextTransformer, text, **given)
    return {"image": image.arguments(), "text": text.arguments(), "embed_dim": embed_dim}
