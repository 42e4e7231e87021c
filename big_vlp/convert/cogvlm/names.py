"""CogVLM and CogVLM2 weights as released (Hugging Face) <-> big_vlp, exactly and strictly.

Weights keep their dtype, bf16 in all releases. The rotary frequencies that a state dict holds are
read as the base they were made from, and written anew.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from big_vlp import trees
from big_vlp.convert.common import (
    ConversionError,
    check,
    to_lazy_model,
    to_lazy_state,
    to_state,
)
from big_vlp.models.cogvlm import CogVLM
from big_vlp.models.decoder import EXPERT_PARTS
from big_vlp.models.layers.rope import rope_frequencies
from input_pipeline.preprocess import Preprocess

FREQUENCIES = "model.layers.{i}.self_attn.rotary_emb.inv_freq"
_GATE = "model.vision.linear_proj.gate_proj.weight"
_CONV = "model.vision.conv.weight"
_EXPERT_BIAS = "model.layers.0.self_attn.vision_expert_query_key_value.bias"

_VISION_BLOCK = (
    # The key names are those of a pre-norm model; these norms stand behind attention and MLP.
    ("norm1/scale", "input_layernorm.weight", "same"),
    ("norm1/bias", "input_layernorm.bias", "same"),
    ("norm2/scale", "post_attention_layernorm.weight", "same"),
    ("norm2/bias", "post_attention_layernorm.bias", "same"),
    ("attn/qkv/kernel", "attention.query_key_value.weight", "qkv"),
    ("attn/qkv/bias", "attention.query_key_value.bias", "qkv_bias"),
    ("attn/out/kernel", "attention.dense.weight", "out"),
    ("attn/out/bias", "attention.dense.bias", "same"),
    ("mlp/fc1/kernel", "mlp.fc1.weight", "linear"),
    ("mlp/fc1/bias", "mlp.fc1.bias", "same"),
    ("mlp/fc2/kernel", "mlp.fc2.weight", "linear"),
    ("mlp/fc2/bias", "mlp.fc2.bias", "same"),
)
_VISION = (
    ("vision/patch/kernel", "model.vision.patch_embedding.proj.weight", "conv"),
    ("vision/patch/bias", "model.vision.patch_embedding.proj.bias", "same"),
    ("vision/class_token", "model.vision.patch_embedding.cls_embedding", "row1"),
    ("vision/position_embedding", "model.vision.patch_embedding.position_embedding.weight", "same"),
    *(
        (f"vision/transformer/blocks/{path}", "model.vision.transformer.layers.{i}." + key, kind)
        for path, key, kind in _VISION_BLOCK
    ),
)
ADAPTER = (
    ("adapter/linear/kernel", "model.vision.linear_proj.linear_proj.weight", "linear"),
    ("adapter/norm/scale", "model.vision.linear_proj.norm1.weight", "same"),
    ("adapter/norm/bias", "model.vision.linear_proj.norm1.bias", "same"),
    ("adapter/mlp/gate/kernel", _GATE, "linear"),
    ("adapter/mlp/up/kernel", "model.vision.linear_proj.dense_h_to_4h.weight", "linear"),
    ("adapter/mlp/down/kernel", "model.vision.linear_proj.dense_4h_to_h.weight", "linear"),
    ("adapter/boi", "model.vision.boi", "row2"),
    ("adapter/eoi", "model.vision.eoi", "row2"),
)
_DOWNSAMPLE = (
    ("vision/conv/kernel", _CONV, "conv"),
    ("vision/conv/bias", "model.vision.conv.bias", "same"),
)
_LANGUAGE = (
    ("language/token_embedding/embedding", "model.embed_tokens.weight", "same"),
    ("language/norm/scale", "model.norm.weight", "same"),
    ("language/head/kernel", "lm_head.weight", "linear"),
    ("language/blocks/norm1/scale", "model.layers.{i}.input_layernorm.weight", "same"),
    ("language/blocks/norm2/scale", "model.layers.{i}.post_attention_layernorm.weight", "same"),
)
# (argument of `Llama`, field of config.json)
TEXT_FIELDS = (
    ("vocab_size", "vocab_size"),
    ("width", "hidden_size"),
    ("layers", "num_hidden_layers"),
    ("heads", "num_attention_heads"),
    ("mlp_dim", "intermediate_size"),
    ("norm_epsilon", "rms_norm_eps"),
    ("pad_id", "pad_token_id"),
)


def from_reference(
    state: Mapping,
    config: Mapping,
    *,
    tokenizer: str | None = None,
    context_length: int = 0,
    lazy: bool = False,
) -> tuple[dict, dict, Preprocess]:
    """Converts a model.

    Args:
      state: the flat dict of all shards; values have `shape` and `dtype`, and are read one at a
        time by np.asarray (see `files.read_state`).
      config: content of config.json.
      tokenizer, context_length: for the preprocess record, which weights do not tell.
      lazy: whether parameters are `Tensor`s, which read the state's when they are read.

    Returns:
      (parameters, arguments of `models.cogvlm.CogVLM`, preprocess record).

    Raises:
      ConversionError: keys or shapes do not fit, each is named; or the config lacks a field.
    """
    found = {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in state.items()}
    arguments = _architecture(found, config)
    model = CogVLM(**arguments)
    image_rules, text_rules = _rules(model)
    expected = jax.eval_shape(lambda: _to_state(_init(model), model)) | _frequencies(model)
    check(expected, found)
    arguments["text"]["rope_base"] = _rope_base(state, model)
    params = trees.merge(
        to_lazy_model(state, image_rules, model.image["layers"], model.image["heads"]),
        to_lazy_model(state, text_rules, model.text["layers"], model.text["heads"]),
    )
    preprocess = Preprocess(
        image_size=model.image["image_size"],
        resize="squash",
        tokenizer=tokenizer,
        context_length=context_length,
        image_token_size=model.image_token_size,
    )
    return params if lazy else jax.tree.map(np.asarray, params), arguments, preprocess


def to_reference(params: dict, arguments: Mapping, *, lazy: bool = False) -> dict:
    """The inverse of `from_reference`: a flat dict of arrays, mostly views on the parameters.

    Args:
      lazy: whether these are `Tensor`s, best read in order; see `common.to_lazy_state`.

    Raises:
      ConversionError: as of `check_kind`; or parameters do not fit the arguments.
    """
    check_kind(arguments)
    model = CogVLM(**arguments)
    check(trees.flatten(jax.eval_shape(lambda: _init(model))), trees.flatten(params))
    image_rules, text_rules = _rules(model)
    state = to_lazy_state(params, image_rules, model.image["layers"])
    state |= to_lazy_state(params, text_rules, model.text["layers"])
    dtype = params["language"]["norm"]["scale"].dtype
    frequencies = {k: v.astype(dtype) for k, v in _frequencies(model).items()}
    return (state if lazy else {k: np.asarray(v) for k, v in state.items()}) | frequencies


def check_kind(arguments: Mapping) -> None:
    """Whether the released form can hold a model of these arguments of `CogVLM`.

    Raises:
      ConversionError: it is for EVA2-CLIP's image tower and whole visual experts in every block.
    """
    model = CogVLM(**arguments)
    if model.image is None or model.tower != "eva":
        raise ConversionError(
            "The released form has no place for this model: its image tower is "
            f"{'missing' if model.image is None else repr(model.tower)}, and must be 'eva'."
        )
    parts = sorted(model.expert_parts) != sorted(EXPERT_PARTS)
    if parts or model.expert_every != 1 or model.image_mask != "causal":
        raise ConversionError(
            "The released form has no place for this model: it needs visual experts with "
            f"{EXPERT_PARTS} in every block and a causal image mask, got {model.expert_parts} "
            f"every {model.expert_every} and {model.image_mask!r}."
        )


def from_config(config: Mapping) -> dict:
    """Arguments of `CogVLM` as far as config.json tells: all but "adapter_mlp_dim", "rope_base",
    "downsample" and "expert_qkv_bias", which show in the weights only.

    Raises:
      ConversionError: fields are missing; each is named.
    """
    image, missing = config.get("vision_config", {}), []

    def get(section, name, prefix=""):
        if name not in section:
            missing.append(prefix + name)
        return section.get(name)

    text = {ours: get(config, theirs) for ours, theirs in TEXT_FIELDS}
    text["kv_heads"] = config.get("num_multi_query_heads", text["heads"])
    tower = {
        ours: get(image, theirs, "vision_config.")
        for ours, theirs in (
            ("image_size", "image_size"),
            ("patch_size", "patch_size"),
            ("width", "hidden_size"),
            ("layers", "num_hidden_layers"),
            ("heads", "num_heads"),
            ("mlp_dim", "intermediate_size"),
            ("epsilon", "layer_norm_eps"),
        )
    }
    if missing:
        raise ConversionError(f"config.json of a CogVLM model has {missing}; these are missing.")
    return {"image": tower, "text": text}


def to_config(arguments: Mapping, **others) -> dict:
    """config.json for the arguments of `CogVLM`.

    Args:
      others: fields that are no matter of the model's, such as template_version and bos_token_id.
    """
    image, text = arguments["image"], arguments["text"]
    config = {
        "vocab_size": text["vocab_size"],
        "hidden_size": text["width"],
        "intermediate_size": text["mlp_dim"],
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
        "hidden_act": "silu",
        "rms_norm_eps": text.get("norm_epsilon", 1e-5),
        "pad_token_id": text.get("pad_id", 0),
        "tie_word_embeddings": False,
        "vision_config": {
            "dropout_prob": 0.0,
            "hidden_act": "gelu",
            "hidden_size": image["width"],
            "image_size": image["image_size"],
            "in_channels": 3,
            "intermediate_size": image["mlp_dim"],
            "layer_norm_eps": image.get("epsilon", 1e-6),
            "num_heads": image["heads"],
            "num_hidden_layers": image["layers"],
            "num_positions": (image["image_size"] // image["patch_size"]) ** 2 + 1,
            "patch_size": image["patch_size"],
        },
    }
    if text.get("kv_heads") not in (None, text["heads"]):
        config["num_multi_query_heads"] = text["kv_heads"]
    return config | others


def _architecture(found: Mapping, config: Mapping) -> dict:
    arguments = from_config(config)
    if _GATE not in found:
        raise ConversionError(
            f"Not the weights of a CogVLM model: {_GATE} is missing. Found {sorted(found)[:8]}."
        )
    arguments["image"]["downsample"] = _CONV in found
    arguments["adapter_mlp_dim"] = found[_GATE].shape[0]
    arguments["expert_qkv_bias"] = _EXPERT_BIAS in found
    return arguments


def _init(model: CogVLM) -> dict:
    size = model.image["image_size"]
    tokens = jnp.zeros((1, 1), jnp.int32)
    images = jnp.zeros((1, 1, size, size, 3))
    return model.init(jax.random.key(0), images, tokens, tokens)["params"]


def _rules(model: CogVLM) -> tuple[tuple, tuple]:
    """Those of the image's part and of the language model, which differ in layers and heads."""
    downsample = _DOWNSAMPLE if model.image.get("downsample") else ()
    return _VISION + ADAPTER + downsample, language_rules(model)


def language_rules(model: CogVLM, experts: tuple[str, ...] = ("language", "vision")) -> tuple:
    """Those of the language model, with the named sets of its blocks' weights."""
    kv_heads = model.text.get("kv_heads")
    fused = kv_heads in (None, model.text["heads"])
    kind = "qkv" if fused else f"gqa{kv_heads}"
    rules = list(_LANGUAGE)
    for expert in experts:
        ours = f"language/blocks/{expert}"
        attention = "model.layers.{i}.self_attn." + expert + "_expert_"
        mlp = "model.layers.{i}.mlp." + expert + "_mlp."

        def qkv(name, ours=ours):
            start = f"{ours}/attn/"
            if fused:
                return f"{start}qkv/{name}"
            return f"{start}query/{name}", f"{start}key_value/{name}"

        rules += [
            (qkv("kernel"), attention + "query_key_value.weight", kind),
            (f"{ours}/attn/out/kernel", attention + "dense.weight", "out"),
        ]
        rules += [
            (f"{ours}/mlp/{name}/kernel", f"{mlp}{name}_proj.weight", "linear")
            for name in ("gate", "up", "down")
        ]
        if expert == "vision" and model.expert_qkv_bias:
            bias_kind = kind.replace("gqa", "gqa_bias") if not fused else "qkv_bias"
            rules.append((qkv("bias"), attention + "query_key_value.bias", bias_kind))
    return tuple(rules)


def _to_state(params: dict, model: CogVLM) -> dict:
    image_rules, text_rules = _rules(model)
    return to_state(params, image_rules, model.image["layers"]) | to_state(
        params, text_rules, model.text["layers"]
    )


def _frequencies(model: CogVLM) -> dict[str, np.ndarray]:
    head_dim = model.text["width"] // model.text["heads"]
    values = rope_frequencies(head_dim, model.text.get("rope_base", 10000.0))
    return {FREQUENCIES.format(i=i): values for i in range(model.text["layers"])}


def _rope_base(state: Mapping, model: CogVLM) -> float:
    """The base of the frequencies in a state dict, whatever precision these were rounded to."""
    keys = list(_frequencies(model))
    values = np.asarray(state[keys[0]]).astype(np.float64)
    count = len(values)
    base = 10000.0
    if count > 1:
        base = float(f"{values[-1] ** (-count / (count - 1)):.1e}")
    tolerance = {ml_dtypes.bfloat16: 2**-7, np.float16: 2**-9}.get(state[keys[0]].dtype.type, 1e-5)
    expected = rope_frequencies(2 * count, base)
    wrong = [
        key
        for key in keys
        if not np.allclose(
            np.asarray(state[key]).astype(np.float64), expected, rtol=tolerance, atol=1e-6
        )
    ]
    if wrong:
        raise ConversionError(
            "These are not the frequencies base ** (-2i / head_dim) of plain rotary embeddings, "
            f"with one base for all blocks: {wrong}."
        )
    return base
