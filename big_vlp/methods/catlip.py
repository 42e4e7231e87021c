"""CatLIP (arXiv 2404.15653): an image tower that predicts the nouns of its caption."""

import dataclasses
import math

import jax

from big_vlp import losses, trees
from big_vlp.methods.shared import images
from big_vlp.methods.shared.base import compute_dtype
from big_vlp.models.heads.classifier import Classifier
from big_vlp.models.towers import catlip_vit
from input_pipeline.checks import arguments
from input_pipeline.preprocess import Preprocess


@dataclasses.dataclass(frozen=True)
class Method(images.ImageMethod):
    """Multi-label classification over a vocabulary of synsets.

    Attributes:
      num_classes: size of the vocabulary.
      model: arguments of `catlip_vit.Tower`.
      ema_decay: share of the old average that stays after each step; the average covers parameters
        and running statistics, and is what the paper evaluates.
      augment: arguments of `RangeAugment`, or None for none.
      prior: initial probability of every class, by the classifier's bias (RetinaNet's rule, arXiv
        1708.02002); the published runs start at 0.5. A value near labels per image / num_classes
        saves the steps that else teach the bias.
      positive_weight: factor of the loss of true classes; 1 in the published runs. Above 1 it
        trades precision for recall.
      accumulate_steps: micro-batches per step; the gradient is that of the whole batch.
      dtype: of the computation; parameters are fp32.
      attention: what computes it: "auto", or one of `models.layers.attention.BACKENDS`.
      unroll, remat: how the blocks are executed, see `models.layers.transformer.Transformer`.
    """

    preprocess: Preprocess
    num_classes: int
    model: dict
    ema_decay: float | None = 1 - 5e-4
    augment: dict | None = None
    prior: float = 0.5
    positive_weight: float = 1.0
    accumulate_steps: int = 1
    dtype: str = "bfloat16"
    attention: str = "auto"
    unroll: bool | int = False
    remat: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.prior < 1:
            raise ValueError(f"prior={self.prior}: give a probability between 0 and 1.")

    @property
    def network(self) -> Classifier:
        execution = {"unroll": self.unroll, "remat": self.remat}
        dtype = compute_dtype(self.dtype)
        tower = arguments.call("model", catlip_vit.Tower, self.model, dtype=dtype, **execution)
        bias = math.log(self.prior / (1 - self.prior))
        return Classifier(tower, self.num_classes, bias, attention=self.attention)

    def loss(self, trainable, frozen, averaged, statistics, batch, *, rng, step):
        del averaged
        params = trees.merge(trainable, frozen)
        tokens, statistics, augment_loss = images.train_tokens(
            self, params, statistics, batch["image"], rng, step
        )

        def row_losses(logits, labels):
            return losses.binary_cross_entropy(logits, labels, self.positive_weight)

        loss = images.mean_loss(self, params, tokens, batch["labels"], row_losses)
        metrics = {"labels_per_image": (batch["labels"] >= 0).sum(axis=1).mean()}
        metrics |= images.loss_terms(self, "classification_loss", loss, augment_loss)
        return loss + augment_loss, (statistics, metrics)

    def predict_fns(self):
        return images.predict_fns(self, jax.nn.sigmoid)
