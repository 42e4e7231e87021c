"""A small CogVLM that writes, and prompts for it."""

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.models import layout
from big_vlp.models.cogvlm import CogVLM

VOCAB, SLOTS = 24, 6
IMAGE = {"image_size": 28, "patch_size": 14, "width": 16, "layers": 1, "heads": 2, "mlp_dim": 16}
TEXT = {"vocab_size": VOCAB, "width": 32, "layers": 2, "heads": 4, "mlp_dim": 24}
L, V, P = layout.LANGUAGE, layout.VISION, layout.PADDING


def make_model(kv_heads=4, seed=0):
    """A model whose next token depends on all that it has read."""
    model = CogVLM(image=IMAGE, text={**TEXT, "kv_heads": kv_heads}, adapter_mlp_dim=16)
    rows = jnp.zeros((1, 1), jnp.int32)
    images = jnp.zeros((1, 1, 28, 28, 3))
    params = jax.jit(model.init)(jax.random.key(seed), images, rows, rows)["params"]
    return model, stronger(params)


def stronger(params):
    """Fresh weights are so small that the last token alone would decide."""
    return jax.tree.map_with_path(
        lambda path, a: 8 * a if path[-1].key in ("kernel", "embedding") else a, params
    )


def make_rows(*parts, pad=0, left=False):
    """(tokens, types) of rows given as types, in which I is a whole image."""
    rng, rows = np.random.default_rng(1), []
    for part in parts:
        types = [t for kind in part for t in ([V] * SLOTS if kind == "I" else [L])]
        rows.append(
            (np.where(np.array(types) == V, pad, rng.integers(3, VOCAB, len(types))), types)
        )
    length = max(len(types) for _, types in rows)
    tokens = np.full((len(rows), length), pad, np.int32)
    filled = np.full((len(rows), length), P, np.int32)
    for i, (row, types) in enumerate(rows):
        span = slice(length - len(types), None) if left else slice(len(types))
        tokens[i, span], filled[i, span] = row, types
    return tokens, filled


def make_features(model, params, rows, images=1):
    pixels = jax.random.normal(jax.random.key(7), (rows, images, 28, 28, 3))
    return model.apply({"params": params}, pixels, method="encode_images")


MIXED = ("LILLLL", "LI", "LLILLIL", "LLL")  # the second one ends with its image


def forward(model, params, tokens, types, features):
    x, _ = model.apply({"params": params}, tokens, types, features, method="hidden")
    return model.apply({"params": params}, x, method="logits")
