"""A small CogVLM, rows of all kinds, and what to run on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.models import layout
from big_vlp.models.cogvlm import CogVLM
from tests.big_vlp.models.towers.toy_towers import arbitrary, randn

IMAGE = {"image_size": 8, "patch_size": 4, "width": 12, "layers": 2, "heads": 2, "mlp_dim": 20}
TEXT = {"vocab_size": 30, "width": 16, "layers": 2, "heads": 4, "mlp_dim": 24}
SLOTS = 6  # 2 x 2 patches, boi and eoi
LANGUAGE, VISION, PADDING = layout.LANGUAGE, layout.VISION, layout.PADDING


def cogvlm(**changes):
    changes["image"] = {**IMAGE, **changes.get("image", {})}
    changes["text"] = {**TEXT, **changes.get("text", {})}
    return CogVLM(**{"adapter_mlp_dim": 20, **changes})


def row(*parts):
    """Types of a row: an int is so many language tokens, "image" one image's slots."""
    types = []
    for part in parts:
        types += [VISION] * SLOTS if part == "image" else [LANGUAGE] * part
    return types


def padded(rows, left=False):
    length = max(map(len, rows))
    pad = [[PADDING] * (length - len(r)) for r in rows]
    return np.array([p + r if left else r + p for r, p in zip(rows, pad)], np.int32)


STATIC = padded([row(1, "image", 5), row(1, "image", 3)])


def inputs(types, count=1, seed=0, size=IMAGE["image_size"]):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, TEXT["vocab_size"], types.shape)
    tokens[types != LANGUAGE] = 0
    images = randn(len(types), count, size, size, 3, seed=seed)
    return images, jnp.asarray(tokens), jnp.asarray(types)


def parameters(model):
    return arbitrary(model, *inputs(STATIC, size=model.image["image_size"]))["params"]


def logits_of(model, params, types, kind="general"):
    images, tokens, types = inputs(types, size=model.image["image_size"])
    run = jax.jit(lambda params: model.apply({"params": params}, images, tokens, types, kind))
    return np.asarray(run(params))


def apply_method(model, params, method, *args, **options):
    run = functools.partial(model.apply, {"params": params}, method=method, **options)
    return jax.jit(run)(*args)


def real(types, *arrays):
    return [np.asarray(a)[types != PADDING] for a in arrays]
