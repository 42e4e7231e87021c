"""COSMOS weights of the reference implementation <-> big_vlp, exactly and strictly.

A reference checkpoint holds `student` and `teacher`, each a flat dict with open_clip's key names
(student keys carry a `module.` prefix after distributed training). Here the tensors of all blocks
are stacked on a leading axis, linear weights [out, in] are kernels [in, out], and attention
projections have a head axis.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import trees
from big_vlp.convert.common import ConversionError, backward, forward
from big_vlp.methods.cosmos import Method
from input_pipeline.preprocess import Preprocess

# (path here, key there, kind); kinds: same, linear (transposed), conv (OIHW -> HWIO).
_DIRECT = (
    ("logit_scale", "logit_scale", "same"),
    ("distill_logit_scale", "distill_logit_scale", "same"),
    ("image_tower/class_token", "visual.class_embedding", "same"),
    ("image_tower/position_embedding", "visual.positional_embedding", "same"),
    ("image_tower/patch/kernel", "visual.conv1.weight", "conv"),
    ("image_tower/proj/kernel", "visual.proj", "same"),
    ("image_tower/norm_pre/scale", "visual.ln_pre.weight", "same"),
    ("image_tower/norm_pre/bias", "visual.ln_pre.bias", "same"),
    ("image_tower/norm_post/scale", "visual.ln_post.weight", "same"),
    ("image_tower/norm_post/bias", "visual.ln_post.bias", "same"),
    ("text_tower/token_embedding/embedding", "token_embedding.weight", "same"),
    ("text_tower/position_embedding", "positional_embedding", "same"),
    ("text_tower/proj/kernel", "text_projection", "same"),
    ("text_tower/norm_post/scale", "ln_final.weight", "same"),
    ("text_tower/norm_post/bias", "ln_final.bias", "same"),
    ("image_token_mapping/kernel", "image_token_mapping.weight", "linear"),
    ("image_token_mapping/bias", "image_token_mapping.bias", "same"),
    ("text_token_mapping/kernel", "text_token_mapping.weight", "linear"),
    ("text_token_mapping/bias", "text_token_mapping.bias", "same"),
)
_BLOCK = (
    ("norm1/scale", "ln_1.weight", "same"),
    ("norm1/bias", "ln_1.bias", "same"),
    ("norm2/scale", "ln_2.weight", "same"),
    ("norm2/bias", "ln_2.bias", "same"),
    ("mlp/fc1/kernel", "mlp.c_fc.weight", "linear"),
    ("mlp/fc1/bias", "mlp.c_fc.bias", "same"),
    ("mlp/fc2/kernel", "mlp.c_proj.weight", "linear"),
    ("mlp/fc2/bias", "mlp.c_proj.bias", "same"),
)
_TOWERS = (("image_tower", "visual.transformer"), ("text_tower", "transformer"))
_POOLERS = (("image_pooler", "visual.attn_cross_pool"), ("text_pooler", "text_attn_cross_pool"))

# The tensors that tell the sizes, and their numbers of axes.
_RANKS = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "text_projection": 2,
}


def from_reference(
    checkpoint: Mapping[str, Mapping[str, np.ndarray]],
    *,
    head_dim: int = 64,
    text_heads: int = 8,
    pooler_heads: int = 8,
    tokenizer: str = "clip",
) -> tuple[dict, dict, dict, Preprocess]:
    """Converts a checkpoint.

    Args:
      checkpoint: {"student": state dict, "teacher": state dict}, values with `shape`.
      head_dim, text_heads, pooler_heads: what state dicts do not tell; the defaults are those of
        the published models (`head_dim` is the image tower's).

    Returns:
      (model parameters, teacher parameters, the `model` argument of `methods.cosmos.Method`,
      preprocess record).

    Raises:
      ConversionError: a sub-dict is missing, or keys or shapes do not fit.
    """
    missing = [name for name in ("student", "teacher") if name not in checkpoint]
    if missing:
        raise ConversionError(
            f"The checkpoint has no {missing} weights but {sorted(checkpoint)[:8]}; pass the outer "
            "dict of a COSMOS training checkpoint."
        )
    states = {
        name: {k.removeprefix("module."): np.asarray(v) for k, v in checkpoint[name].items()}
        for name in ("student", "teacher")
    }
    model, preprocess = _architecture(
        states["student"], head_dim, text_heads, pooler_heads, tokenizer
    )
    method = Method(preprocess=preprocess, model=model, ema_decay=1.0)
    expected = jax.eval_shape(
        lambda key: _to_state(trees.flatten(method.init(key)[0]), jnp), jax.random.key(0)
    )
    problems = [
        f"{name}: {line}"
        for name, state in states.items()
        # Keys contain dots, never slashes: the dicts are flat trees.
        for line in trees.differences(expected, state)
    ]
    if problems:
        raise ConversionError("The weights do not fit:\n  " + "\n  ".join(problems))
    heads = (model["image"]["heads"], model["text"]["heads"], pooler_heads)
    params = {name: _to_params(state, *heads) for name, state in states.items()}
    return params["student"], params["teacher"], model, preprocess


def to_reference(params: dict) -> dict[str, np.ndarray]:
    """Parameters -> a state dict of the reference; the inverse of `from_reference`."""
    return _to_state(trees.flatten(jax.tree.map(np.asarray, params)), np)


def _architecture(state, head_dim, text_heads, pooler_heads, tokenizer):
    problems = [f"missing: {key}" for key in _RANKS if key not in state]
    problems += [
        f"wrong shape: {key} is {state[key].shape}, should have {rank} axes"
        for key, rank in _RANKS.items()
        if key in state and state[key].ndim != rank
    ]
    if problems:
        raise ConversionError(
            "Not the weights of a COSMOS model:\n  "
            + "\n  ".join(problems)
            + f"\nFound {sorted(state)[:8]}."
        )
    width, _, patch_size, _ = state["visual.conv1.weight"].shape
    patches = state["visual.positional_embedding"].shape[0] - 1
    vocab_size, text_width = state["token_embedding.weight"].shape
    context_length = state["positional_embedding"].shape[0]
    embed_dim = state["text_projection"].shape[1]
    if width % head_dim:
        raise ConversionError(
            f"The image tower's width {width} must be a multiple of head_dim={head_dim}."
        )
    if text_width % text_heads:
        raise ConversionError(
            f"The text tower's width {text_width} must be a multiple of the {text_heads} heads."
        )
    image = {"patch_size": patch_size, "width": width, "heads": width // head_dim}
    text = {"vocab_size": vocab_size, "width": text_width, "heads": text_heads}
    for part, (_, prefix) in zip((image, text), _TOWERS):
        part["layers"] = _count_layers(state, prefix)
    model = {"embed_dim": embed_dim, "image": image, "text": text, "pooler_heads": pooler_heads}
    preprocess = Preprocess(
        image_size=math.isqrt(patches) * patch_size,
        tokenizer=tokenizer,
        context_length=context_length,
    )
    return model, preprocess


def _count_layers(state, prefix):
    start = f"{prefix}.resblocks."
    return len({key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)})


def _to_params(state, image_heads, text_heads, pooler_heads):
    flat = {path: forward(kind, state[key]) for path, key, kind in _DIRECT}
    for (tower, prefix), heads in zip(_TOWERS, (image_heads, text_heads)):
        blocks = [
            _block_to_params(state, f"{prefix}.resblocks.{i}.", heads)
            for i in range(_count_layers(state, prefix))
        ]
        for name in blocks[0]:
            path = f"{tower}/transformer/blocks/{name}"
            flat[path] = np.stack([block[name] for block in blocks])
    for pooler, prefix in _POOLERS:
        for ours, theirs in (("norm_q", "ln_q"), ("norm_k", "ln_k")):
            flat[f"{pooler}/{ours}/scale"] = state[f"{prefix}.{theirs}.weight"]
            flat[f"{pooler}/{ours}/bias"] = state[f"{prefix}.{theirs}.bias"]
        attention = _attention_to_params(state, f"{prefix}.attn.", pooler_heads)
        kernel, bias = attention.pop("qkv/kernel"), attention.pop("qkv/bias")
        attention |= {"query/kernel": kernel[:, 0], "key_value/kernel": kernel[:, 1:]}
        attention |= {"query/bias": bias[0], "key_value/bias": bias[1:]}
        flat |= {f"{pooler}/{name}": value for name, value in attention.items()}
    return trees.unflatten(flat)


def _block_to_params(state, prefix, heads):
    block = {path: forward(kind, state[prefix + key]) for path, key, kind in _BLOCK}
    attention = _attention_to_params(state, f"{prefix}attn.", heads)
    return block | {f"attn/{name}": value for name, value in attention.items()}


def _attention_to_params(state, prefix, heads):
    weight = state[f"{prefix}in_proj_weight"]  # rows: q, k, v, each head after head
    width = weight.shape[1]
    out = state[f"{prefix}out_proj.weight"]
    return {
        "qkv/kernel": weight.T.reshape(width, 3, heads, -1),
        "qkv/bias": state[f"{prefix}in_proj_bias"].reshape(3, heads, -1),
        "out/kernel": out.T.reshape(heads, -1, width),
        "out/bias": state[f"{prefix}out_proj.bias"],
    }


def _to_state(flat, xp):
    """Flat parameters -> reference state dict, with the array functions of `xp`."""
    state = {key: backward(kind, flat[path]) for path, key, kind in _DIRECT}
    for tower, prefix in _TOWERS:
        start = f"{tower}/transformer/blocks/"
        stacked = {k.removeprefix(start): v for k, v in flat.items() if k.startswith(start)}
        for i in range(stacked["norm1/scale"].shape[0]):
            block, key_start = {k: v[i] for k, v in stacked.items()}, f"{prefix}.resblocks.{i}."
            state |= {key_start + key: backward(kind, block[path]) for path, key, kind in _BLOCK}
            attention = {k.removeprefix("attn/"): v for k, v in block.items()}
            state |= _attention_to_state(attention, f"{key_start}attn.")
    for pooler, prefix in _POOLERS:
        part = {k.removeprefix(f"{pooler}/"): v for k, v in flat.items() if k.startswith(pooler)}
        for ours, theirs in (("norm_q", "ln_q"), ("norm_k", "ln_k")):
            state[f"{prefix}.{theirs}.weight"] = part[f"{ours}/scale"]
            state[f"{prefix}.{theirs}.bias"] = part[f"{ours}/bias"]
        kernel = [part["query/kernel"][:, None], part["key_value/kernel"]]
        bias = [part["query/bias"][None], part["key_value/bias"]]
        fused = {"qkv/kernel": xp.concatenate(kernel, axis=1), "qkv/bias": xp.concatenate(bias)}
        state |= _attention_to_state(part | fused, f"{prefix}.attn.")
    return state


def _attention_to_state(attention, prefix):
    width = attention["qkv/kernel"].shape[0]
    return {
        f"{prefix}in_proj_weight": attention["qkv/kernel"].reshape(width, -1).T,
        f"{prefix}in_proj_bias": attention["qkv/bias"].reshape(-1),
        f"{prefix}out_proj.weight": attention["out/kernel"].reshape(-1, width).T,
        f"{prefix}out_proj.bias": attention["out/bias"],
    }
