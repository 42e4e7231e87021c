"""Small towers for tests, and arrays to run them on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.models.text import TextTransformer
from big_vlp.models.towers.vit import Tower as ViT
from big_vlp.models.two_towers import CosmosTowers

VOCABULARY, LENGTH = 40, 7
SHAPES = {}  # of what `arbitrary` was asked for


def randn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ids(batch=2, length=LENGTH, seed=0):
    """Token rows with one end-of-text token, the largest id, somewhere, and zeros after it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCABULARY - 1, (batch, length), dtype=np.int32)
    for row, end in zip(tokens, rng.integers(1, length - 1, batch)):
        row[end], row[end + 1 :] = VOCABULARY - 1, 0
    return tokens


def vit(**changes):
    sizes = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 2, "heads": 2}
    return ViT(**{**sizes, "embed_dim": 12, **changes})


def text(**changes):
    sizes = {"vocab_size": VOCABULARY, "context_length": LENGTH, "width": 16, "layers": 2}
    return TextTransformer(**{**sizes, "heads": 2, "embed_dim": 12, **changes})


def towers(cls=CosmosTowers, **changes):
    image = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "heads": 2}
    words = {"vocab_size": VOCABULARY, "context_length": LENGTH, "width": 8, "layers": 1}
    if cls is CosmosTowers:
        changes = {"pooler_heads": 3, **changes}
    return cls(image=image, text={**words, "heads": 2}, embed_dim=12, **changes)


def init(model, *args, keep=None):
    """Fresh parameters as the model draws them: all, or those of the top-level names in `keep`."""

    def init(key):
        params = model.init(key, *args)["params"]
        return {name: params[name] for name in keep or params}

    # This generator compiles fastest.
    return jax.jit(init)(jax.random.key(0, impl="unsafe_rbg"))


def arbitrary(model, *args):
    """Parameters of the model's structure, none zero; drawing the real ones takes longer."""
    rng = np.random.default_rng(0)
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), args)
    key = repr((model, args))  # the options of some are dicts, which cannot be hashed
    if key not in SHAPES:
        SHAPES[key] = jax.eval_shape(model.init, jax.random.key(0), *args)
    return jax.tree.map(lambda x: rng.normal(0.1, 0.3, x.shape).astype(x.dtype), SHAPES[key])


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, *args):
    return model.apply(params, *args)
