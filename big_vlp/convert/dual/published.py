"""Checkpoints known by name: what they are, and how they see and read.

By architecture and training data, as open_clip 3.3.0 names them, whose pretrained.py and
model_configs are the source; COSMOS' by the names of their files. What was published of them is in
`evaluators.datasets.tasks.paper`: COSMOS' numbers by its README (arXiv 2412.01814), those of the
others by open_clip's, and none where it has none.
"""

import dataclasses
from collections.abc import Mapping

from big_vlp.convert.common import ConversionError
from big_vlp.convert.dual import open_clip
from big_vlp.convert.dual.forms import Dual, compare
from evaluators.datasets import tasks

_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_SQUASH = {"resize_mode": "squash"}
# CLIPA's: ImageNet's mean and deviation.
_IMAGENET = {
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear",
    **_SQUASH,
}  # fmt: skip
_BASE = {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224}
_LARGE = {"layers": 24, "width": 1024, "patch_size": 14, "image_size": 224}
_HUGE = {"layers": 32, "width": 1280, "head_width": 80, "patch_size": 14, "image_size": 224}
_BIG = {
    "layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14,
    "image_size": 224,
}  # fmt: skip
# Width of the joint space and of the text tower, its heads and layers.
_TEXT = {
    "base": (512, 512, 8, 12),
    "large": (768, 768, 12, 12),
    "huge": (1024, 1024, 16, 24),
    "big": (1280, 1280, 20, 32),
}
# SigLIP's: width, heads and layers of the text tower, and the ratio of its MLPs.
_SIGLIP_TEXT = {"B": (768, 12, 12, 4), "L": (1024, 16, 24, 4), "SO400M": (1152, 16, 27, 3.7362)}
_TIMM_SIZES = {"B": "base", "L": "large", "SO400M": "so400m", "gopt": "giantopt"}


def _clip(vision, text, quick_gelu=False, text_cfg=None, **preprocess) -> dict:
    embed_dim, width, heads, layers = _TEXT[text]
    model = {"embed_dim": embed_dim, "vision_cfg": vision, "quick_gelu": quick_gelu}
    model["text_cfg"] = {"width": width, "heads": heads, "layers": layers, **(text_cfg or {})}
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _clipa(vision, text, image_size) -> dict:
    pools = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    text_cfg = {
        "context_length": 32, "vocab_size": 32000, "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_kwargs": {"strip_sep_token": True}, "pool_type": "last", "no_causal_mask": True,
    }  # fmt: skip
    vision = {**vision, **pools, "image_size": image_size}
    return _clip(vision, text, text_cfg=text_cfg, **_IMAGENET)


def _siglip(name: str, vocab_size: int, tanh: bool, context_length: int = 64) -> dict:
    """Of a name such as ViT-B-16-SigLIP-256."""
    _, size, patch, _, *rest = name.split("-")
    image_size = int(rest[-1]) if rest else 224
    width, heads, layers, ratio = _SIGLIP_TEXT["SO400M" if size == "gopt" else size]
    tower = f"vit_{_TIMM_SIZES[size]}_patch{patch}_siglip_{image_size}"
    text = {
        "context_length": context_length, "vocab_size": vocab_size, "hf_tokenizer_name": name,
        "tokenizer_kwargs": {"clean": "canonicalize"}, "width": width, "heads": heads,
        "layers": layers, "mlp_ratio": ratio, "no_causal_mask": True, "proj_bias": True,
        "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"} if tanh else None,
    }  # fmt: skip
    vision = {
        "image_size": image_size, "timm_model_name": tower, "timm_pool": "map", "timm_proj": "none",
    }  # fmt: skip
    model = {"embed_dim": 1536 if size == "gopt" else width, "init_logit_bias": -10}
    model |= {"vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": {**_HALF, **_SQUASH}}


# The content of open_clip_config.json that each has, or would have.
PUBLISHED: dict[str, Mapping] = {
    "ViT-B-32/openai": _clip({**_BASE, "patch_size": 32}, "base", True),
    "ViT-B-16/openai": _clip(_BASE, "base", True),
    "ViT-L-14/openai": _clip(_LARGE, "large", True),
    "ViT-L-14-336/openai": _clip({**_LARGE, "image_size": 336}, "large", True),
    "ViT-B-32/laion2b_s34b_b79k": _clip({**_BASE, "patch_size": 32}, "base"),
    "ViT-B-32/datacomp_xl_s13b_b90k": _clip({**_BASE, "patch_size": 32}, "base"),
    "ViT-B-32-256/datacomp_s34b_b86k": _clip(
        {**_BASE, "patch_size": 32, "image_size": 256}, "base"
    ),
    "ViT-B-16/laion2b_s34b_b88k": _clip(_BASE, "base"),
    "ViT-B-16/datacomp_xl_s13b_b90k": _clip(_BASE, "base"),
    # These two differ in nothing but their images' mean and deviation.
    "ViT-L-14/laion2b_s32b_b82k": _clip(_LARGE, "large", **_HALF),
    "ViT-L-14/datacomp_xl_s13b_b90k": _clip(_LARGE, "large"),
    "ViT-L-14/dfn2b_s39b": _clip(_LARGE, "large"),
    "ViT-H-14/laion2b_s32b_b79k": _clip(_HUGE, "huge"),
    "ViT-H-14-quickgelu/dfn5b": _clip(_HUGE, "huge", True, **_SQUASH),
    "ViT-H-14-378-quickgelu/dfn5b": _clip({**_HUGE, "image_size": 378}, "huge", True, **_SQUASH),
    "ViT-bigG-14/laion2b_s39b_b160k": _clip(_BIG, "big"),
    "ViT-H-14-CLIPA-336/laion2b": _clipa(_HUGE, "huge", 336),
}
PUBLISHED |= {
    f"ViT-{size}-14-CLIPA{'' if pixels == 224 else f'-{pixels}'}/datacomp1b": _clipa(
        vision, text, pixels
    )
    for size, vision, text in (
        ("L", _LARGE, "large"),
        ("H", _HUGE, "huge"),
        ("bigG", _BIG, "big"),
    )
    for pixels in (224, 336)
}
PUBLISHED |= {
    f"{name}/webli": _siglip(name, 32_000, False)
    for name in (
        "ViT-B-16-SigLIP", "ViT-B-16-SigLIP-256", "ViT-B-16-SigLIP-384", "ViT-B-16-SigLIP-512",
        "ViT-L-16-SigLIP-256", "ViT-L-16-SigLIP-384", "ViT-SO400M-14-SigLIP-384",
    )
}  # fmt: skip
PUBLISHED |= {
    "ViT-B-16-SigLIP-i18n-256/webli": _siglip("ViT-B-16-SigLIP-i18n-256", 250_000, False),
    "ViT-SO400M-14-SigLIP/webli": _siglip("ViT-SO400M-14-SigLIP", 32_000, False, 16),
}
PUBLISHED |= {
    f"{name}/webli": _siglip(name, 256_000, True)
    for name in (
        "ViT-B-32-SigLIP2-256", "ViT-B-16-SigLIP2", "ViT-B-16-SigLIP2-256", "ViT-B-16-SigLIP2-384",
        "ViT-B-16-SigLIP2-512", "ViT-L-16-SigLIP2-256", "ViT-L-16-SigLIP2-384",
        "ViT-L-16-SigLIP2-512", "ViT-SO400M-14-SigLIP2", "ViT-SO400M-14-SigLIP2-378",
        "ViT-SO400M-16-SigLIP2-256", "ViT-SO400M-16-SigLIP2-384", "ViT-SO400M-16-SigLIP2-512",
        "ViT-gopt-16-SigLIP2-256", "ViT-gopt-16-SigLIP2-384",
    )
}  # fmt: skip
PUBLISHED |= {
    f"cosmos_vitb{patch}_{data}": _clip({**_BASE, "patch_size": patch}, "base")
    for patch in (16, 32)
    for data in ("cc3m", "cc12m", "yfcc15m", "merged30m", "pixelprose")
}


def config(name: str) -> Mapping:
    """The config of a checkpoint.

    Raises:
      ConversionError: it is not known.
    """
    if name not in PUBLISHED:
        raise ConversionError(f"No checkpoint {name!r} is known; known are {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]


def numbers(name: str | None) -> dict[str, dict[str, float]]:
    """What is published of a checkpoint, see `tasks.paper`; {} of one without a name."""
    try:
        return {} if name is None else tasks.paper(name)
    except ValueError:
        return {}


def check_name(name: str, found: Dual, as_released: bool = False) -> None:
    """Raises ConversionError where a checkpoint is another than that of its name.

    Args:
      as_released: it is a file of SigLIP's authors, or made of it: there the activation is tanh's,
        where open_clip has the exact one for most, and images are resized as the file says.
    """
    dual = open_clip.from_config(config(name), found.preprocess.tokenizer)
    if as_released:
        towers = {x: {**dual.model[x], "activation": "gelu_tanh"} for x in ("image", "text")}
        interpolation = found.preprocess.interpolation
        record = dataclasses.replace(dual.preprocess, interpolation=interpolation)
        dual = Dual({**dual.model, **towers}, dual.sigmoid, record)
    compare("These are other weights than the name says", name, found, dual)
