"""transformers' config.json and preprocessor_config.json <-> the arguments of two towers.

For CLIPModel, SiglipModel and Siglip2Model. What the files leave out has transformers' defaults.
"""

import math
from collections.abc import Mapping

from big_vlp.convert.common import ConversionError
from big_vlp.convert.dual.forms import CLIP_HF, SIGLIP2_HF, SIGLIP_HF, Dual, Form
from input_pipeline.preprocess import CLIP_MEAN, CLIP_STD, Preprocess

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
PROCESSOR = "processor_config.json"
FORMS = {"clip": CLIP_HF, "siglip": SIGLIP_HF, "siglip2": SIGLIP2_HF}
_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
_TOWER = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12,
}  # fmt: skip
_SIGLIP_TOWER = {**_TOWER, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP_TEXT = {**_SIGLIP_TOWER, "vocab_size": 32000, "max_position_embeddings": 64}
_CLIP_TOWER = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
# By type of model: (vision_config, text_config).
_DEFAULTS = {
    "clip": (
        {**_TOWER, **_CLIP_TOWER, "image_size": 224, "patch_size": 32},
        {
            **_CLIP_TOWER, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
            "num_attention_heads": 8, "vocab_size": 49408, "max_position_embeddings": 77,
        },
    ),
    "siglip": ({**_SIGLIP_TOWER, "image_size": 224, "patch_size": 16}, _SIGLIP_TEXT),
    "siglip2": ({**_SIGLIP_TOWER, "num_patches": 256, "patch_size": 16}, _SIGLIP_TEXT),
}  # fmt: skip


def from_config(config: Mapping, preprocessor: Mapping, tokenizer: str) -> tuple[Dual, Form]:
    """A model of its two files, and the names that it has there.

    Raises:
      ConversionError: it is another model, or one with what these towers have not.
    """
    kind = config.get("model_type")
    if kind not in FORMS:
        raise ConversionError(
            f"config.json is of a model of type {kind!r}; known are {', '.join(FORMS)}."
        )
    vision, text = (
        {**known, **config.get(name, {}), **(config.get(f"{name}_dict") or {})}
        for name, known in zip(("vision_config", "text_config"), _DEFAULTS[kind])
    )
    side, image, words = vision["patch_size"], _tower(vision), _tower(text)
    size = vision["image_size"] if kind != "siglip2" else math.isqrt(vision["num_patches"]) * side
    words["vocab_size"] = text["vocab_size"]
    if kind == "clip":
        _check_end(text)
        embed_dim = config.get("projection_dim", 512)
    else:
        if not vision.get("vision_use_head", True):
            raise ConversionError("This SigLIP has no pooling: vision_use_head is false.")
        embed_dim = text.get("projection_size") or text["hidden_size"]
        image["pool"] = "map"
        words |= {"causal": False, "pool": "last"}
    image |= {"patch_size": side, "ignore_rest": size % side > 0}
    preprocess = _preprocess(preprocessor, size, kind, tokenizer, text["max_position_embeddings"])
    towers = {"image": image, "text": words, "embed_dim": embed_dim}
    return Dual(towers, kind != "clip", preprocess), FORMS[kind]


def to_config(dual: Dual, kind: str) -> tuple[dict, dict]:
    """The contents of config.json and preprocessor_config.json.

    Args:
      kind: "clip", "siglip" or "siglip2".

    Raises:
      ConversionError: transformers' model has no place for this one.
    """
    image, text, pre = dual.model["image"], dual.model["text"], dual.preprocess
    clip = kind == "clip"
    wanted = {
        "pools": ("cls", "eot") if clip else ("map", "last"),
        "class_token": clip,
        "norm_pre": clip,
        "causal": clip,
        "proj_bias": not clip,
        "sigmoid": not clip,
    }
    found = {**image, **text, "pools": (image["pool"], text["pool"]), "sigmoid": dual.sigmoid}
    wrong = {key: found[key] for key in wanted if found[key] != wanted[key]}
    if wrong:
        raise ConversionError(
            f"{_CLASSES[kind]} has no place for this model, which has {wrong}: it needs {wanted}."
        )
    vision = {**_to_tower(image), "patch_size": image["patch_size"]}
    words = {**_to_tower(text), "vocab_size": text["vocab_size"]}
    words["max_position_embeddings"] = pre.context_length
    last = text["vocab_size"] - 1
    if kind == "siglip2":
        vision["num_patches"] = (pre.image_size // image["patch_size"]) ** 2
    else:
        vision["image_size"] = pre.image_size
    if clip:
        # The end of a text is CLIP's largest id.
        words |= {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": 0}
        words["projection_dim"] = vision["projection_dim"] = dual.model["embed_dim"]
    else:
        words["projection_size"] = dual.model["embed_dim"]
        # As in the vocabularies of SigLIP, where the end fills the rest, and of Gemma.
        bos, pad = (2, 0) if pre.tokenizer.startswith("siglip2:") else (0, 1)
        words |= {"bos_token_id": bos, "eos_token_id": 1, "pad_token_id": pad}
    config = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vision_config": {**vision, "model_type": f"{kind}_vision_model"},
        "text_config": {**words, "model_type": f"{kind}_text_model"},
        "torch_dtype": "float32",
    }
    if clip:
        config["projection_dim"] = dual.model["embed_dim"]
    return config, _to_preprocessor(pre, kind, image["patch_size"])


def _tower(config: Mapping) -> dict:
    if config["hidden_act"] not in _ACTIVATIONS:
        raise ConversionError(
            f"hidden_act={config['hidden_act']!r}; known are {', '.join(_ACTIVATIONS)}."
        )
    return {
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "mlp_dim": config["intermediate_size"],
        "activation": _ACTIVATIONS[config["hidden_act"]],
        "norm_epsilon": config["layer_norm_eps"],
    }


def _to_tower(tower: Mapping) -> dict:
    return {
        "hidden_size": tower["width"],
        "num_hidden_layers": tower["layers"],
        "num_attention_heads": tower["heads"],
        "intermediate_size": tower["mlp_dim"],
        "hidden_act": {v: k for k, v in _ACTIVATIONS.items()}[tower["activation"]],
        "layer_norm_eps": tower["norm_epsilon"],
    }


def _check_end(text: Mapping) -> None:
    """2 is what old configs say, and means the largest id."""
    end = text.get("eos_token_id", 49407)
    if end not in (2, None, text["vocab_size"] - 1):
        raise ConversionError(
            f"text_config.eos_token_id={end} is not the largest of {text['vocab_size']} ids, which "
            "ends CLIP's texts."
        )


def _preprocess(
    config: Mapping, size: int, kind: str, tokenizer: str, context_length: int
) -> Preprocess:
    clip = kind == "clip"
    off = [key for key in ("do_resize", "do_rescale", "do_normalize") if not config.get(key, True)]
    if off or not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-4):
        raise ConversionError(
            f"{PREPROCESSOR} switches off {off}, or has another rescale_factor than 1/255: there "
            "is no such way here."
        )
    resample = config.get("resample", 3 if kind != "siglip2" else 2)
    if resample not in _RESAMPLE:
        raise ConversionError(f"{PREPROCESSOR}: resample={resample}; known are {_RESAMPLE}.")
    given = {"interpolation": _RESAMPLE[resample], "resize": "squash", "resize_size": None}
    found = _side(config.get("size", size))
    if clip and config.get("do_center_crop", True):
        crop = _side(config.get("crop_size", size))
        given |= {"resize": "shortest", "resize_size": None if found == crop else found}
        found = crop
    if found != size:
        raise ConversionError(
            f"{PREPROCESSOR} makes images of {found} pixels, and {CONFIG} says {size}."
        )
    half = (0.5, 0.5, 0.5)
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else (half, half)
    return Preprocess(
        image_size=size,
        tokenizer=tokenizer,
        context_length=context_length,
        mean=tuple(config.get("image_mean", mean)),
        std=tuple(config.get("image_std", std)),
        **given,
    )


def _side(size) -> int:
    """A size as transformers writes it; sides must be equal."""
    sides = {size} if isinstance(size, int) else set(size.values())
    if len(sides) != 1:
        raise ConversionError(f"{PREPROCESSOR}: size={size} is no square.")
    return sides.pop()


def _to_preprocessor(pre: Preprocess, kind: str, patch_size: int) -> dict:
    clip = kind == "clip"
    if pre.crop_rounding != "even" or (not clip and pre.resize != "squash"):
        raise ConversionError(
            f"{_CLASSES[kind]} does not prepare images like this: resize={pre.resize!r}, "
            f"crop_rounding={pre.crop_rounding!r}."
        )
    square = {"height": pre.image_size, "width": pre.image_size}
    config = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": {v: k for k, v in _RESAMPLE.items()}[pre.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": pre.mean,
        "image_std": pre.std,
        "image_processor_type": _CLASSES[kind].replace("Model", "ImageProcessor"),
    }
    if kind == "siglip2":  # which keeps an image's proportions
        count = (pre.image_size // patch_size) ** 2
        return {**config, "patch_size": patch_size, "max_num_patches": count}
    if clip and pre.resize == "shortest":
        shortest = pre.resize_size or pre.image_size
        crop = {"do_center_crop": True, "size": {"shortest_edge": shortest}, "crop_size": square}
        return {**config, **crop}
    return {**config, "size": square, **({"do_center_crop": False} if clip else {})}
