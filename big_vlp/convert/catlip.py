"""CatLIP weights of the reference implementation (corenet) <-> big_vlp, exactly and strictly.

A reference checkpoint is one flat dict: the average that the run ended with. BatchNorm's
`num_batches_tracked`, which nothing reads, is not kept and is written as 0.
"""

from collections.abc import Mapping

import jax
import numpy as np

from big_vlp.augment.learned import RANGES
from big_vlp.convert.common import (
    ConversionError,
    State,
    check,
    count_layers,
    dense,
    norm,
    prefixed,
    to_model,
    to_state,
)
from big_vlp.methods.catlip import Method
from big_vlp.trees import STATISTICS
from input_pipeline.preprocess import Preprocess

_BLOCK = (
    *norm("norm1", "pre_norm_mha.0"),
    ("attn/qkv/kernel", "pre_norm_mha.1.qkv_proj.weight", "qkv"),
    ("attn/qkv/bias", "pre_norm_mha.1.qkv_proj.bias", "qkv_bias"),
    *dense("attn/out", "pre_norm_mha.1.{out}", "out"),
    *norm("norm2", "pre_norm_ffn.0"),
    *dense("mlp/fc1", "pre_norm_ffn.1"),
    *dense("mlp/fc2", "pre_norm_ffn.4"),
)
CLASSIFIER = dense("classifier", "classifier")
AUGMENT = tuple(
    (f"augment/{name}/{bound}", f"neural_augmentor.{name}._{bound}", "same")
    for name in RANGES
    for bound in ("low", "high")
)
# Attention with a fused kernel names its output projection otherwise than the plain form.
FUSED_OUT, PLAIN_OUT = "out_proj_attn", "out_proj"
_PATCH, _POSITIONS = "patch_emb.0.block.conv.weight", "pos_embed.pos_embed.pos_embed"
_COUNTER = ".num_batches_tracked"
_FC1 = "transformer.0.pre_norm_ffn.1.weight"

# Of the released recipes: no normalisation, evaluation crops 224 of 232 pixels.
IMAGE_ONLY = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "tokenizer": None, "context_length": 0}
EVALUATION = {
    "image_size": 224,
    "resize_size": 232,
    "interpolation": "bilinear",
    "crop_rounding": "down",
}


def tower_rules(class_token: bool, out: str = FUSED_OUT, prefix: str = "") -> tuple:
    """Rules of the image tower, see `convert.common`.

    Args:
      class_token: whether it has one.
      out: name of the attention's output projection.
      prefix: of the keys, such as "encoder.".
    """
    rules = [
        ("tower/stem/conv0/kernel", _PATCH, "conv"),
        ("tower/stem/conv1/kernel", "patch_emb.1.block.conv.weight", "conv"),
        *dense("tower/stem/conv2", "patch_emb.2.block.conv", "conv"),
        ("tower/position_embedding", _POSITIONS, "row2"),
        *norm("tower/norm_post", "post_transformer_norm"),
    ]
    for i in (0, 1):
        rules += batch_norm(f"tower/stem/norm{i}", f"patch_emb.{i}.block.norm")
    block = [(path, key.replace("{out}", out), kind) for path, key, kind in _BLOCK]
    rules += prefixed(block, "tower/transformer/blocks/", "transformer.{i}.")
    if class_token:
        rules.append(("tower/class_token", "cls_token", "row2"))
    return prefixed(rules, key=prefix)


def batch_norm(path: str, key: str) -> tuple:
    """The rules of a BatchNorm's parameters and statistics."""
    statistics = (
        (f"{STATISTICS}/{path}/{a}", f"{key}.running_{a}", "same") for a in ("mean", "var")
    )
    return (*norm(path, key), *statistics)


def tower_arguments(state: Mapping, head_dim: int, prefix: str = "") -> dict:
    """Arguments of `catlip_vit.Tower`, and the number of layers and heads, read from shapes.

    Raises:
      ConversionError: a tensor that tells the sizes is missing.
    """
    missing = [prefix + k for k in (_PATCH, _POSITIONS, _FC1) if prefix + k not in state]
    if missing:
        raise ConversionError(
            f"Not the weights of a CatLIP tower: {missing} are missing. Found {sorted(state)[:8]}."
        )
    _, _, num_positions, width = state[prefix + _POSITIONS].shape
    if width % head_dim:
        raise ConversionError(f"The width {width} must be a multiple of head_dim={head_dim}.")
    return {
        "width": width,
        "layers": count_layers(state, f"{prefix}transformer"),
        "heads": width // head_dim,
        "mlp_dim": state[prefix + _FC1].shape[0],
        "num_positions": num_positions,
        "class_token": f"{prefix}cls_token" in state,
    }


def from_reference(state: State, *, head_dim: int = 64) -> tuple[dict, dict, Preprocess]:
    """Converts a classifier: pretrained on words, or fine-tuned.

    Args:
      state: the flat dict.
      head_dim: what weights do not tell; 64 in all published models.

    Returns:
      (model, arguments of `methods.catlip.Method` but for `preprocess`, preprocess record).

    Raises:
      ConversionError: keys or shapes do not fit; each is named.
    """
    state = {k: v for k, v in state.items() if not k.endswith(_COUNTER)}
    tower = tower_arguments(state, head_dim)
    if "classifier.weight" not in state:
        raise ConversionError("classifier.weight is missing: these are not a classifier's weights.")
    arguments = {"num_classes": state["classifier.weight"].shape[0], "model": tower}
    if any(key.startswith("neural_augmentor.") for key in state):
        arguments["augment"] = {"total_steps": 1}  # its parameters are weights, its schedule is not
    preprocess = Preprocess(**EVALUATION, **IMAGE_ONLY)
    rules = _rules(tower["class_token"], "augment" in arguments, _out_name(state))
    method = Method(preprocess=preprocess, **arguments)
    expected = jax.eval_shape(
        lambda key: to_state(method.init(key)[0], rules, tower["layers"]), jax.random.key(0)
    )
    check(expected, state)
    return to_model(state, rules, tower["layers"], tower["heads"]), arguments, preprocess


def to_reference(model: dict, out: str = FUSED_OUT) -> dict[str, np.ndarray]:
    """A classifier -> the reference's flat dict; the inverse of `from_reference`.

    Args:
      out: name of the attention's output projection, `FUSED_OUT` or `PLAIN_OUT`.
    """
    rules = _rules("class_token" in model["tower"], "augment" in model, out)
    layers = model["tower"]["transformer"]["blocks"]["norm1"]["scale"].shape[0]
    state = to_state(jax.tree.map(np.asarray, model), rules, layers)
    return state | {f"patch_emb.{i}.block.norm{_COUNTER}": np.zeros((), np.int64) for i in (0, 1)}


def _rules(class_token: bool, augment: bool, out: str) -> tuple:
    return tower_rules(class_token, out) + CLASSIFIER + (AUGMENT if augment else ())


def _out_name(state: Mapping) -> str:
    fused = f"transformer.0.pre_norm_mha.1.{FUSED_OUT}.weight"
    return FUSED_OUT if fused in state else PLAIN_OUT
