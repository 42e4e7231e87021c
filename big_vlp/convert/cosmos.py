"""COSMOS weights of the reference implementation <-> big_vlp, exactly and strictly.

A reference checkpoint holds `student` and `teacher`, each a flat dict with open_clip's key names
(student keys carry a `module.` prefix after distributed training).
"""

import functools
from collections.abc import Mapping

import jax
import numpy as np

from big_vlp import trees
from big_vlp.convert.common import (
    ConversionError,
    Rules,
    State,
    dense,
    listed,
    norm,
    parts_to_state,
    prefixed,
    to_model,
)
from big_vlp.convert.dual import names
from big_vlp.convert.dual.forms import Dual, compare, split
from big_vlp.convert.dual.shapes import open_clip_towers
from big_vlp.methods.cosmos import Method
from input_pipeline.preprocess import Preprocess

NETS = ("student", "teacher")

_BESIDE_TOWERS = (
    ("logit_scale", "logit_scale", "same"),
    ("distill_logit_scale", "distill_logit_scale", "same"),
    *dense("image_token_mapping", "image_token_mapping"),
    *dense("text_token_mapping", "text_token_mapping"),
)


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
    states = {net: split(checkpoint[net])[0] for net in NETS}
    towers, size, length = open_clip_towers(
        states["student"], activation="gelu", head_dim=head_dim, text_heads=text_heads
    )
    arguments = {**towers, "pooler_heads": pooler_heads}
    preprocess = Preprocess(image_size=size, tokenizer=tokenizer, context_length=length)
    method = Method(preprocess=preprocess, model=arguments, ema_decay=1.0)
    shapes = method.shapes[0]
    expected = jax.eval_shape(lambda x: parts_to_state(x, _parts(x)), shapes)
    problems = [f"{n}: {line}" for n in NETS for line in trees.differences(expected, states[n])]
    if problems:
        raise ConversionError("The weights do not fit:\n  " + listed(problems))
    student, teacher = (
        functools.reduce(trees.merge, (to_model(states[net], *part) for part in _parts(shapes)))
        for net in NETS
    )
    return student, teacher, arguments, preprocess


def check(method: Method) -> None:
    """Raises ConversionError where the reference would compute something else than a model."""
    image, text, pre = method.model["image"], method.model["text"], method.preprocess
    towers = {
        # Its heads are of 64 dimensions; sizes are as they are.
        "image": {x: image[x] for x in ("patch_size", "width", "layers")},
        "text": {x: text[x] for x in ("vocab_size", "width", "layers")} | {"heads": 8},
        "embed_dim": method.model["embed_dim"],
    }
    towers["image"]["heads"] = image["width"] // 64
    record = Preprocess(pre.image_size, "clip", pre.context_length)
    found = Dual({**method.model, "image": {**image, "ignore_rest": False}}, False, pre)
    name, problem = "COSMOS' reference", "The reference computes otherwise than this model"
    compare(problem, name, found, Dual(towers, False, record))
    network = method.network
    if (network.pooler_heads, network.zero_attention) != (8, False):
        raise ConversionError(
            f"{problem}: it has 8 heads in its poolers and no zero_attention there, and the model "
            f"pooler_heads={network.pooler_heads}, zero_attention={network.zero_attention}."
        )


def to_reference(params: dict) -> dict[str, np.ndarray]:
    """Parameters -> a state dict of the reference; the inverse of `from_reference`."""
    return parts_to_state(jax.tree.map(np.asarray, params), _parts(params))


def _parts(params: dict) -> list[tuple[Rules, int, int]]:
    """(rules, layers, heads) of each tower, and of what is beside them; reads only shapes."""
    parts = []
    for tower, rules in (
        ("image_tower", names.open_clip_image({"norm_pre": True})),
        ("text_tower", names.open_clip_text({"proj_bias": False})),
    ):
        qkv = params[tower]["transformer"]["blocks"]["attn"]["qkv"]["kernel"]
        layers, _, _, heads, _ = qkv.shape
        parts.append((prefixed(rules, f"{tower}/"), layers, heads))
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
