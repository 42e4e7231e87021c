"""COSMOS (arXiv 2412.01814): cross-modal self-distillation of two towers over views."""

import dataclasses

import jax
import jax.numpy as jnp

from big_vlp import losses, trees
from big_vlp.augment.photometric import Photometric
from big_vlp.methods.shared import pairs, text_groups
from big_vlp.methods.shared.accumulate import over_micro_batches
from big_vlp.methods.shared.ema import ema
from big_vlp.models.two_towers import CosmosTowers, over_views
from input_pipeline.checks import arguments
from input_pipeline.preprocess import Preprocess


@dataclasses.dataclass(frozen=True)
class Method(pairs.PairMethod):
    """A student sees all views, its moving average (the teacher) the global ones.

    Attributes:
      model: as for `methods.clip.Method`, and optionally "pooler_heads".
      ema_decay: of the teacher, at the first step: the share of it that stays.
      ema_decay_steps: None keeps the decay fixed; a number raises it to 1 along a cosine over that
        many steps.
      attention: as for `methods.clip.Method`.
      photometric: {"global_1": ..., "global_2": ..., "local": ...}, each the arguments of
        `augment.photometric.Photometric`; None for none.
      accumulate_steps, dtype, unroll, remat, text_groups: as for `methods.clip.Method`, but global
        captions stay whole: they are long, and the pooler attends to the padding of the first.
    """

    preprocess: Preprocess
    model: dict
    ema_decay: float
    ema_decay_steps: int | None = None
    photometric: dict | None = None
    accumulate_steps: int = 1
    dtype: str = "bfloat16"
    attention: str = "auto"
    unroll: bool | int = False
    remat: str | None = None
    text_groups: tuple[tuple[float, int], ...] = ()

    def __post_init__(self):
        text_groups.check(self)
        if self.ema_decay is None or not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1]; 1 keeps the teacher.")
        if self.photometric is None:
            return
        kinds = {"global_1", "global_2", "local"}
        if self.photometric.keys() != kinds:
            wrong = sorted(self.photometric.keys() ^ kinds)
            raise ValueError(
                f"photometric has the keys {sorted(kinds)}; missing or unknown: {wrong}."
            )
        for kind, settings in self.photometric.items():
            arguments.call(f"photometric.{kind}", Photometric, settings)  # raises for a wrong key

    @property
    def network(self) -> CosmosTowers:
        return pairs.make_towers(CosmosTowers, self)

    def features(self, student, teacher, batch, rng):
        """Student features of all views and teacher features of the global ones.

        Args:
          student, teacher: parameters.
          batch: `global_images` [B, V_g, S_g, S_g, 3], `local_images` [B, V_l, S_l, S_l, 3],
            `tokens` i32[B, C, T] with the V_g global captions first.

        Returns:
          The two dicts that `losses.cosmos_losses` takes.
        """
        num_global = batch["global_images"].shape[1]

        def encode(rows):
            images = self.model_images(rows, rows["key"])
            captions, local = rows["tokens"], ()
            if self.text_groups and captions.shape[1] > num_global:
                captions, local = jnp.split(captions, [num_global], axis=1)
                local = over_views(
                    lambda x: (pairs.apply_to_texts(self, student, "pool_text", x),), local
                )
            views = images["global"], images["local"], captions, *local
            student_features = pairs.apply(self.network, student, "encode_views", *views)
            (teacher_image,) = over_views(
                lambda x: (pairs.apply(self.network, teacher, "encode_image", x),), images["global"]
            )
            (teacher_text,) = over_views(
                lambda x: (pairs.apply(self.network, teacher, "encode_text", x),),
                rows["tokens"][:, :num_global],
            )
            return student_features, {"image": teacher_image, "text": teacher_text}

        return over_micro_batches(encode, pairs.with_keys(batch, rng), self.accumulate_steps)

    def model_images(self, batch, keys):
        # Student and teacher see the same pixels.
        images = batch["global_images"], batch["local_images"]
        num_global, num_views = images[0].shape[1], sum(x.shape[1] for x in images)
        keys = jax.vmap(lambda key: jax.random.split(key, num_views))(keys)  # [B, V]

        def views(kind, x, keys):
            settings = self.photometric and self.photometric[kind]
            flat = x.reshape(-1, *x.shape[2:])
            flat = pairs.to_model_input(flat, keys.reshape(-1), settings, self.preprocess)
            return flat.reshape(*x.shape[:2], *flat.shape[1:])

        first = views("global_1", images[0][:, :1], keys[:, :1])
        others = views("global_2", images[0][:, 1:], keys[:, 1:num_global])
        local = views("local", images[1], keys[:, num_global:])
        return {"global": jnp.concatenate([first, others], axis=1), "local": local}

    def loss(self, trainable, frozen, averaged, statistics, batch, *, rng, step):
        del step
        student = trees.merge(trainable, frozen)
        teacher = trees.merge(averaged, frozen)
        features = self.features(student, teacher, batch, rng)
        num_global = batch["global_images"].shape[1]
        scale = jnp.exp(student["logit_scale"])
        distill_scale = jnp.exp(student["distill_logit_scale"])
        loss, terms = losses.cosmos_losses(*features, scale, distill_scale, num_global)
        metrics = {
            "clip_loss": terms["clip"],
            "distill_loss": terms["distill"],
            "logit_scale": scale,
            "distill_logit_scale": distill_scale,
            **pairs.text_metrics(self, batch["tokens"][:, num_global:]),
        }
        return loss, (statistics, metrics)

    def after_update(self, old, new, averaged, step):
        # The teacher follows the student as it was before this step's update.
        averaged = ema(averaged, old, self.ema_decay_at(step))
        return pairs.clamp_scales(new), pairs.clamp_scales(averaged)

    def ema_decay_at(self, step):
        """The teacher's decay at a step (0-based)."""
        if self.ema_decay_steps is None:
            return self.ema_decay
        progress = jnp.minimum(step / self.ema_decay_steps, 1)
        return 1 - (1 - self.ema_decay) * (jnp.cos(jnp.pi * progress) + 1) / 2

    def predict_fns(self):
        def attention_maps(params, batch):
            images = pairs.to_model_input(batch["image"], None, None, self.preprocess)
            return pairs.apply(self.network, params, "attention_maps", images, batch["tokens"])

        return {
            **super().predict_fns(),
            "attention_maps": attention_maps,
        }
