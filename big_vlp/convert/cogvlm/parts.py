"""CogVLM's released names for weights that have others: checkpoints of SwissArmyTransformer, and a
language model with EVA-CLIP's image tower, which pretraining starts from.

States are as in `convert.files`; what is made here is made a tensor at a time.
"""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from big_vlp.convert.cogvlm.names import FREQUENCIES
from big_vlp.convert.common import ConversionError, State, Tensor
from big_vlp.models.layers.rope import rope_frequencies

_IS_FREQUENCIES = re.compile(r".*\binv_freq")
_VISION = "model.vision."
# (name there, name here); {i} is a number, {p} is weight or bias.
_SAT_LANGUAGE = (
    ("transformer.word_embeddings.weight", "model.embed_tokens.weight"),
    ("transformer.final_layernorm.weight", "model.norm.weight"),
    ("mixins.lm.lm_head.weight", "lm_head.weight"),
)
_SAT_LANGUAGE_BLOCK = (
    ("transformer.layers.{i}.input_layernorm", "input_layernorm"),
    ("transformer.layers.{i}.post_attention_layernorm", "post_attention_layernorm"),
    (
        "transformer.layers.{i}.attention.query_key_value",
        "self_attn.language_expert_query_key_value",
    ),
    ("transformer.layers.{i}.attention.dense", "self_attn.language_expert_dense"),
    ("mixins.rotary.vision_query_key_value_list.{i}", "self_attn.vision_expert_query_key_value"),
    ("mixins.rotary.vision_dense_list.{i}", "self_attn.vision_expert_dense"),
    ("mixins.mlp.gate_proj.{i}", "mlp.language_mlp.gate_proj"),
    ("transformer.layers.{i}.mlp.dense_h_to_4h", "mlp.language_mlp.up_proj"),
    ("transformer.layers.{i}.mlp.dense_4h_to_h", "mlp.language_mlp.down_proj"),
    ("mixins.mlp.vision_gate_proj.{i}", "mlp.vision_mlp.gate_proj"),
    ("mixins.mlp.vision_dense_h_to_4h_list.{i}", "mlp.vision_mlp.up_proj"),
    ("mixins.mlp.vision_dense_4h_to_h_list.{i}", "mlp.vision_mlp.down_proj"),
)
_SAT_VISION = (
    ("vit_model.mixins.patch_embedding.proj.{p}", "patch_embedding.proj.{p}"),
    ("vit_model.transformer.word_embeddings.weight", "patch_embedding.cls_embedding"),
    (
        "vit_model.transformer.position_embeddings.weight",
        "patch_embedding.position_embedding.weight",
    ),
    *(
        (f"linear_proj.{name}.{{p}}",) * 2
        for name in ("linear_proj", "norm1", "gate_proj", "dense_h_to_4h", "dense_4h_to_h")
    ),
    ("boi", "boi"),
    ("eoi", "eoi"),
)
_SAT_VISION_BLOCK = (
    ("input_layernorm", "input_layernorm"),
    ("post_attention_layernorm", "post_attention_layernorm"),
    ("attention.query_key_value", "attention.query_key_value"),
    ("attention.dense", "attention.dense"),
    ("mlp.dense_h_to_4h", "mlp.fc1"),
    ("mlp.dense_4h_to_h", "mlp.fc2"),
)
_SAT = (
    *_SAT_LANGUAGE,
    *((f"{a}.weight", f"model.layers.{{i}}.{b}.weight") for a, b in _SAT_LANGUAGE_BLOCK),
    *((f"mixins.eva.{a}", _VISION + b) for a, b in _SAT_VISION),
    *(
        (
            f"mixins.eva.vit_model.transformer.layers.{{i}}.{a}.{{p}}",
            f"{_VISION}transformer.layers.{{i}}.{b}.{{p}}",
        )
        for a, b in _SAT_VISION_BLOCK
    ),
)

_LLAMA_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
)
_LLAMA_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
# (name in a block of EVA-CLIP, name in a block here)
_EVA_BLOCK = (
    ("attn.qkv.weight", "attention.query_key_value.weight"),
    *(
        (f"{theirs}.{part}", f"{ours}.{part}")
        for theirs, ours in (
            ("norm1", "input_layernorm"),
            ("norm2", "post_attention_layernorm"),
            ("attn.proj", "attention.dense"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        )
        for part in ("weight", "bias")
    ),
)


def from_sat(state: State, head_dim: int = 128, rope_base: float = 10000.0) -> dict:
    """A checkpoint of SwissArmyTransformer (entry "module") in the released names.

    Adapters (LoRA) must have been merged. Frequencies, which do not train, are made anew.

    Args:
      head_dim, rope_base: of the language model.

    Raises:
      ConversionError: keys are unknown; each is named.
    """
    patterns = [(_pattern(theirs), ours) for theirs, ours in _SAT]
    found, unknown = {}, []
    for key, value in state.items():
        if _IS_FREQUENCIES.fullmatch(key):
            continue
        for pattern, ours in patterns:
            match = pattern.fullmatch(key)
            if match:
                found[ours.format(**match.groupdict())] = value
                break
        else:
            unknown.append(key)
    if unknown or not found:
        raise ConversionError(
            "These are no weights of a CogVLM in SwissArmyTransformer:\n  " + "\n  ".join(unknown)
        )
    return found | _frequencies(found, head_dim, rope_base)


def from_parts(
    llama: State, llama_config: Mapping, eva: State, *, eva_heads: int = 16, seed: int = 0
) -> tuple[dict, dict]:
    """The start of pretraining: a language model, EVA2-CLIP-E, and an adapter that knows nothing.

    Visual experts are copies of the language model's weights. Of the image tower, the last block,
    the final norm and the projection are dropped (arXiv 2311.03079, section 2.1). Every tensor
    keeps its dtype.

    Args:
      llama: a LLaMA in Hugging Face's names, such as Vicuna-7B-v1.5.
      llama_config: content of its config.json.
      eva: EVA02-CLIP-bigE-14, whole or the image tower alone (without "visual." in front).
      eva_heads: of the image tower, which weights do not tell.
      seed: of the adapter's weights, U(+-1/sqrt(inputs)).

    Returns:
      (state in the released names, content of config.json); see `names.from_reference`.

    Raises:
      ConversionError: keys are missing or unknown, each is named; or the rotary embeddings are
        scaled, which the released form cannot say.
    """
    base = base_of(llama_config)
    text = language(llama, llama_config)
    image, blocks = _image_tower(eva)
    patch = image[f"{_VISION}patch_embedding.proj.weight"]
    positions = image[f"{_VISION}patch_embedding.position_embedding.weight"].shape[0]
    width, heads = llama_config["hidden_size"], llama_config["num_attention_heads"]
    adapter = fresh_adapter(
        patch.shape[0],
        width,
        llama_config["intermediate_size"],
        text["model.norm.weight"].dtype,
        seed,
    )
    config = text_config(llama_config) | {
        "hidden_act": "silu",
        "template_version": "base",
        "tie_word_embeddings": False,
        "vision_config": {
            "dropout_prob": 0.0,
            "hidden_act": "gelu",
            "hidden_size": patch.shape[0],
            "image_size": math.isqrt(positions - 1) * patch.shape[-1],
            "in_channels": 3,
            "intermediate_size": image[f"{_VISION}transformer.layers.0.mlp.fc1.weight"].shape[0],
            "layer_norm_eps": 1e-6,
            "num_heads": eva_heads,
            "num_hidden_layers": blocks,
            "num_positions": positions,
            "patch_size": patch.shape[-1],
        },
    }
    return text | image | adapter | _frequencies(text, width // heads, base), config


def text_config(llama_config: Mapping) -> dict:
    """The fields of the released config.json that a language model's own tells; without padding
    the id is None."""
    fields = {name: llama_config[name] for name in _LLAMA_FIELDS}
    fields["pad_token_id"] = llama_config.get("pad_token_id")
    kv_heads = llama_config.get("num_key_value_heads", fields["num_attention_heads"])
    grouped = kv_heads != fields["num_attention_heads"]
    return fields | ({"num_multi_query_heads": kv_heads} if grouped else {})


def _pattern(name: str) -> re.Pattern:
    escaped = re.escape(name)
    escaped = escaped.replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{p\}", "(?P<p>weight|bias)")
    return re.compile(escaped)


def base_of(config: Mapping) -> float:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ConversionError(f"The language model's rotary embeddings are scaled: {dict(rope)}.")
    return config.get("rope_theta", rope.get("rope_theta", 10000.0))


def _frequencies(state: State, head_dim: int, base: float) -> dict[str, np.ndarray]:
    layers = {key.split(".")[2] for key in state if key.startswith("model.layers.")}
    values = rope_frequencies(head_dim, base).astype(state["model.norm.weight"].dtype)
    return {FREQUENCIES.format(i=i): values for i in sorted(layers, key=int)}


def require(state: State, needed: Iterable[str], ignored: str, what: str) -> None:
    needed = set(needed)
    problems = [f"missing: {key}" for key in sorted(needed - set(state))]
    problems += [
        f"unexpected: {key}"
        for key in state
        if key not in needed and not re.fullmatch(ignored, key)
    ]
    if problems:
        raise ConversionError(f"These are not the weights of {what}:\n  " + "\n  ".join(problems))


def language(llama: State, config: Mapping) -> dict:
    missing = [name for name in _LLAMA_FIELDS if name not in config]
    if missing:
        raise ConversionError(f"The language model's config.json lacks {missing}.")
    ends = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    attention = [f"self_attn.{n}_proj.weight" for n in "qkvo"]
    mlp = [f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")]
    layers = [f"model.layers.{i}." for i in range(config["num_hidden_layers"])]
    needed = [layer + name for layer in layers for name in (*_LLAMA_NORMS, *attention, *mlp)]
    require(llama, (*ends, *needed), r".*\binv_freq", "a language model of this config.json")
    state = {key: llama[key] for key in ends}
    for layer in layers:
        state |= {layer + name: llama[layer + name] for name in _LLAMA_NORMS}
        qkv, out = _concatenated([llama[layer + n] for n in attention[:3]]), attention[3]
        for expert in ("language", "vision"):
            state[f"{layer}self_attn.{expert}_expert_query_key_value.weight"] = qkv
            state[f"{layer}self_attn.{expert}_expert_dense.weight"] = llama[layer + out]
            for name in mlp:
                state[layer + name.replace("mlp", f"mlp.{expert}_mlp")] = llama[layer + name]
    return state


def _image_tower(eva: State) -> tuple[dict, int]:
    """(state, number of blocks)."""
    prefix = "visual." if any(key.startswith("visual.") for key in eva) else ""
    eva = {k.removeprefix(prefix): v for k, v in eva.items() if k.startswith(prefix)}
    numbers = [int(key.split(".")[1]) for key in eva if re.match(r"blocks\.\d+\.", key)]
    blocks = max(numbers, default=0)  # the last is dropped
    ends = (
        ("patch_embed.proj.weight", "patch_embedding.proj.weight"),
        ("patch_embed.proj.bias", "patch_embedding.proj.bias"),
        ("cls_token", "patch_embedding.cls_embedding"),
        ("pos_embed", "patch_embedding.position_embedding.weight"),
    )
    biases = ("attn.q_bias", "attn.v_bias")
    names = [name for name, _ in _EVA_BLOCK] + list(biases)
    needed = [name for name, _ in ends] + [f"blocks.{j}.{n}" for j in range(blocks) for n in names]
    dropped = rf"blocks\.{blocks}\..*|(norm|fc_norm|head)\..*"
    require(eva, needed, dropped, "EVA2-CLIP-E's image tower")
    state = {_VISION + ours: eva[theirs] for theirs, ours in ends}
    for ours in ("cls_embedding", "position_embedding.weight"):
        key = f"{_VISION}patch_embedding.{ours}"
        state[key] = _as_table(state[key])
    for j in range(blocks):
        ours, theirs = f"{_VISION}transformer.layers.{j}.", f"blocks.{j}."
        state |= {ours + new: eva[theirs + old] for old, new in _EVA_BLOCK}
        query, value = (eva[theirs + name] for name in biases)
        # EVA's keys have no bias.
        bias = _concatenated([query, np.zeros(query.shape, query.dtype), value])
        state[f"{ours}attention.query_key_value.bias"] = bias
    return state, blocks


def fresh_adapter(width: int, text_width: int, mlp_dim: int, dtype, seed: int) -> dict:
    start = f"{_VISION}linear_proj."
    state = {
        f"{start}norm1.weight": np.ones(text_width, dtype),
        f"{start}norm1.bias": np.zeros(text_width, dtype),
        f"{_VISION}boi": np.zeros((1, 1, text_width), dtype),
        f"{_VISION}eoi": np.zeros((1, 1, text_width), dtype),
    }
    kernels = (
        ("linear_proj", (text_width, width)),
        ("gate_proj", (mlp_dim, text_width)),
        ("dense_h_to_4h", (mlp_dim, text_width)),
        ("dense_4h_to_h", (text_width, mlp_dim)),
    )
    for i, (name, shape) in enumerate(kernels):

        def draw(i=i, shape=shape):
            rng = np.random.default_rng((seed, i))
            values = rng.random(shape, np.float32) * 2 - 1
            return (values / math.sqrt(shape[1])).astype(dtype)

        state[f"{start}{name}.weight"] = Tensor(shape, np.dtype(dtype), draw)
    return state


def _concatenated(parts: list) -> Tensor:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Tensor(
        shape, parts[0].dtype, lambda: np.concatenate([np.asarray(part) for part in parts])
    )


def _as_table(value) -> Tensor:
    """[1, N, W] -> [N, W]."""
    shape = value.shape[-2:]
    return Tensor(shape, value.dtype, lambda: np.asarray(value).reshape(shape))
