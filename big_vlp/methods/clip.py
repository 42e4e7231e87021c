"""CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343): two towers, one contrastive loss."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import losses, trees
from big_vlp.augment.photometric import Photometric, normalise
from big_vlp.methods import compute_dtype
from big_vlp.methods.shared.accumulate import over_micro_batches
from big_vlp.models.two_towers import TwoTowers
from input_pipeline.checks import arguments
from input_pipeline.preprocess import Preprocess

MAX_LOGIT_SCALE = math.log(100)


@dataclasses.dataclass(frozen=True)
class Method:
    """Two towers trained on pairs.

    Attributes:
      model: {"image": ViT arguments, "text": TextTransformer arguments, "embed_dim": int}; sizes
        that the preprocess record states are taken from there.
      loss_type: "softmax" (CLIP) or "sigmoid" (SigLIP).
      photometric: arguments of `augment.Photometric`, or None for none.
      accumulate_steps: micro-batches per step; the gradient is that of the whole batch.
      dtype: of the computation; parameters are fp32.
      unroll, remat: how the blocks are executed, see `models.transformer.Transformer`.
      text_lengths: captions are cut to the first of these lengths that holds the longest of a
        batch, or else stay whole. Each length is compiled once. For causal towers only: there
        nothing depends on what comes after the end of a text.
    """

    preprocess: Preprocess
    model: dict
    loss_type: str = "softmax"
    photometric: dict | None = None
    accumulate_steps: int = 1
    dtype: str = "bfloat16"
    unroll: bool = False
    remat: str | None = None
    text_lengths: tuple[int, ...] = ()

    def __post_init__(self):
        check_text_lengths(self)
        if self.loss_type not in ("softmax", "sigmoid"):
            raise ValueError(f"loss_type={self.loss_type!r}; choose softmax or sigmoid.")
        if self.photometric is not None:
            arguments.call("photometric", Photometric, self.photometric)  # raises for a wrong key

    @property
    def towers(self) -> TwoTowers:
        sigmoid = self.loss_type == "sigmoid"
        scale, bias = (10.0, -10.0) if sigmoid else (1 / 0.07, None)
        return make_towers(TwoTowers, self, init_scale=scale, init_bias=bias)

    @property
    def vocab_size(self) -> int:
        return self.towers.text["vocab_size"]

    def init(self, rng):
        return init_towers(self.towers, self.preprocess, rng), {}

    def loss(self, trainable, frozen, averaged, statistics, batch, *, rng, step):
        del averaged, step
        params = trees.merge(trainable, frozen)

        def encode(rows):
            images = self.model_images(rows, rows["key"])["image"][:, 0]
            return (
                apply(self.towers, params, "encode_image", images),
                apply(self.towers, params, "encode_text", rows["tokens"]),
            )

        rows = with_keys(batch, rng)
        image, text = over_micro_batches(encode, rows, self.accumulate_steps)

        scale = jnp.exp(params["logit_scale"])
        if self.loss_type == "softmax":
            loss = losses.softmax_loss(image, text, scale)
        else:
            loss = losses.sigmoid_loss(image, text, scale, params["logit_bias"])
        return loss, (statistics, {"logit_scale": scale})

    def text_length(self, batch):
        return text_length(batch["tokens"]) if self.text_lengths else 0

    def cut_text(self, batch, length):
        return {**batch, "tokens": batch["tokens"][..., : static_length(self, length)]}

    def model_images(self, batch, keys):
        images = to_model_input(batch["image"], keys, self.photometric, self.preprocess)
        return {"image": images[:, None]}

    def after_update(self, old, new, averaged, step):
        del old, step
        # SigLIP's temperature is free; CLIP's stays below 100.
        return (clamp_scales(new) if self.loss_type == "softmax" else new), averaged

    def dead_parameters(self):
        return {}

    def predict_fns(self):
        return predict_fns(self.towers, self.preprocess)


def make_towers(kind, method, **given) -> TwoTowers:
    """The towers of a method, with what the preprocess record fixes filled in.

    Args:
      kind: `TwoTowers`, or what is made of it.
    """
    pre = method.preprocess
    given |= {"dtype": compute_dtype(method.dtype), "unroll": method.unroll, "remat": method.remat}
    towers = arguments.call("model", kind, method.model, **given)
    image = {"image_size": pre.image_size, "activation": pre.activation}
    text = {"context_length": pre.context_length, "activation": pre.activation}
    return towers.clone(image={**towers.image, **image}, text={**towers.text, **text})


def check_text_lengths(method) -> None:
    """Raises ValueError unless the texts of `method` can be cut to its `text_lengths`."""
    lengths, text = list(method.text_lengths), method.towers.text
    if lengths != sorted({n for n in lengths if 0 < n < method.preprocess.context_length}):
        raise ValueError(
            f"text_lengths={lengths}: give ascending lengths below the context length "
            f"{method.preprocess.context_length}."
        )
    if lengths and not (text.get("causal", True) and text.get("pool", "eot") == "eot"):
        raise ValueError("text_lengths needs a causal text tower with pool='eot'.")


def text_length(tokens: np.ndarray) -> int:
    """Positions up to the last end of a text, which is its largest id, in i32[..., T]."""
    return int(tokens.argmax(axis=-1).max(initial=0)) + 1


def static_length(method, length: int) -> int:
    """The first of the method's text lengths that holds so many positions."""
    lengths = (*method.text_lengths, method.preprocess.context_length)
    return next(n for n in lengths if n >= length)


def with_keys(batch, rng):
    """The batch and one random key per row, so that rows can be regrouped freely."""
    return {**batch, "key": jax.random.split(rng, batch["tokens"].shape[0])}


def to_model_input(images, keys, photometric: dict | None, preprocess):
    """u8[N, S, S, 3] -> augmented and normalised f32; float images pass as already normalised.

    Args:
      keys: one random key per image; not read where there is no augmentation.
      photometric: arguments of `augment.Photometric`, or None for none.
    """
    if images.dtype != jnp.uint8:
        return images
    if photometric is not None:
        images = Photometric(**photometric).apply(images, keys)
    return normalise(images, preprocess.mean, preprocess.std)


def init_towers(towers, preprocess, rng):
    """Fresh parameters, fp32."""
    size = preprocess.image_size
    images = jnp.zeros((1, size, size, 3))
    tokens = jnp.zeros((1, preprocess.context_length), jnp.int32)
    return towers.init(rng, images, tokens)["params"]


def apply(towers, params, method_name, *args):
    return towers.apply({"params": params}, *args, method=method_name)


def clamp_scales(params):
    """Keeps every temperature exp(scale) in 1..100."""
    return {
        k: jnp.clip(v, 0, MAX_LOGIT_SCALE) if k.endswith("logit_scale") else v
        for k, v in params.items()
    }


def predict_fns(towers, preprocess):
    """The two encoders, for evaluation batches {"image": u8} and {"tokens": i32}."""

    def encode_image(params, batch):
        images = to_model_input(batch["image"], None, None, preprocess)
        return apply(towers, params, "encode_image", images)

    def encode_text(params, batch):
        return apply(towers, params, "encode_text", batch["tokens"])

    return {"encode_image": encode_image, "encode_text": encode_text}
