"""What a run starts from where the released form has no place for it: a language model alone, or
with EVA02-CLIP's image tower (sizes B and L) in front.

States are as in `convert.files`; parameters are read one at a time.
"""

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from big_vlp import trees
from big_vlp.convert.cogvlm import names, parts
from big_vlp.convert.common import State, check, count_layers, dense, norm, prefixed, to_lazy_model
from big_vlp.models.cogvlm import CogVLM

HEAD_DIM = 64  # of every published EVA02-CLIP of these sizes; its weights do not tell
# EVA-CLIP's own names where timm, and with it open_clip, has others.
_RENAMED = (
    ("attn.q_bias", "attn.q_proj.bias"),
    ("attn.v_bias", "attn.v_proj.bias"),
    ("attn.inner_attn_ln.", "attn.norm."),
    ("mlp.w1.", "mlp.fc1_g."),
    ("mlp.w2.", "mlp.fc1_x."),
    ("mlp.w3.", "mlp.fc2."),
    ("mlp.ffn_ln.", "mlp.norm."),
)
_PREFIXES = ("visual.trunk.", "visual.", "")
_EVA02_BLOCK = (
    *norm("norm1", "norm1"),
    ("attn/query/kernel", "attn.q_proj.weight", "heads1"),
    ("attn/query/bias", "attn.q_proj.bias", "heads_bias1"),
    ("attn/key/kernel", "attn.k_proj.weight", "heads1"),
    ("attn/value/kernel", "attn.v_proj.weight", "heads1"),
    ("attn/value/bias", "attn.v_proj.bias", "heads_bias1"),
    *norm("attn/norm", "attn.norm"),
    *dense("attn/out", "attn.proj"),
    *norm("norm2", "norm2"),
    *dense("mlp/gate", "mlp.fc1_g"),
    *dense("mlp/up", "mlp.fc1_x"),
    *norm("mlp/norm", "mlp.norm"),
    *dense("mlp/down", "mlp.fc2"),
)
EVA02 = (
    *dense("patch", "patch_embed.proj", "conv"),
    ("class_token", "cls_token", "row2"),
    ("position_embedding", "pos_embed", "row1"),
    *prefixed(_EVA02_BLOCK, "transformer/blocks/", "blocks.{i}."),
)


def language_alone(llama: State, config: Mapping) -> tuple[dict, dict]:
    """A LLaMA in Hugging Face's names and its config.json -> (parameters, arguments of `CogVLM`).

    Raises:
      ConversionError: as of `parts.from_parts`.
    """
    arguments = {"text": _text_arguments(llama, config), "expert_parts": ()}
    return _checked(_language(llama, config, CogVLM(**arguments), ("language",)), arguments)


def with_eva02(
    llama: State, config: Mapping, eva: State, *, head_dim: int = HEAD_DIM, seed: int = 0
) -> tuple[dict, dict]:
    """As `parts.from_parts`, with another image tower: EVA02-CLIP's of the sizes B and L, whose
    last block is dropped, too.

    Args:
      eva: whole or the image tower alone, in the names of EVA-CLIP or of timm and open_clip.
      head_dim: of the image tower.

    Returns:
      (parameters, arguments of `CogVLM`).

    Raises:
      ConversionError: as of `parts.from_parts`.
    """
    vision, image = eva02_tower(eva, head_dim)
    text = _text_arguments(llama, config)
    mlp_dim = config["intermediate_size"]
    arguments = {"tower": "eva02", "image": image, "text": text, "adapter_mlp_dim": mlp_dim}
    params = _language(llama, config, CogVLM(**arguments), ("language", "vision"))
    dtype = params["language"]["norm"]["scale"].dtype
    adapter = parts.fresh_adapter(image["width"], text["width"], mlp_dim, dtype, seed)
    params = trees.merge(params, to_lazy_model(adapter, names.ADAPTER, 1, 1))
    return _checked(params | {"vision": vision}, arguments)


def is_eva02(eva: State) -> bool:
    """Whether these are the names of an image tower with gated MLPs."""
    return any(re.search(r"blocks\.0\.mlp\.(w1|fc1_g)\.weight", key) for key in eva)


def eva02_tower(eva: State, head_dim: int = HEAD_DIM) -> tuple[dict, dict]:
    """(parameters of the tower without its last block, its arguments); see `with_eva02`."""
    prefix = next(p for p in _PREFIXES if f"{p}patch_embed.proj.weight" in eva or not p)
    state = {_renamed(k.removeprefix(prefix)): v for k, v in eva.items() if k.startswith(prefix)}
    layers = count_layers(state, "blocks") - 1
    needed = [
        key.format(i=i) for _, key, _ in EVA02 for i in (range(layers) if "{i}" in key else (None,))
    ]
    others = rf"blocks\.{layers}\..*|(norm|fc_norm|head|rope)\..*|.*\.rope\..*"
    parts.require(state, needed, others, "EVA02-CLIP's image tower")
    width, _, _, patch = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    heads = width // head_dim
    arguments = {
        "image_size": side * patch,
        "patch_size": patch,
        "width": width,
        "layers": layers,
        "heads": heads,
        "mlp_dim": state["blocks.0.mlp.fc1_g.weight"].shape[0],
    }
    return to_lazy_model(state, EVA02, layers, heads), arguments


def _renamed(key: str) -> str:
    for theirs, ours in _RENAMED:
        key = key.replace(theirs, ours)
    return key


def _text_arguments(llama: State, config: Mapping) -> dict:
    parts.language(llama, config)  # raises where fields or weights are missing
    fields = parts.text_config(config)
    text = {ours: fields[theirs] for ours, theirs in names.TEXT_FIELDS}
    kv_heads = fields.get("num_multi_query_heads", text["heads"])
    return text | {"kv_heads": kv_heads, "rope_base": parts.base_of(config)}


def _language(llama: State, config: Mapping, model: CogVLM, experts: tuple[str, ...]) -> dict:
    rules = names.language_rules(model, experts)
    state = parts.language(llama, config)
    return to_lazy_model(state, rules, model.text["layers"], model.text["heads"])


def _checked(params: dict, arguments: dict) -> tuple[dict, dict]:
    """Both, or an error where shapes do not fit the model."""
    model = CogVLM(**arguments)
    tokens = jnp.zeros((1, 1), jnp.int32)
    images = None
    if model.image is not None:
        images = jnp.zeros((1, 1, *2 * [model.image["image_size"]], 3))
    expected = jax.eval_shape(model.init, jax.random.key(0), images, tokens, tokens)["params"]
    check(trees.flatten(expected), trees.flatten(params))
    return params, arguments
