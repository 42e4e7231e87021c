"""Classification with a pretrained image tower: linear probe and fine-tuning (arXiv 2404.15653,
section 4). What is frozen is the optimizer's affair; a frozen tower has no backward pass."""

import dataclasses
import functools

import jax

from big_vlp import losses, trees
from big_vlp.methods.shared import images
from big_vlp.methods.shared.base import compute_dtype
from big_vlp.models.heads.classifier import Classifier
from big_vlp.models.towers import make_tower
from input_pipeline.preprocess import Preprocess


@dataclasses.dataclass(frozen=True)
class Method(images.ImageMethod):
    """An image tower and a linear classifier, trained on one or on several labels per image.

    Attributes:
      num_classes: of the data set.
      tower: which one, see `models.towers`: "catlip_vit", or "vit" (of CLIP, SigLIP and COSMOS).
      model: arguments of the tower.
      multi_label: False: softmax over `label`; True: sigmoids over `labels`.
      label_smoothing: of the softmax loss, in training.
      train_statistics: whether BatchNorm sees the batch and moves its running statistics; False for
        a frozen tower.
      ema_decay: share of the old average that stays after each step; None keeps none.
      augment, accumulate_steps, dtype, attention, unroll, remat: as in `methods.catlip.Method`.
    """

    preprocess: Preprocess
    num_classes: int
    tower: str
    model: dict
    multi_label: bool = False
    label_smoothing: float = 0.0
    train_statistics: bool = True
    ema_decay: float | None = None
    augment: dict | None = None
    accumulate_steps: int = 1
    dtype: str = "bfloat16"
    attention: str = "auto"
    unroll: bool | int = False
    remat: str | None = None

    def __post_init__(self):
        super().__post_init__()
        _ = self.network  # raises for a tower that cannot be
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must be in [0, 1).")
        if self.multi_label and self.label_smoothing:
            raise ValueError("label_smoothing is for one label per image; set it to 0.")

    @property
    def network(self) -> Classifier:
        given = {"image_size": self.preprocess.image_size, "dtype": compute_dtype(self.dtype)}
        given |= {"unroll": self.unroll, "remat": self.remat}
        tower = make_tower("model", self.tower, self.model, **given)
        return Classifier(tower, self.num_classes, attention=self.attention)

    def loss(self, trainable, frozen, averaged, statistics, batch, *, rng, step):
        del averaged
        params = trees.merge(trainable, frozen)
        tokens, statistics, augment_loss = images.train_tokens(
            self,
            params,
            statistics,
            batch["image"],
            rng,
            step,
            self.train_statistics,
        )

        if self.multi_label:
            targets, row_losses = batch["labels"], losses.binary_cross_entropy
        else:
            targets = batch["label"]
            row_losses = functools.partial(losses.cross_entropy, smoothing=self.label_smoothing)
        loss = images.mean_loss(self, params, tokens, targets, row_losses)
        metrics = images.loss_terms(self, "classification_loss", loss, augment_loss)
        return loss + augment_loss, (statistics, metrics)

    def predict_fns(self):
        activation = jax.nn.sigmoid if self.multi_label else jax.nn.softmax
        return images.predict_fns(self, activation)
