"""Dense models of CatLIP's reference implementation (corenet) <-> big_vlp, exactly and strictly.

Segmentation: a whole checkpoint. Detection: the backbone of one, tower and SimpleFPN; what a
detector has besides has no counterpart here. BatchNorm's counters are not kept and written as 0.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import trees
from big_vlp.augment.learned import RangeAugment
from big_vlp.convert.catlip import (
    AUGMENT,
    CLASSIFIER,
    FUSED_OUT,
    IMAGE_ONLY,
    PLAIN_OUT,
    batch_norm,
    tower_arguments,
    tower_rules,
)
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
from big_vlp.methods.segmentation import Method
from big_vlp.models.heads.dense import Pyramid
from big_vlp.models.towers import catlip_vit
from input_pipeline.preprocess import Preprocess

ENCODER = "encoder."
_ASPP = "seg_head.aspp.aspp_layer"
_CLASSES = "seg_head.classifier.block.conv.weight"
_COUNTER = ".num_batches_tracked"
_FPN = (
    *dense("fpn/l2_up0", "simple_fpn.out_l2.0.block.conv", "conv_t"),
    *norm("fpn/l2_norm", "simple_fpn.out_l2.0.block.norm"),
    *dense("fpn/l2_up1", "simple_fpn.out_l2.1.block.conv", "conv_t"),
    *dense("fpn/l3_up", "simple_fpn.out_l3.block.conv", "conv_t"),
)

# Of the released recipes: the whole image, squashed to 512 x 512.
EVALUATION = {"image_size": 512, "resize": "squash", "interpolation": "bicubic"}


def segmentation_from_reference(
    state: State,
    *,
    head_dim: int = 64,
    output_stride: int = 8,
    rates: tuple[int, ...] = (12, 24, 36),
) -> tuple[dict, dict, Preprocess]:
    """Converts a segmentation model.

    Args:
      state: the flat dict.
      head_dim, output_stride, rates: what weights do not tell, as in all published models.

    Returns:
      (model, arguments of `methods.segmentation.Method` but for `preprocess`, preprocess record).

    Raises:
      ConversionError: keys or shapes do not fit; each is named.
    """
    state = _without_counters(state)
    tower = tower_arguments(state, head_dim, ENCODER) | {"output_stride": output_stride}
    if _CLASSES not in state:
        raise ConversionError(
            f"{_CLASSES} is missing: these are not a segmentation model's weights."
        )
    num_classes, channels = state[_CLASSES].shape[:2]
    # Beside the dilated branches there are the first, 1x1, and the last, pooling.
    found = count_layers(state, f"{_ASPP}.convs") - 2
    if found != len(rates):
        raise ConversionError(
            f"The head has {found} dilated branches; give as many rates: {rates}."
        )
    head = {"channels": channels, "rates": tuple(rates)}
    arguments = {"num_classes": num_classes, "model": tower, "head": head}
    if _has_augment(state, ENCODER):
        arguments["augment"] = {"total_steps": 1}  # its parameters are weights, its schedule is not
    preprocess = Preprocess(**EVALUATION, **IMAGE_ONLY)
    method = Method(preprocess=preprocess, **arguments)
    shapes = method.shapes[0]
    rules = _segmentation_rules(shapes, _out_name(state, ENCODER))
    return _converted(shapes, state, rules, tower), arguments, preprocess


def segmentation_to_reference(model: dict, out: str = FUSED_OUT) -> dict[str, np.ndarray]:
    """The inverse of `segmentation_from_reference`; `out` names attention's output projection."""
    return _with_counters(model, _segmentation_rules(model, out))


def fpn_from_reference(state: State, *, head_dim: int = 64, prefix: str = "") -> tuple[dict, dict]:
    """Converts a detector's backbone.

    Args:
      state: the flat dict.
      head_dim: what weights do not tell; 64 in all published models.
      prefix: of the backbone's keys, such as "model.backbone.encoder."; no other key is read.

    Returns:
      (model, arguments of `catlip_vit.Tower`). The model has the parameters and statistics of
      `Pyramid` and, where the weights have them, "classifier" and "augment".

    Raises:
      ConversionError: keys or shapes do not fit; each is named.
    """
    state = {key: value for key, value in state.items() if key.startswith(prefix)}
    state = _without_counters(state)
    tower = tower_arguments(state, head_dim, prefix)
    shapes = jax.eval_shape(lambda: _fresh_backbone(tower, state, prefix))
    rules = _fpn_rules(shapes, _out_name(state, prefix), prefix)
    return _converted(shapes, state, rules, tower), tower


def fpn_to_reference(model: dict, out: str = FUSED_OUT, prefix: str = "") -> dict[str, np.ndarray]:
    """The inverse of `fpn_from_reference`; `out` names attention's output projection."""
    return _with_counters(model, _fpn_rules(model, out, prefix))


def _fresh_backbone(tower: dict, state: Mapping, prefix: str) -> dict:
    variables = Pyramid(catlip_vit.Tower(**tower)).init(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    model = {**variables["params"], trees.STATISTICS: variables[trees.STATISTICS]}
    classes = state.get(f"{prefix}classifier.weight")
    if classes is not None:
        count = classes.shape[0]
        model["classifier"] = {
            "kernel": jnp.zeros((tower["width"], count)),
            "bias": jnp.zeros(count),
        }
    if _has_augment(state, prefix):
        model["augment"] = RangeAugment(total_steps=1).init()
    return model


def _segmentation_rules(model: dict, out: str) -> tuple:
    rules = tower_rules("class_token" in model["tower"], out, ENCODER)
    if "augment" in model:
        rules += prefixed(AUGMENT, key=ENCODER)
    dilated = sum(name.startswith("dilated_") for name in model["head"])
    keys = {"point": "convs.0.block", "project": "project.block"}
    keys |= {f"dilated_{i}": f"convs.{i + 1}.block" for i in range(dilated)}
    keys["pool"] = f"convs.{dilated + 1}.aspp_pool.conv_1x1.block"
    for name, block in keys.items():
        ours, theirs = f"head/{name}", f"{_ASPP}.{block}"
        rules += ((f"{ours}/conv/kernel", f"{theirs}.conv.weight", "conv"),)
        rules += batch_norm(f"{ours}/norm", f"{theirs}.norm")
    return (*rules, *dense("head/classifier", _CLASSES.removesuffix(".weight"), "conv"))


def _fpn_rules(model: dict, out: str, prefix: str) -> tuple:
    rules = _FPN
    if "classifier" in model:
        rules += CLASSIFIER
    if "augment" in model:
        rules += AUGMENT
    return tower_rules("class_token" in model["tower"], out, prefix) + prefixed(rules, key=prefix)


def _converted(shapes: dict, state: Mapping, rules: tuple, tower: dict) -> dict:
    """The model, after a check of every key and shape."""
    expected = jax.eval_shape(lambda model: to_state(model, rules, tower["layers"]), shapes)
    check(expected, state)
    return to_model(state, rules, tower["layers"], tower["heads"])


def _without_counters(state: Mapping) -> dict:
    return {key: x for key, x in state.items() if not key.endswith(_COUNTER)}


def _with_counters(model: dict, rules: tuple) -> dict[str, np.ndarray]:
    layers = model["tower"]["transformer"]["blocks"]["norm1"]["scale"].shape[0]
    state = to_state(jax.tree.map(np.asarray, model), rules, layers)
    norms = [key.removesuffix(".running_mean") for key in state if key.endswith(".running_mean")]
    return state | {f"{norm}{_COUNTER}": np.zeros((), np.int64) for norm in norms}


def _has_augment(state: Mapping, prefix: str) -> bool:
    return any(key.startswith(f"{prefix}neural_augmentor.") for key in state)


def _out_name(state: Mapping, prefix: str) -> str:
    fused = f"{prefix}transformer.0.pre_norm_mha.1.{FUSED_OUT}.weight"
    return FUSED_OUT if fused in state else PLAIN_OUT
