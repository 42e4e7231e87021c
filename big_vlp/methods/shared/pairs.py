"""What methods that train on pairs share: two towers, their input, their temperatures."""

import math

import jax
import jax.numpy as jnp

from big_vlp.augment.photometric import Photometric, normalise
from big_vlp.methods.shared import base, text_groups
from big_vlp.methods.shared.accumulate import split
from big_vlp.methods.shared.base import compute_dtype
from big_vlp.models.two_towers import TwoTowers, completed
from input_pipeline.checks import arguments

MAX_LOGIT_SCALE = math.log(100)


class PairMethod(base.Method):
    """A method of two towers, its `network`; it has `preprocess` and `text_groups`."""

    @property
    def vocab_size(self) -> int:
        return self.network.text["vocab_size"]

    def init_model(self, rng):
        size = self.preprocess.image_size
        images = jnp.zeros((1, size, size, 3))
        tokens = jnp.zeros((1, self.preprocess.context_length), jnp.int32)
        return self.network.init(rng, images, tokens)["params"]

    def towers(self):
        model, pre = completed(self.model), self.preprocess
        # The same vocabulary can lie in two places.
        return {
            "image_tower": {**model["image"], "mean": pre.mean, "std": pre.std},
            "text_tower": {**model["text"], "tokenizer": pre.tokenizer.partition(":")[0]},
        }

    def predict_fns(self):
        """The encoders, for evaluation batches {"image": u8} and {"tokens": i32}; what they give is
        told by `evaluators.shared.base`."""

        def of_images(name):
            def encode(params, batch):
                images = to_model_input(batch["image"], None, None, self.preprocess)
                return apply(self.network, params, name, images)

            return encode

        def encode_text(params, batch):
            return apply(self.network, params, "encode_text", batch["tokens"])

        names = ("encode_image", "encode_patches")
        return {**{name: of_images(name) for name in names}, "encode_text": encode_text}


def make_towers(kind, method, **given) -> TwoTowers:
    """The towers of a method, with what the preprocess record fixes filled in.

    Args:
      kind: `TwoTowers`, or what is made of it.
    """
    pre = method.preprocess
    given |= {"dtype": compute_dtype(method.dtype), "unroll": method.unroll, "remat": method.remat}
    given["attention"] = method.attention
    towers = arguments.call("model", kind, method.model, **given)
    image = {**towers.image, "image_size": pre.image_size}
    return towers.clone(image=image, text={**towers.text, "context_length": pre.context_length})


def with_keys(batch, rng):
    """The batch and one random key per row, so that rows can be regrouped freely."""
    return {**batch, "key": jax.random.split(rng, batch["tokens"].shape[0])}


def to_model_input(images, keys, photometric: dict | None, preprocess):
    """u8[N, S, S, 3] -> augmented and normalised f32; float images pass as already normalised.

    Args:
      keys: one random key per image; not read where there is no augmentation.
      photometric: arguments of `augment.photometric.Photometric`, or None for none.
    """
    if images.dtype != jnp.uint8:
        return images
    if photometric is not None:
        images = Photometric(**photometric).apply(images, keys)
    return normalise(images, preprocess.mean, preprocess.std)


def apply(towers, params, method_name, *args):
    return towers.apply({"params": params}, *args, method=method_name)


def apply_to_texts(method, params, method_name, tokens):
    """`apply` of a network's method that takes texts i32[N, T], in the method's groups of them."""
    # Groups compute a gradient of all they are given: of the tower, and scalars that a network has.
    params = {k: v for k, v in params.items() if k == "text_tower" or not isinstance(v, dict)}

    def fn(params, tokens):
        return apply(method.network, params, method_name, tokens)

    return text_groups.encode(fn, params, tokens, method.text_groups)


def text_metrics(method, tokens) -> dict:
    """{"texts_again": share of the texts i32[B, ..., T] that were too long for their group}."""
    if not (method.text_groups and tokens.size):
        return {}

    def share(rows):
        return text_groups.share_too_long(rows.reshape(-1, rows.shape[-1]), method.text_groups)

    return {"texts_again": jax.lax.map(share, split(tokens, method.accumulate_steps)).mean()}


def clamp_scales(params):
    """Keeps every temperature exp(scale) in 1..100."""
    return {
        k: jnp.clip(v, 0, MAX_LOGIT_SCALE) if k.endswith("logit_scale") else v
        for k, v in params.items()
    }
