"""CatLIP (arXiv 2404.15653): an image tower that predicts the nouns of its caption."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from big_vlp import losses, trees
from big_vlp.augment.learned import RangeAugment
from big_vlp.augment.photometric import normalise
from big_vlp.methods import compute_dtype
from big_vlp.methods.shared.accumulate import over_micro_batches
from big_vlp.models.towers.catlip_vit import CatlipViT, Classifier
from input_pipeline.checks import arguments
from input_pipeline.preprocess import Preprocess


class ImageMethod:
    """What methods without text share; they have `preprocess` and `augment`."""

    vocab_size = None

    def text_length(self, batch):
        return 0

    def cut_text(self, batch, length):
        return batch

    def dead_parameters(self):
        return {}

    def model_images(self, batch, keys):
        # With the augmentation's bounds as they are when training begins.
        images = _in_unit_range(batch["image"])
        if self.augment is not None:
            augment = RangeAugment(**self.augment)
            images = augment.apply(augment.init(), images, keys)
        return {"image": normalise(images, self.preprocess.mean, self.preprocess.std)[:, None]}


@dataclasses.dataclass(frozen=True)
class Method(ImageMethod):
    """Multi-label classification over a vocabulary of synsets.

    Attributes:
      num_classes: size of the vocabulary.
      model: arguments of `CatlipViT`.
      ema_momentum: share of the new weights in the average after each step; the average covers
        parameters and running statistics, and is what the paper evaluates.
      augment: arguments of `RangeAugment`, or None for none.
      prior: initial probability of every class, by the classifier's bias (RetinaNet's rule, arXiv
        1708.02002); the published runs start at 0.5. A value near labels per image / num_classes
        saves the steps that else teach the bias.
      positive_weight: factor of the loss of true classes; 1 in the published runs. Above 1 it
        trades precision for recall.
      accumulate_steps: micro-batches per step; the gradient is that of the whole batch.
      dtype: of the computation; parameters are fp32.
      unroll, remat: how the blocks are executed, see `models.transformer.Transformer`.
    """

    preprocess: Preprocess
    num_classes: int
    model: dict
    ema_momentum: float = 5e-4
    augment: dict | None = None
    prior: float = 0.5
    positive_weight: float = 1.0
    accumulate_steps: int = 1
    dtype: str = "bfloat16"
    unroll: bool = False
    remat: str | None = None

    def __post_init__(self):
        if self.augment is not None:
            arguments.call("augment", RangeAugment, self.augment)  # raises for a wrong key or value
        if not 0 < self.prior < 1:
            raise ValueError(f"prior={self.prior}: give a probability between 0 and 1.")
        if not 0 < self.ema_momentum <= 1:
            raise ValueError(f"ema_momentum={self.ema_momentum} must be in (0, 1].")
        if self.num_classes < 1:
            raise ValueError("num_classes must be 1 or more.")

    @property
    def classifier(self) -> Classifier:
        execution = {"unroll": self.unroll, "remat": self.remat}
        dtype = compute_dtype(self.dtype)
        tower = arguments.call("model", CatlipViT, self.model, dtype=dtype, **execution)
        return Classifier(tower, self.num_classes, math.log(self.prior / (1 - self.prior)))

    def init(self, rng):
        model = init_model(self, self.classifier, rng)
        return model, jax.tree.map(jnp.copy, model)

    def loss(self, trainable, frozen, averaged, statistics, batch, *, rng, step):
        del averaged
        params = trees.merge(trainable, frozen)
        tokens, statistics, augment_loss = train_tokens(
            self, self.classifier, params, statistics, batch["image"], rng, step
        )

        def row_losses(rows):
            logits = classify(self.classifier, params, rows["tokens"])
            return losses.binary_cross_entropy(logits, rows["labels"], self.positive_weight)

        rows = {"tokens": tokens, "labels": batch["labels"]}
        loss = over_micro_batches(row_losses, rows, self.accumulate_steps).mean()
        metrics = {"labels_per_image": (batch["labels"] >= 0).sum(axis=1).mean()}
        metrics |= loss_terms(self, "classification_loss", loss, augment_loss)
        return loss + augment_loss, (statistics, metrics)

    def after_update(self, old, new, averaged, step):
        return new, moving_average(averaged, new, self.ema_momentum)

    def predict_fns(self):
        return predict_fns(self.classifier, self.preprocess, jax.nn.sigmoid)


# What `methods.transfer` and `methods.segmentation` share; `method` is any of the three.


def init_model(method, network, rng) -> dict:
    """Fresh parameters, fp32, and running statistics where the network has some."""
    size = method.preprocess.image_size
    variables = network.init(rng, jnp.zeros((1, size, size, 3)))
    model = dict(variables["params"])
    if trees.STATISTICS in variables:
        model[trees.STATISTICS] = variables[trees.STATISTICS]
    if method.augment is not None:
        model["augment"] = RangeAugment(**method.augment).init()
    return model


def train_tokens(method, network, params, statistics, images, rng, step, train_statistics=True):
    """Augments images u8[B, S, S, 3] and embeds them.

    Args:
      network: a module with `embed(images, train)`.

    Returns:
      tokens of `embed`, the new running statistics, and the loss of the augmentation.
    """
    keys = jax.random.split(rng, images.shape[0])
    pre = method.preprocess
    augment = RangeAugment(**method.augment) if method.augment is not None else None

    def run(parameters, statistics, images, keys):
        images, augment_loss = _in_unit_range(images), jnp.float32(0)
        if augment is not None:
            clean, images = images, augment.apply(parameters["augment"], images, keys)
            augment_loss = augment.loss(clean, images, step)
        images = normalise(images, pre.mean, pre.std)
        variables = {"params": network_params(parameters), **statistics}
        tokens = network.apply(
            variables,
            images,
            train_statistics,
            method="embed",
            mutable=[trees.STATISTICS] if train_statistics else False,
        )
        tokens, statistics = tokens if train_statistics else (tokens, statistics)
        return tokens, statistics, augment_loss

    if method.remat is not None:  # else the stem's large maps are kept for the whole batch
        run = jax.checkpoint(run)
    return run(params, statistics, images, keys)


def loss_terms(method, name: str, loss, augment_loss) -> dict:
    """The parts of the loss as metrics, where there are two."""
    return {} if method.augment is None else {name: loss, "augment_loss": augment_loss}


def classify(classifier, params, tokens):
    """Logits f32[B, num_classes]."""
    return classifier.apply({"params": network_params(params)}, tokens, method="classify")


def moving_average(averaged, new, momentum: float):
    """(1 - momentum) * averaged + momentum * new, for every array."""
    return jax.tree.map(lambda a, n: (1 - momentum) * a + momentum * n, averaged, new)


def predict_fns(classifier, preprocess, activation):
    """`classify` (logits), `probabilities` (of these, by `activation`) and `features` (pooled), all
    f32, for evaluation batches {"image": u8}."""

    def run(method):
        def fn(model, batch):
            params, statistics = trees.split_statistics(model)
            images = normalise(batch["image"], preprocess.mean, preprocess.std)
            variables = {"params": network_params(params), **statistics}
            return classifier.apply(
                {"params": network_params(params)},
                classifier.apply(variables, images, False, method="embed"),
                method=method,
            )

        return fn

    logits = run("classify")
    return {
        "classify": logits,
        "probabilities": lambda model, batch: activation(logits(model, batch)),
        "features": run("features"),
    }


def _in_unit_range(images):
    """u8 pixels -> f32 in 0..1; floats are so already."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def network_params(params: dict) -> dict:
    """The modules' own part of a model's parameters."""
    return {name: value for name, value in params.items() if name != "augment"}
