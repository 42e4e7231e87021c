"""open_clip's config <-> the arguments of two towers and the preprocess record.

The file open_clip_config.json has two sections, `model_cfg` and `preprocess_cfg`; a file of the
package's model_configs is the first alone. What the config leaves out has open_clip's defaults.
"""

from collections.abc import Mapping

from big_vlp.convert.common import ConversionError
from big_vlp.convert.dual.forms import CUSTOM_TEXT, OPENAI, TIMM, Dual, Form
from input_pipeline.preprocess import CLIP_MEAN, CLIP_STD, Preprocess

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_VISION = {
    "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16,
    "image_size": 224, "no_ln_pre": False, "final_ln_after_pool": False, "pool_type": "tok",
    "act_kwargs": None, "norm_kwargs": None, "timm_model_name": None, "timm_pool": "avg",
    "timm_proj": "linear",
}  # fmt: skip
_TEXT = {
    "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12,
    "mlp_ratio": 4.0, "no_causal_mask": False, "pool_type": "argmax", "proj_bias": False,
    "act_kwargs": None, "norm_kwargs": None, "hf_tokenizer_name": None, "tokenizer_kwargs": None,
}  # fmt: skip
# Of no effect on what a trained model computes, or told by what is beside it.
_WITHOUT_EFFECT = {
    "patch_dropout", "pos_embed_type", "timm_model_pretrained", "timm_drop", "timm_drop_path",
    "output_tokens", "pad_id", "timm_proj_bias",
}  # fmt: skip
_POOLS = {"tok": "cls", "avg": "mean"}
_TEXT_POOLS = {"argmax": "eot", "last": "last"}
_PREPROCESS = {
    "mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"
}  # fmt: skip

# What a text becomes there; the files of the vocabulary belong beside the weights.
_TOKENIZERS = {
    kind: {"hf_tokenizer_name": ".", "tokenizer_kwargs": options}
    for kind, options in {
        "sentencepiece": {"clean": "canonicalize"},
        "siglip2": {"clean": "lower"},
        "wordpiece": {"strip_sep_token": True},
    }.items()
}
# How open_clip cleans a text where its config does not say, and how it is cleaned here.
_CLEANED = "whitespace"
_WORDS = {
    "canonicalize": "punctuation is dropped", "lower": "punctuation stays",
    "whitespace": "punctuation and capitals go to the tokenizer",
}  # fmt: skip
# SigLIP's image towers: width, layers, heads and hidden width of the MLPs.
_SIGLIP = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
# timm's models by name: (size, patch size, image size, activation).
TIMM_MODELS = {
    f"vit_{size}_patch{patch}_siglip_{image}": (*_SIGLIP[size], patch, image, activation)
    for activation, models in {
        "gelu": (
            ("base", 16, (224, 256, 384, 512)),
            ("large", 16, (256, 384)),
            ("so400m", 14, (224, 378, 384)),
        ),
        "gelu_tanh": (
            ("base", 32, (256,)),
            ("large", 16, (512,)),
            ("so400m", 16, (256, 384, 512)),
            ("giantopt", 16, (256, 384)),
        ),
    }.items()
    for size, patch, images in models
    for image in images
}


def from_config(config: Mapping, tokenizer: str | None) -> Dual:
    """A model of its config.

    Args:
      tokenizer: of the preprocess record; None where it is CLIP's.

    Raises:
      ConversionError: the model has what these towers have not, or its tokenizer is not given.
    """
    model, given = config.get("model_cfg", config), config.get("preprocess_cfg", {})
    if not isinstance(model, Mapping) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(model):
        raise ConversionError(
            f"This is no config of open_clip's: it needs model_cfg with embed_dim, vision_cfg and "
            f"text_cfg, and has {sorted(config)[:8]}."
        )
    if "multimodal_cfg" in model:
        raise ConversionError("CoCa has a decoder besides its two towers, for which there is none.")
    vision, text = (
        _with_defaults(model[name], known, name)
        for name, known in (("vision_cfg", _VISION), ("text_cfg", _TEXT))
    )
    if text["hf_tokenizer_name"] and tokenizer is None:
        raise ConversionError(
            f"The texts of this model are tokenized by {text['hf_tokenizer_name']!r}: give the "
            "file of its vocabulary, --tokenizer sentencepiece:PATH for SigLIP, siglip2:PATH for "
            "SigLIP 2 and wordpiece:PATH for CLIPA."
        )
    _check_tokenizer(text)
    quick = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    if vision["timm_model_name"]:
        image = _timm(vision, model["embed_dim"])
    else:
        image = {
            "patch_size": vision["patch_size"],
            **_sizes(vision, vision["width"] // vision["head_width"], quick),
            "pool": _choose("vision_cfg.pool_type", _POOLS, vision["pool_type"]),
            "class_token": True,
            "norm_pre": not vision["no_ln_pre"],
            "norm_after_pool": vision["final_ln_after_pool"] and vision["pool_type"] == "avg",
            "ignore_rest": vision["image_size"] % vision["patch_size"] > 0,
        }
    towers = {
        "image": image,
        "text": {
            "vocab_size": text["vocab_size"],
            **_sizes(text, text["heads"], quick),
            "causal": not text["no_causal_mask"],
            "pool": _choose("text_cfg.pool_type", _TEXT_POOLS, text["pool_type"]),
            "proj_bias": text["proj_bias"],
        },
        "embed_dim": model["embed_dim"],
    }
    given = {**_PREPROCESS, **{k: v for k, v in given.items() if v is not None}}
    size = given.get("size", vision["image_size"])
    sizes = {tuple(x) if isinstance(x, list) else (x, x) for x in (size, vision["image_size"])}
    if len(sizes) > 1:
        raise ConversionError(
            f"preprocess_cfg.size={size} and vision_cfg.image_size={vision['image_size']} "
            "contradict each other."
        )
    try:
        preprocess = Preprocess(
            image_size=sizes.pop()[0],
            tokenizer=tokenizer or "clip",
            context_length=text["context_length"],
            resize=given["resize_mode"],
            interpolation=given["interpolation"],
            mean=tuple(given["mean"]),
            std=tuple(given["std"]),
        )
    except ValueError as error:
        raise ConversionError(f"preprocess_cfg: {error}") from error
    return Dual(towers, model.get("init_logit_bias") is not None, preprocess)


def _check_tokenizer(text: Mapping) -> None:
    options = text["tokenizer_kwargs"] or {}
    others = set(options) - {"clean", "strip_sep_token"}
    if others or options.get("clean", _CLEANED) not in _WORDS:
        raise ConversionError(f"text_cfg.tokenizer_kwargs={options}: there is no such way here.")


def remarks(config: Mapping, dual: Dual) -> list[str]:
    """Lines about texts that open_clip makes other tokens of."""
    kind = dual.preprocess.tokenizer.partition(":")[0]
    if kind not in _TOKENIZERS:
        return []
    theirs = config.get("model_cfg", config)["text_cfg"].get("tokenizer_kwargs") or {}
    ours, lines = _TOKENIZERS[kind]["tokenizer_kwargs"], []
    cleaned = [x.get("clean", _CLEANED) for x in (theirs, ours)]
    if cleaned[0] != cleaned[1]:
        lines.append(
            f"open_clip cleans texts by {cleaned[0]!r}, where {_WORDS[cleaned[0]]}; here, as the "
            f"authors do, by {cleaned[1]!r}, where {_WORDS[cleaned[1]]}."
        )
    strips = [bool(x.get("strip_sep_token")) for x in (theirs, ours)]
    if strips[0] != strips[1]:
        lines.append("open_clip ends these texts with [SEP]; here they have no end.")
    return lines


def to_config(dual: Dual) -> tuple[dict, Form]:
    """The content of open_clip_config.json, and the names that such a model has there.

    Raises:
      ConversionError: open_clip has no such model, or does not prepare images like this.
    """
    image, text, pre = dual.model["image"], dual.model["text"], dual.preprocess
    if pre.resize_size not in (None, pre.image_size) or pre.crop_rounding != "even":
        raise ConversionError(
            f"open_clip crops what it has resized to image_size; this model has resize_size="
            f"{pre.resize_size}, crop_rounding={pre.crop_rounding!r}."
        )
    quick = {x["activation"] == "quick_gelu" for x in (image, text)}
    if len(quick) > 1:
        raise ConversionError("Both towers must have quick_gelu there, or none.")
    if image["pool"] == "map":
        form, vision = TIMM, _to_timm(image, pre.image_size)
    else:
        form = CUSTOM_TEXT if text["proj_bias"] else OPENAI
        vision = _to_vision(image, pre.image_size)
    model = {"embed_dim": dual.model["embed_dim"], "vision_cfg": vision}
    model["text_cfg"] = _to_text(text, pre)
    if form is not OPENAI:
        model["custom_text"] = True
    if any(quick):
        model["quick_gelu"] = True
    if dual.sigmoid:
        model["init_logit_bias"] = -10
    given = {"mean": pre.mean, "std": pre.std, "interpolation": pre.interpolation}
    return {"model_cfg": model, "preprocess_cfg": {**given, "resize_mode": pre.resize}}, form


def _with_defaults(given: Mapping, known: Mapping, name: str) -> dict:
    others = sorted(
        key
        for key, value in given.items()
        if key not in known and key not in _WITHOUT_EFFECT and value not in (None, False)
    )
    if others:
        raise ConversionError(f"{name} has what these towers have not: {', '.join(others)}.")
    return {**known, **{k: v for k, v in given.items() if k in known}}


def _sizes(given: Mapping, heads: int, activation: str) -> dict:
    width, act, norm = given["width"], given["act_kwargs"] or {}, given["norm_kwargs"] or {}
    if not isinstance(given["layers"], int):
        raise ConversionError("This is a ResNet; there are only ViTs here.")
    if set(act) - {"approximate"} or set(norm) - {"eps"}:
        raise ConversionError(f"Unknown act_kwargs or norm_kwargs: {act}, {norm}.")
    tanh = act.get("approximate", "none") == "tanh"
    return {
        "width": width,
        "layers": given["layers"],
        "heads": heads,
        "mlp_dim": int(width * given["mlp_ratio"]),
        "activation": "gelu_tanh" if tanh else activation,
        "norm_epsilon": norm.get("eps", 1e-5),
    }


def _timm(vision: Mapping, embed_dim: int) -> dict:
    name = vision["timm_model_name"]
    if name not in TIMM_MODELS:
        raise ConversionError(
            f"The image tower is timm's {name!r}; known are {', '.join(TIMM_MODELS)}."
        )
    width, layers, heads, mlp_dim, patch_size, size, activation = TIMM_MODELS[name]
    found = {x: vision[x] for x in ("timm_pool", "timm_proj", "image_size")}
    wanted = {"timm_pool": "map", "timm_proj": "none", "image_size": size}
    if found != wanted or embed_dim != width:
        raise ConversionError(f"{name} with {found} is no tower of SigLIP's: it needs {wanted}.")
    return {
        "patch_size": patch_size, "width": width, "layers": layers, "heads": heads,
        "mlp_dim": mlp_dim, "activation": activation, "norm_epsilon": 1e-6, "pool": "map",
        "ignore_rest": size % patch_size > 0,
    }  # fmt: skip


def _to_timm(image: Mapping, size: int) -> dict:
    keys = ("width", "layers", "heads", "mlp_dim")
    sizes = (*(image[k] for k in keys), image["patch_size"], size)
    names = [name for name, x in TIMM_MODELS.items() if x == (*sizes, image["activation"])]
    if not names or image["norm_epsilon"] != 1e-6:
        near = [f"{name} with {x[-1]}" for name, x in TIMM_MODELS.items() if x[:-1] == sizes]
        raise ConversionError(
            "open_clip takes SigLIP's towers from timm, which has none of these sizes with "
            f"{image['activation']} and norms' epsilon 1e-6. It has {', '.join(near) or 'none'}."
        )
    return {
        "image_size": size, "timm_model_name": names[0], "timm_model_pretrained": False,
        "timm_pool": "map", "timm_proj": "none",
    }  # fmt: skip


def _to_vision(image: Mapping, size: int) -> dict:
    if not image["class_token"]:
        raise ConversionError("open_clip has no ViT without a class token but SigLIP's.")
    return {
        "image_size": size,
        "patch_size": image["patch_size"],
        "head_width": image["width"] // image["heads"],
        **_to_sizes(image),
        **({} if image["norm_pre"] else {"no_ln_pre": True}),
        **({} if image["pool"] == "cls" else {"pool_type": "avg"}),
        **({"final_ln_after_pool": True} if image["norm_after_pool"] else {}),
    }


def _to_text(text: Mapping, pre: Preprocess) -> dict:
    return {
        "context_length": pre.context_length,
        "vocab_size": text["vocab_size"],
        "heads": text["heads"],
        **_to_sizes(text),
        **({} if text["causal"] else {"no_causal_mask": True}),
        **({} if text["pool"] == "eot" else {"pool_type": text["pool"]}),
        **({"proj_bias": True} if text["proj_bias"] else {}),
        **_TOKENIZERS.get(pre.tokenizer.partition(":")[0], {}),
    }


def _to_sizes(tower: Mapping) -> dict:
    width, mlp_dim, epsilon = (tower[k] for k in ("width", "mlp_dim", "norm_epsilon"))
    ratio = mlp_dim / width
    ratio = ratio if int(width * ratio) == mlp_dim else (mlp_dim + 0.5) / width
    return {
        "width": width,
        "layers": tower["layers"],
        **({} if ratio == 4 else {"mlp_ratio": ratio}),
        **({} if epsilon == 1e-5 else {"norm_kwargs": {"eps": epsilon}}),
        **({"act_kwargs": {"approximate": "tanh"}} if tower["activation"] == "gelu_tanh" else {}),
    }


def _choose(name: str, known: Mapping, value: str) -> str:
    if value not in known:
        raise ConversionError(f"{name}={value!r} is unknown here; known are {', '.join(known)}.")
    return known[value]
