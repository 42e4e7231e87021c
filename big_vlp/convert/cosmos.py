"""COSMOS weights of the reference implementation <-> big_vlp, exactly and strictly.

A reference checkpoint holds `student` and `teacher`, each a flat dict with open_clip's key names
(student keys carry a `module.` prefix after distributed training).
"""

import functools
import math
from collections.abc import Mapping

import jax
import numpy as np

from big_vlp import trees
from big_vlp.convert.common import (
    ConversionError,
    Rules,
    State,
    count_layers,
    dense,
    norm,
    prefixed,
    to_model,
    to_state,
)
from big_vlp.methods.cosmos import Method
from input_pipeline.preprocess import Preprocess

NETS = ("student", "teacher")

# Rules, see `convert.common`.
_BLOCK = (
    *norm("norm1", "ln_1"),
    ("attn/qkv/kernel", "attn.in_proj_weight", "qkv"),
    ("attn/qkv/bias", "attn.in_proj_bias", "qkv_bias"),
    *dense("attn/out", "attn.out_proj", "out"),
    *norm("norm2", "ln_2"),
    *dense("mlp/fc1", "mlp.c_fc"),
    *dense("mlp/fc2", "mlp.c_proj"),
)
_IMAGE = (
    ("image_tower/class_token", "visual.class_embedding", "same"),
    ("image_tower/position_embedding", "visual.positional_embedding", "same"),
    ("image_tower/patch/kernel", "visual.conv1.weight", "conv"),
    ("image_tower/proj/kernel", "visual.proj", "same"),
    *norm("image_tower/norm_pre", "visual.ln_pre"),
    *norm("image_tower/norm_post", "visual.ln_post"),
    *prefixed(_BLOCK, "image_tower/transformer/blocks/", "visual.transformer.resblocks.{i}."),
)
_TEXT = (
    ("text_tower/token_embedding/embedding", "token_embedding.weight", "same"),
    ("text_tower/position_embedding", "positional_embedding", "same"),
    ("text_tower/proj/kernel", "text_projection", "same"),
    *norm("text_tower/norm_post", "ln_final"),
    *prefixed(_BLOCK, "text_tower/transformer/blocks/", "transformer.resblocks.{i}."),
)
_BESIDE_TOWERS = (
    ("logit_scale", "logit_scale", "same"),
    ("distill_logit_scale", "distill_logit_scale", "same"),
    *dense("image_token_mapping", "image_token_mapping"),
    *dense("text_token_mapping", "text_token_mapping"),
)

# The tensors that tell the sizes, and their numbers of axes.
_RANKS = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "text_projection": 2,
}


def from_reference(
    checkpoint: Mapping[str, State],
    *,
    head_dim: int = 64,
    text_heads: int = 8,
    pooler_heads: int = 8,
    tokenizer: str = "clip",
) -> tuple[dict, dict, dict, Preprocess]:
    """Converts a checkpoint.

    Args:
      checkpoint: {"student": state dict, "teacher": state dict}, of `Tensor`s or numpy arrays.
      head_dim, text_heads, pooler_heads: what state dicts do not tell; the defaults are those of
        the published models (`head_dim` is the image tower's).

    Returns:
      (model parameters, teacher parameters, the `model` argument of `methods.cosmos.Method`,
      preprocess record).

    Raises:
      ConversionError: a sub-dict is missing, or keys or shapes do not fit.
    """
    missing = [net for net in NETS if net not in checkpoint]
    if missing:
        raise ConversionError(
            f"The checkpoint has no {missing} weights but {sorted(checkpoint)[:8]}; pass the outer "
            "dict of a COSMOS training checkpoint."
        )
    states = {
        net: {key.removeprefix("module."): value for key, value in checkpoint[net].items()}
        for net in NETS
    }
    arguments = _arguments(states["student"], head_dim, text_heads, pooler_heads)
    patches = states["student"]["visual.positional_embedding"].shape[0] - 1
    preprocess = Preprocess(
        image_size=math.isqrt(patches) * arguments["image"]["patch_size"],
        tokenizer=tokenizer,
        context_length=states["student"]["positional_embedding"].shape[0],
    )
    method = Method(preprocess=preprocess, model=arguments, ema_decay=1.0)
    shapes = method.shapes[0]
    expected = jax.eval_shape(_to_state, shapes)
    # Keys contain dots, never slashes: the dicts are flat trees.
    problems = [f"{n}: {line}" for n in NETS for line in trees.differences(expected, states[n])]
    if problems:
        raise ConversionError("The weights do not fit:\n  " + "\n  ".join(problems))
    student, teacher = (
        functools.reduce(trees.merge, (to_model(states[net], *part) for part in _parts(shapes)))
        for net in NETS
    )
    return student, teacher, arguments, preprocess


def to_reference(params: dict) -> dict[str, np.ndarray]:
    """Parameters -> a state dict of the reference; the inverse of `from_reference`."""
    return _to_state(jax.tree.map(np.asarray, params))


def _to_state(params: dict) -> dict:
    state = {}
    for rules, layers, _ in _parts(params):
        state |= to_state(params, rules, layers)
    return state


def _parts(params: dict) -> list[tuple[Rules, int, int]]:
    """(rules, layers, heads) of each tower, and of what is beside them; reads only shapes."""
    parts = []
    for tower, rules in (("image_tower", _IMAGE), ("text_tower", _TEXT)):
        qkv = params[tower]["transformer"]["blocks"]["attn"]["qkv"]["kernel"]
        layers, _, _, heads, _ = qkv.shape
        parts.append((rules, layers, heads))
    _, heads, _ = params["image_pooler"]["query"]["kernel"].shape
    pooler = (
        *norm("norm_q", "ln_q"),
        *norm("norm_k", "ln_k"),
        (("query/kernel", "key_value/kernel"), "attn.in_proj_weight", f"gqa{heads}"),
        (("query/bias", "key_value/bias"), "attn.in_proj_bias", f"gqa_bias{heads}"),
        *dense("out", "attn.out_proj", "out"),
    )
    rules = (
        *_BESIDE_TOWERS,
        *prefixed(pooler, "image_pooler/", "visual.attn_cross_pool."),
        *prefixed(pooler, "text_pooler/", "text_attn_cross_pool."),
    )
    return [*parts, (rules, 0, heads)]


def _arguments(state: Mapping, head_dim: int, text_heads: int, pooler_heads: int) -> dict:
    """The `model` argument of the method, read from shapes."""
    problems = [f"missing: {key}" for key in _RANKS if key not in state]
    problems += [
        f"wrong shape: {key} is {state[key].shape}, should have {rank} axes"
        for key, rank in _RANKS.items()
        if key in state and len(state[key].shape) != rank
    ]
    if problems:
        raise ConversionError(
            "Not the weights of a COSMOS model:\n  "
            + "\n  ".join(problems)
            + f"\nFound {sorted(state)[:8]}."
        )
    width, _, patch_size, _ = state["visual.conv1.weight"].shape
    vocab_size, text_width = state["token_embedding.weight"].shape
    if width % head_dim:
        raise ConversionError(
            f"The image tower's width {width} must be a multiple of head_dim={head_dim}."
        )
    if text_width % text_heads:
        raise ConversionError(
            f"The text tower's width {text_width} must be a multiple of the {text_heads} heads."
        )
    image = {"patch_size": patch_size, "width": width, "heads": width // head_dim}
    image["activation"] = "gelu"
    image["layers"] = count_layers(state, "visual.transformer.resblocks")
    text = {"vocab_size": vocab_size, "width": text_width, "heads": text_heads}
    text["activation"] = "gelu"
    text["layers"] = count_layers(state, "transformer.resblocks")
    embed_dim = state["text_projection"].shape[1]
    return {"embed_dim": embed_dim, "image": image, "text": text, "pooler_heads": pooler_heads}
