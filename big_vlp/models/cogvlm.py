"""CogVLM (arXiv 2311.03079): an image tower and an adapter in front of a language model whose
blocks have visual experts. CogVLM2 is the same with other sizes, and any ViT can be the tower."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vlp.models import layout as layouts
from big_vlp.models.decoder import EXPERT_PARTS, INIT, GatedMlp, Places, reordered
from big_vlp.models.layers.activations import gelu
from big_vlp.models.layers.head import Head
from big_vlp.models.layers.network import Network
from big_vlp.models.layers.norms import layer_norm
from big_vlp.models.layers.transformer import torch_kernel_init
from big_vlp.models.layout import PADDING, VISION
from big_vlp.models.llama import Llama
from big_vlp.models.towers import Tower, make_tower
from input_pipeline.checks import arguments

LAYOUTS = ("static", "general", "any")
IMAGE_MASKS = ("causal", "full")


class Adapter(nn.Module):
    """Image tokens -> tokens of the language model, between a learned begin and end of image.

    mlp(gelu(norm(linear(x)))), of which the paper names the SwiGLU only.

    Attributes:
      width: of the language model.
      mlp_dim: hidden width of the SwiGLU.
    """

    width: int
    mlp_dim: int
    dtype: jnp.dtype

    def setup(self):
        # By the number of inputs: of any width, what comes out is as large as a token's embedding.
        dense = {"dtype": self.dtype, "kernel_init": torch_kernel_init}
        self.linear = nn.Dense(self.width, use_bias=False, **dense)
        self.norm = layer_norm(None, self.dtype)
        self.mlp = GatedMlp(self.mlp_dim, **dense)
        zeros = nn.initializers.zeros
        self.boi = self.param("boi", zeros, (self.width,), jnp.float32)
        self.eoi = self.param("eoi", zeros, (self.width,), jnp.float32)

    def project(self, x):
        """[B, N, W] -> [B, N, D]."""
        return self.mlp(gelu(self.norm(self.linear(x))))

    def __call__(self, x):
        """[B, N, W] -> [B, N + 2, D]."""
        x = self.project(x)
        ends = (
            jnp.broadcast_to(end.astype(self.dtype), (x.shape[0], 1, self.width))
            for end in (self.boi, self.eoi)
        )
        boi, eoi = ends
        return jnp.concatenate([boi, x, eoi], axis=1)


class CogVLM(Network):
    """The whole model.

    Sequences are described by token types, and by a layout, which says what all rows promise, see
    `models.layout`; the numbers are the same by each that fits (but dropout draws others by "any",
    whose rows are longer). With "static" and "general" every token goes through one expert, which
    costs what the language model costs. "any" makes the room that "general" needs, by as much
    padding as the vision experts could take, and costs about twice as much. Without image features
    the model is the plain language model.

    Rows come out as NaN, never as wrong numbers, if they have no room for "general", are not
    "static", or have more image slots than features. Whether each image has all its slots is not
    seen here: `layout.check` looks.

    Attributes:
      text: keyword arguments of `Llama`.
      image: those of the image tower; None: there is none, nor an adapter, and the model is a
        language model.
      tower: which one, see `models.towers`: "eva" is CogVLM's own, "vit" that of CLIP, SigLIP and
        COSMOS, "catlip_vit" CatLIP's.
      adapter_mlp_dim: hidden width of the adapter.
      expert_parts, expert_every, expert_qkv_bias: see `Llama`.
      image_mask: "causal", or "full", where boi and patches of an image see each other.
      image_head: whether there is an output layer for `predict_features`.
      unroll, remat: how the blocks are executed, see `models.layers.transformer.Transformer`.
    """

    text: dict
    image: dict | None = None
    tower: str = "eva"
    adapter_mlp_dim: int | None = None
    expert_parts: tuple[str, ...] = EXPERT_PARTS
    expert_every: int = 1
    expert_qkv_bias: bool = False
    image_mask: str = "causal"
    image_head: bool = False
    dtype: jnp.dtype = jnp.float32
    unroll: bool | int = False
    remat: str | None = None

    def setup(self):
        if self.image_mask not in IMAGE_MASKS:
            raise ValueError(f"image_mask={self.image_mask!r}; choose one of {IMAGE_MASKS}.")
        execution = {"dtype": self.dtype, "unroll": self.unroll, "remat": self.remat}
        self.language = arguments.call(
            "model.text",
            Llama,
            self.text,
            expert_parts=tuple(self.expert_parts),
            expert_every=self.expert_every,
            expert_qkv_bias=self.expert_qkv_bias,
            **execution,
        )
        if self.image is not None:
            self.vision = self._make_tower(**execution)
            self.adapter = Adapter(self.language.width, self.adapter_mlp_dim, self.dtype)
        if self.image_head:
            self.feature_head = Head(
                self.image["width"], use_bias=False, dtype=self.dtype, kernel_init=INIT
            )

    def _make_tower(self, **execution):
        if not self.adapter_mlp_dim:
            raise ValueError("An image tower needs an adapter: give adapter_mlp_dim.")
        return make_tower("model.image", self.tower, self.image, **execution)

    @property
    def image_token_size(self) -> int:
        """Pixels per side of what an image token stands for."""
        return self.image_tower.token_size

    @property
    def image_tower(self) -> Tower:
        """The image tower, unbound."""
        return self._make_tower(parent=None)

    def image_tokens(self, images):
        """Normalised images [B, I, S, S, 3] -> the image tower's tokens [B, I, N, W]."""
        rows, count, *shape = images.shape
        tokens, _ = self.vision(images.reshape(rows * count, *shape))
        return tokens.reshape(rows, count, *tokens.shape[1:])

    def adapt(self, tokens):
        """[B, I, N, W] of `image_tokens` -> features [B, I, N + 2, D] with boi and eoi."""
        features = self.adapter(tokens.reshape(-1, *tokens.shape[2:]))
        return features.reshape(*tokens.shape[:2], *features.shape[1:])

    def encode_images(self, images):
        """Normalised images [B, I, S, S, 3] -> features [B, I, N + 2, D]."""
        return self.adapt(self.image_tokens(images))

    def merge(self, tokens, types, features, layout: str):
        """Embeds tokens and puts image features into their slots.

        Args:
          tokens: ids i32[B, T]; those in image slots do not matter.
          types: i32[B, T] of `models.layout`.
          features: [B, I, N + 2, D] of `encode_images`, or None without images. A row's slots take
            them in order; those that are too many are not used.

        Returns:
          [B, T, D], NaN in rows that have slots for more, or are not static where they should be.

        Raises:
          ValueError: an unknown layout, or shapes that cannot be static.
        """
        layout, vision = needed_layout(self, layout), types == VISION
        if features is None:
            x, fits = self.language.embed(tokens), ~vision.any(axis=1)
        elif layout == "static":
            x = self._merge_static(tokens, features)
            fits = layouts.static_rows(types, features.shape[2])
        else:
            length, flat = types.shape[1], features.reshape(len(features), -1, features.shape[-1])
            fits = vision.sum(axis=1) <= flat.shape[1]
            flat = jnp.pad(flat[:, :length], ((0, 0), (0, max(length - flat.shape[1], 0)), (0, 0)))
            order = layouts.slot_order(types)
            in_place = reordered(flat, jnp.argsort(order, axis=1), order)
            x = jnp.where(vision[..., None], in_place, self.language.embed(tokens))
        return jnp.where(fits[:, None, None], x, jnp.nan)

    def _merge_static(self, tokens, features):
        slots = features.shape[2]
        if features.shape[1] != 1 or tokens.shape[1] <= slots:
            raise ValueError(
                f"The static layout is one token and the {slots} slots of one image, then text: "
                f"got {features.shape[1]} images a row and rows of {tokens.shape[1]}."
            )
        text = jnp.concatenate([tokens[:, :1], tokens[:, slots + 1 :]], axis=1)
        text = self.language.embed(text)
        return jnp.concatenate([text[:, :1], features[:, 0], text[:, 1:]], axis=1)

    def hidden(
        self,
        tokens,
        types,
        features=None,
        layout="any",
        positions=None,
        keep_cache=False,
        dropout_keys=None,
        segments=None,
    ):
        """The language model without its output layer.

        Args:
          tokens, types, features, layout: as of `merge`; features None: there are no images.
          positions: ids i32[B, T]; by default those of `layout.position_ids`.
          keep_cache: whether to return keys and values.
          dropout_keys: see `Llama`.
          segments: i32[B, T] of `models.layout`, where several examples share a row; none of them
            sees another.

        Returns:
          ([B, T, D] after the final norm, cache of `Llama.empty_cache` or None).
        """
        if positions is None:
            positions = layouts.position_ids(types, segments)
        if features is None:
            x = self.merge(tokens, types, None, layout)
            return self.language(x, positions, None, None, keep_cache, dropout_keys, segments)
        length, (images, slots) = types.shape[1], features.shape[1:3]
        vision = layouts.vision_places(length, images, slots) if self.expert_parts else 0
        if layout == "any":
            more = ((0, 0), (0, vision))
            tokens, positions = jnp.pad(tokens, more), jnp.pad(positions, more)
            types = jnp.pad(types, more, constant_values=PADDING)
            segments = None if segments is None else jnp.pad(segments, more)
        x = self.merge(tokens, types, features, layout)
        full = self.image_mask == "full"
        if layout == "static":
            route = (1, slots)  # boi and patches; eoi is language
            spans = route if full else None
            return self.language(x, positions, route, spans, keep_cache, dropout_keys, segments)
        spans = layouts.image_spans(types) if full else None
        if not self.expert_parts:
            return self.language(x, positions, None, spans, keep_cache, dropout_keys, segments)
        order, fits = layouts.stream_order(types, vision)
        route = Places(order, jnp.argsort(order, axis=1), types.shape[1] - vision)
        x, cache = self.language(x, positions, route, spans, keep_cache, dropout_keys, segments)
        x = jnp.where(fits[:, None, None], x, jnp.nan)
        return x[:, :length], jax.tree.map(lambda a: a[:, :, :length], cache)

    def logits(self, hidden):
        """[..., D] of `hidden` -> f32[..., vocab_size]."""
        return self.language.logits(hidden)

    def predict_features(self, hidden):
        """[..., D] of `hidden` -> f32[..., W]: what the next image token is expected to be, up to
        its length (the ablation "image SSL loss" of arXiv 2311.03079)."""
        return self.feature_head(hidden)

    def prefill(self, tokens, types, lengths, features=None, layout="any", positions=None):
        """Begins a generation: reads prompts that are padded on the right.

        Args:
          lengths: i32[B], of each row without padding.
          tokens, types, features, layout, positions: as of `hidden`. Position ids are best taken
            before a row is padded, see `layout.position_ids`.

        Returns:
          (logits f32[B, vocab_size] of each row's next token, cache as of `hidden`; what it holds
          behind a row's length is not used).
        """
        x, cache = self.hidden(tokens, types, features, layout, positions, keep_cache=True)
        last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)[:, 0]
        return self.logits(last), cache

    def decode(self, *args):
        """One more token of each row; as `Llama.decode`."""
        return self.language.decode(*args)

    def empty_cache(self, rows: int, length: int):
        """As `Llama.empty_cache`."""
        return self.language.empty_cache(rows, length)

    def __call__(self, images, tokens, types, layout="any"):
        """Logits f32[B, T, vocab_size]; creates every parameter. Arguments as above, images
        [B, I, S, S, 3] or None."""
        features = None if images is None else self.encode_images(images)
        hidden = self.hidden(tokens, types, features, layout)[0]
        if self.image_head:
            self.predict_features(hidden)
        return self.logits(hidden)


def needed_layout(model: CogVLM, layout: str) -> str:
    """What rows must promise for a layout: without visual experts nothing needs room.

    Raises:
      ValueError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}; choose one of {LAYOUTS}.")
    return "any" if layout == "general" and not model.expert_parts else layout


def dead_parameters(model: CogVLM) -> dict[str, tuple]:
    """What never gets a gradient from predicting text: parts of the last block's visual expert.

    Only its keys and values reach a later token of another kind.

    Returns:
      {path: index}: the part of the parameter is `parameter[index]`.
    """
    if model.expert_every > 1 or model.image is None or model.image_head:
        return {}  # the last block has no expert, or its image tokens predict something
    start = "language/blocks/vision"
    dead = {}
    if "qkv" in model.expert_parts:
        fused = model.text.get("kv_heads") in (None, model.text["heads"])
        names = ("kernel", "bias") if model.expert_qkv_bias else ("kernel",)
        for name in names:
            if not fused:
                dead[f"{start}/attn/query/{name}"] = (-1,)
            else:  # [L, W, 3, H, D] or [L, 3, H, D]
                axes = (slice(None),) if name == "kernel" else ()
                dead[f"{start}/attn/qkv/{name}"] = (-1, *axes, 0)
    if "out" in model.expert_parts:
        dead[f"{start}/attn/out/kernel"] = (-1,)
    if "mlp" in model.expert_parts:
        dead |= {f"{start}/mlp/{name}/kernel": (-1,) for name in ("gate", "up", "down")}
    return dead
