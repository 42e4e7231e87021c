"""Semantic segmentation with a CatLIP tower and DeepLabv3 (arXiv 2404.15653, appendix)."""

import dataclasses

import jax
import jax.numpy as jnp

from big_vlp import losses, trees
from big_vlp.augment.photometric import normalise
from big_vlp.methods.shared import images
from big_vlp.methods.shared.base import compute_dtype
from big_vlp.models.heads.dense import DeepLabV3, Segmenter, bilinear_weights, resize_bilinear
from big_vlp.models.towers import catlip_vit
from input_pipeline.checks import arguments
from input_pipeline.preprocess import Preprocess

# Rows of pixels whose logits exist at once in training: of 150 classes at 512 pixels, whole images
# would take 150 MB each, several times over.
BLOCK_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Method(images.ImageMethod):
    """One class for every pixel.

    Attributes:
      num_classes: of the data set.
      model: arguments of `catlip_vit.Tower`; the published models have no class token and an output
        stride of 8.
      head: arguments of `DeepLabV3` but for `num_classes`.
      ema_decay: share of the old average that stays after each step; None keeps none.
      augment: arguments of `RangeAugment`, or None for none.
      dtype: of the computation; parameters, logits and loss are fp32.
      attention: what computes it: "auto", or one of `models.layers.attention.BACKENDS`.
      unroll, remat: how the blocks are executed, see `models.layers.transformer.Transformer`.
    """

    preprocess: Preprocess
    num_classes: int
    model: dict
    head: dict = dataclasses.field(default_factory=dict)
    ema_decay: float | None = None
    augment: dict | None = None
    dtype: str = "bfloat16"
    attention: str = "auto"
    unroll: bool | int = False
    remat: str | None = None

    @property
    def network(self) -> Segmenter:
        execution = {"unroll": self.unroll, "remat": self.remat}
        dtype = compute_dtype(self.dtype)
        tower = arguments.call("model", catlip_vit.Tower, self.model, dtype=dtype, **execution)
        head = arguments.call("head", DeepLabV3, self.head, self.num_classes, dtype=dtype)
        return Segmenter(tower, head, attention=self.attention)

    def loss(self, trainable, frozen, averaged, statistics, batch, *, rng, step):
        """Batch: `image` u8[B, S, S, 3] and `mask`, integers [B, S, S], 0 or 1 + class."""
        del averaged
        params = trees.merge(trainable, frozen)
        logits, statistics, augment_loss = self._train_logits(
            params, statistics, batch["image"], rng, step
        )
        loss = mean_pixel_loss(logits, batch["mask"])
        metrics = {"labelled_pixels": (batch["mask"] > 0).mean()}
        metrics |= images.loss_terms(self, "segmentation_loss", loss, augment_loss)
        return loss + augment_loss, (statistics, metrics)

    def _train_logits(self, params, statistics, pixels, rng, step):
        """(logits at the tower's stride, new running statistics, loss of the augmentation)."""
        augment_key, dropout_key = jax.random.split(rng)
        tokens, statistics, augment_loss = images.train_tokens(
            self, params, statistics, pixels, augment_key, step
        )
        logits, statistics = self.network.apply(
            {"params": images.network_params(params), **statistics},
            tokens,
            pixels.shape[1:3],
            True,
            method="decode",
            rngs={"dropout": dropout_key},
            mutable=[trees.STATISTICS],
        )
        return logits, statistics, augment_loss

    def predict_fns(self):
        """`segment`: evaluation batches {"image": u8[B, H, W, 3]} -> logits f32[B, h, w, C].

        They stay at the tower's stride: the reference resizes them straight to the mask's size, as
        the evaluator does.
        """

        def segment(model, batch):
            params, statistics = trees.split_statistics(model)
            pixels = normalise(batch["image"], self.preprocess.mean, self.preprocess.std)
            return self.network.apply(
                {"params": images.network_params(params), **statistics}, pixels
            )

        return {"segment": segment}


def upsample(logits, size):
    """f32[B, h, w, C] -> f32[B, *size, C], bilinear with corners aligned."""
    return resize_bilinear(logits, *_weights(logits.shape[1:3], size))


def mean_pixel_loss(logits, mask):
    """Softmax loss, averaged over the labelled pixels of the batch; 0 if there is none.

    Args:
      logits: f32[B, h, w, C], resized here to the mask's size.
      mask: integers [B, H, W], 0 where a pixel does not count, 1 + class elsewhere.
    """
    batch, height, width = mask.shape
    rows, columns = _weights(logits.shape[1:3], (height, width))
    size = next(n for n in range(min(height, BLOCK_ROWS), 0, -1) if height % n == 0)
    blocks = {
        "rows": rows.reshape(-1, size, rows.shape[1]),
        "labels": jnp.moveaxis(mask.reshape(batch, -1, size, width), 1, 0).astype(jnp.int32) - 1,
    }

    def block(block):
        pixels = resize_bilinear(logits, block["rows"], columns)
        return losses.pixel_cross_entropy(pixels, block["labels"])

    # In a loop XLA cannot merge the recomputation away, so it needs no barrier.
    sums, counts = jax.lax.map(jax.checkpoint(block, prevent_cse=False), blocks)
    return sums.sum() / jnp.maximum(counts.sum(), 1)


def _weights(size_in, size_out):
    return tuple(bilinear_weights(a, b) for a, b in zip(size_in, size_out))
