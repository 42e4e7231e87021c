"""CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343): two towers, one contrastive loss."""

import dataclasses

import jax.numpy as jnp

from big_vlp import losses, trees
from big_vlp.augment.photometric import Photometric
from big_vlp.methods.shared import pairs, text_groups
from big_vlp.methods.shared.accumulate import over_micro_batches
from big_vlp.models.two_towers import TwoTowers
from input_pipeline.checks import arguments
from input_pipeline.preprocess import Preprocess


@dataclasses.dataclass(frozen=True)
class Method(pairs.PairMethod):
    """Two towers trained on pairs.

    Attributes:
      model: {"image": ViT arguments, "text": TextTransformer arguments, "embed_dim": int}; sizes
        that the preprocess record states are taken from there.
      loss_type: "softmax" (CLIP) or "sigmoid" (SigLIP).
      photometric: arguments of `augment.photometric.Photometric`, or None for none.
      accumulate_steps: micro-batches per step; the gradient is that of the whole batch.
      dtype: of the computation; parameters are fp32.
      attention: what computes it: "auto", or one of `models.layers.attention.BACKENDS`.
      unroll, remat: how the blocks are executed, see `models.layers.transformer.Transformer`.
      text_groups: (share, length) of groups of captions, by length: ((0.5, 16), (0.3, 32)) encodes
        the shortest half of a device's captions in 16 positions, the next three tenths in 32, the
        rest whole; and what is longer than its group once more, so that the loss is that without
        groups. `python -m input_pipeline.doctor` proposes the groups for a data set. For causal
        towers only: there nothing depends on what comes after the end of a text.
    """

    preprocess: Preprocess
    model: dict
    loss_type: str = "softmax"
    photometric: dict | None = None
    accumulate_steps: int = 1
    dtype: str = "bfloat16"
    attention: str = "auto"
    unroll: bool | int = False
    remat: str | None = None
    text_groups: tuple[tuple[float, int], ...] = ()

    def __post_init__(self):
        text_groups.check(self)
        if self.loss_type not in ("softmax", "sigmoid"):
            raise ValueError(f"loss_type={self.loss_type!r}; choose softmax or sigmoid.")
        if self.photometric is not None:
            arguments.call("photometric", Photometric, self.photometric)  # raises for a wrong key

    @property
    def network(self) -> TwoTowers:
        sigmoid = self.loss_type == "sigmoid"
        scale, bias = (10.0, -10.0) if sigmoid else (1 / 0.07, None)
        return pairs.make_towers(TwoTowers, self, init_scale=scale, init_bias=bias)

    def loss(self, trainable, frozen, averaged, statistics, batch, *, rng, step):
        del averaged, step
        params = trees.merge(trainable, frozen)

        def encode(rows):
            images = self.model_images(rows, rows["key"])["image"][:, 0]
            return (
                pairs.apply(self.network, params, "encode_image", images),
                pairs.apply_to_texts(self, params, "encode_text", rows["tokens"]),
            )

        rows = pairs.with_keys(batch, rng)
        image, text = over_micro_batches(encode, rows, self.accumulate_steps)

        scale = jnp.exp(params["logit_scale"])
        if self.loss_type == "softmax":
            loss = losses.softmax_loss(image, text, scale)
        else:
            loss = losses.sigmoid_loss(image, text, scale, params["logit_bias"])
        metrics = {"logit_scale": scale, **pairs.text_metrics(self, batch["tokens"])}
        return loss, (statistics, metrics)

    def model_images(self, batch, keys):
        images = pairs.to_model_input(batch["image"], keys, self.photometric, self.preprocess)
        return {"image": images[:, None]}

    def after_update(self, old, new, averaged, step):
        del old, step
        # SigLIP's temperature is free; CLIP's stays below 100.
        return (pairs.clamp_scales(new) if self.loss_type == "softmax" else new), averaged
