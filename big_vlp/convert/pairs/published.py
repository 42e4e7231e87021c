"""Checkpoints known by name: what they are, how they see, and what was published of them.

Numbers are in percent, and only those that their source tells; `source` says which.
"""

import dataclasses
from collections.abc import Mapping

from big_vlp.convert.common import ConversionError
from big_vlp.convert.pairs.forms import Pair

_COSMOS_PAPER = "ExplainableML/cosmos, README (arXiv 2412.01814)"
_OPEN_CLIP = "open_clip 3.3.0, README"
_TASKS = (
    "coco_val2017/image_to_text_recall@1",
    "coco_val2017/text_to_image_recall@1",
    "flickr30k_val/image_to_text_recall@1",
    "flickr30k_val/text_to_image_recall@1",
    "imagenet/top1",
)
_COSMOS = {
    "vitb16": {
        "cc3m": (53.1, 40.1, 84.1, 68.6, 37.1),
        "cc12m": (64.2, 48.9, 91.4, 76.2, 51.4),
        "yfcc15m": (67.5, 50.9, 92.6, 79.6, 52.4),
        "merged30m": (68.0, 52.5, 92.9, 80.3, 57.6),
        "pixelprose": (62.4, 43.4, 89.9, 73.6, 59.6),
    },
    "vitb32": {
        "cc3m": (47.6, 33.5, 74.3, 59.2, 33.0),
        "cc12m": (59.6, 43.0, 86.5, 69.8, 46.7),
        "yfcc15m": (64.5, 46.0, 90.2, 73.3, 48.1),
        "merged30m": (64.3, 48.4, 89.9, 76.1, 53.4),
        "pixelprose": (57.2, 38.9, 85.6, 66.3, 54.3),
    },
}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
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


@dataclasses.dataclass(frozen=True)
class Published:
    """A checkpoint.

    Attributes:
      config: the content of open_clip_config.json that it has, or would have.
      numbers: {task: percent}, by their `source`.
    """

    config: Mapping
    numbers: Mapping[str, float]
    source: str


def _clip(vision, text, imagenet=None, quick_gelu=False, **preprocess) -> Published:
    embed_dim, width, heads, layers = _TEXT[text]
    model = {"embed_dim": embed_dim, "vision_cfg": vision, "quick_gelu": quick_gelu}
    model["text_cfg"] = {"width": width, "heads": heads, "layers": layers}
    numbers = {} if imagenet is None else {"imagenet/top1": imagenet}
    return Published({"model_cfg": model, "preprocess_cfg": preprocess}, numbers, _OPEN_CLIP)


# By architecture and training data, as open_clip names them; COSMOS' by their files.
PUBLISHED = {
    "ViT-B-32/openai": _clip({**_BASE, "patch_size": 32}, "base", quick_gelu=True),
    "ViT-B-16/openai": _clip(_BASE, "base", quick_gelu=True),
    "ViT-L-14/openai": _clip(_LARGE, "large", 75.5, quick_gelu=True),
    "ViT-B-32-256/datacomp_s34b_b86k": _clip(
        {**_BASE, "patch_size": 32, "image_size": 256}, "base", 72.8
    ),
    "ViT-B-16/datacomp_xl_s13b_b90k": _clip(_BASE, "base", 73.5),
    # These two differ in nothing but their images' mean and deviation.
    "ViT-L-14/laion2b_s32b_b82k": _clip(_LARGE, "large", 75.3, **_HALF),
    "ViT-L-14/datacomp_xl_s13b_b90k": _clip(_LARGE, "large", 79.2),
    "ViT-L-14/dfn2b_s39b": _clip(_LARGE, "large", 82.2),
    "ViT-H-14/laion2b_s32b_b79k": _clip(_HUGE, "huge", 78.0),
    "ViT-H-14-quickgelu/dfn5b": _clip(_HUGE, "huge", 83.4, quick_gelu=True),
    "ViT-bigG-14/laion2b_s39b_b160k": _clip(_BIG, "big", 80.1),
}
PUBLISHED |= {
    f"cosmos_{size}_{data}": dataclasses.replace(
        _clip({**_BASE, "patch_size": int(size.removeprefix("vitb"))}, "base"),
        numbers=dict(zip(_TASKS, numbers)),
        source=_COSMOS_PAPER,
    )
    for size, rows in _COSMOS.items()
    for data, numbers in rows.items()
}


def find(name: str) -> Published:
    """The checkpoint of a name.

    Raises:
      ConversionError: it is not known.
    """
    if name not in PUBLISHED:
        raise ConversionError(f"No checkpoint {name!r} is known; known are {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]


def check(name: str, found: Pair, expected: Pair) -> None:
    """Raises ConversionError where a checkpoint is another than that of its name."""

    def values(pair):
        towers = {
            f"{tower}.{key}": value
            for tower in ("image", "text")
            for key, value in pair.model[tower].items()
        }
        return {**towers, **dataclasses.asdict(pair.preprocess)}

    found, expected = values(found), values(expected)
    lines = [
        f"{key} is {found[key]}, that of {name} {expected[key]}"
        for key in expected
        if found.get(key) != expected[key]
    ]
    if lines:
        raise ConversionError(
            "These are other weights than the name says:\n  " + "\n  ".join(lines)
        )
