"""What methods without text share: an augmented image tower, and a head."""

import jax
import jax.numpy as jnp

from big_vlp import trees
from big_vlp.augment.learned import RangeAugment
from big_vlp.augment.photometric import normalise
from big_vlp.methods.shared import base
from big_vlp.methods.shared.accumulate import sum_over_micro_batches
from input_pipeline.checks import arguments


class ImageMethod(base.Method):
    """A method of one `network`; it has `preprocess`, `augment`, `remat` and `num_classes`."""

    def __post_init__(self):
        if self.augment is not None:
            arguments.call("augment", RangeAugment, self.augment)  # raises for a wrong key or value
        if self.num_classes < 1:
            raise ValueError("num_classes must be 1 or more.")
        super().__post_init__()

    def init_model(self, rng) -> dict:
        """Fresh parameters, fp32, and running statistics where the network has some."""
        size = self.preprocess.image_size
        variables = self.network.init(rng, jnp.zeros((1, size, size, 3)))
        model = dict(variables["params"])
        if trees.STATISTICS in variables:
            model[trees.STATISTICS] = variables[trees.STATISTICS]
        if self.augment is not None:
            model["augment"] = RangeAugment(**self.augment).init()
        return model

    def towers(self):
        pre = self.preprocess
        computed = self.network.tower.arguments()
        computed |= {"pool": None}  # a new head may choose
        return {"tower": {**computed, "mean": pre.mean, "std": pre.std}}

    def model_images(self, batch, keys):
        # With the augmentation's bounds as they are when training begins.
        images = _in_unit_range(batch["image"])
        if self.augment is not None:
            augment = RangeAugment(**self.augment)
            images = augment.apply(augment.init(), images, keys)
        return {"image": normalise(images, self.preprocess.mean, self.preprocess.std)[:, None]}


def train_tokens(method, params, statistics, images, rng, step, train_statistics=True):
    """Augments images u8[B, S, S, 3] and runs what depends on the whole batch.

    Args:
      method: its `network` has `prepare(images, train)`.

    Returns:
      what `prepare` gives, the new running statistics, and the loss of the augmentation.
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
        tokens = method.network.apply(
            variables,
            images,
            train_statistics,
            method="prepare",
            mutable=[trees.STATISTICS] if train_statistics else False,
        )
        tokens, statistics = tokens if train_statistics else (tokens, statistics)
        return tokens, statistics, augment_loss

    if method.remat is not None:  # else the stem's large maps are kept for the whole batch
        run = jax.checkpoint(run)
    return run(params, statistics, images, keys)


def mean_loss(method, params, tokens, targets, row_losses):
    """The mean over rows of a loss of a `Classifier`'s logits, in the method's micro-batches.

    Args:
      tokens: of `train_tokens`. Their gradient is collected over the micro-batches, so the way from
        there to the pixels has one backward pass, with the whole batch.
      targets: [B, ...].
      row_losses: (logits f32[b, num_classes], targets [b, ...]) -> f32[b].
    """

    def part(params, rows):
        logits = method.network.apply({"params": params}, rows["tokens"], method="classify")
        return row_losses(logits, rows["targets"]).sum() / targets.shape[0], None

    rows = {"tokens": tokens, "targets": targets}
    steps, dtype = method.accumulate_steps, method.dtype
    return sum_over_micro_batches(part, network_params(params), rows, steps, dtype)[0]


def loss_terms(method, name: str, loss, augment_loss) -> dict:
    """The parts of the loss as metrics, where there are two."""
    return {} if method.augment is None else {name: loss, "augment_loss": augment_loss}


def predict_fns(method, activation):
    """`classify` (logits), `probabilities` (of these, by `activation`) and `features` (pooled), all
    f32, for evaluation batches {"image": u8}."""

    def run(output):
        def fn(model, batch):
            params, statistics = trees.split_statistics(model)
            images = normalise(batch["image"], method.preprocess.mean, method.preprocess.std)
            variables = {"params": network_params(params), **statistics}
            return method.network.apply(
                {"params": network_params(params)},
                method.network.apply(variables, images, False, method="prepare"),
                method=output,
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
