"""What a row of CogVLM-17B (arXiv 2311.03079) costs, to say whether packing pays.

FLOPs of the products of a training step, forward and backward of all parts, as XLA counts them:
attention is over the whole row, each token goes through one expert, and image places that are empty
cost what others do. The layout "static" predicts tokens of text alone, "general" all of a row.
"""

from collections.abc import Mapping

import numpy as np

_WIDTH, _LAYERS, _MLP, _VOCABULARY = 4096, 32, 11_008, 32_000
_PATCH, _TOWER_WIDTH, _TOWER_LAYERS, _TOWER_MLP = 14, 1792, 63, 15_360
_BACKWARD = 3  # of forward, with it


def row_flops(text: int, images: int, image_size: int, slots: int, layout: str) -> float:
    """Of a row.

    Args:
      text: tokens of text, with bos.
      images: places of images.
      image_size: pixels.
      slots: tokens of an image in the row, boi and eoi among them.
      layout: "static" or "general".
    """
    tokens = text + images * slots
    predicted = (text if layout == "static" else tokens) - 1
    blocks = 2 * (4 * _WIDTH**2 + 3 * _WIDTH * _MLP) + 4 * tokens * _WIDTH
    language = _LAYERS * tokens * blocks + 2 * predicted * _WIDTH * _VOCABULARY
    patches = 1 + (image_size // _PATCH) ** 2
    tower = 2 * (4 * _TOWER_WIDTH**2 + 2 * _TOWER_WIDTH * _TOWER_MLP) + 4 * patches * _TOWER_WIDTH
    adapter = 2 * (_TOWER_WIDTH * _WIDTH + 3 * _WIDTH * _MLP)
    image = _TOWER_LAYERS * patches * tower + (slots - 2) * adapter
    return _BACKWARD * (language + images * image)


def cheapest(
    lengths: Mapping[int, tuple[int, int]], images: int, image_size: int, slots: int, layout: str
) -> tuple[int, float, float]:
    """One example a row: the context length of the fewest FLOPs per learnt token, these, and the
    share of the learnt tokens that are cut off there. An estimate: it takes prompts to fit.

    Args:
      lengths: tokens of text, with bos -> (examples, tokens that they learn).
      images: places of images in each row.
      image_size, slots, layout: as of `row_flops`.
    """
    text = np.array(sorted(lengths))
    count, learnt = np.array([lengths[length] for length in text.tolist()]).T
    mean = learnt / count
    found = []
    for room in text.tolist():
        kept = float((count * np.clip(mean - np.maximum(text - room, 0), 0, None)).sum())
        flops = row_flops(room, images, image_size, slots, layout) * count.sum()
        found.append((flops / max(kept, 1), room - 1, 1 - kept / learnt.sum()))
    flops, context, cut = min(found)
    return context, flops, cut
