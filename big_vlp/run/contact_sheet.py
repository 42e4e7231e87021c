"""A batch as the model sees it, drawn: a row per example, all of its views after augmentation on
the device, the texts or labels that it is trained with below."""

import io
import textwrap
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.files.buckets import storage_path
from input_pipeline.files.whole import write_whole

MAX_EXAMPLES = 6
_MARGIN, _FONT_SIZE = 8, 13  # pixels
_MIN_SIDE, _MAX_SIDE = 96, 160  # views are shown between these sizes, local ones in proportion


def write_contact_sheet(
    path: str | Path,
    method,
    views,
    batch: dict,
    key,
    step: int = 0,
    batch_size: int | None = None,
) -> None:
    """Draws the first rows of a batch.

    Args:
      path: of the PNG.
      method: its `model_images` gives the augmented views, its `preprocess` undoes normalisation.
      views: what made the batch; its `texts` says what the model is told beside the images.
      batch: numpy arrays with a batch axis.
      key: the run's key: the augmentation is that of training step `step`.
      batch_size: of the whole batch, where `batch` holds its first rows only.
    """
    size = batch_size or len(next(iter(batch.values())))
    keys = jax.random.split(jax.random.fold_in(key, step), size)
    rows = {name: x[:MAX_EXAMPLES] for name, x in batch.items()}
    keys = keys[: len(next(iter(rows.values())))]  # of several processes each has some rows
    images = jax.jit(lambda *args: method.model_images(*args))(rows, keys)
    mean, std = (np.asarray(x) for x in (method.preprocess.mean, method.preprocess.std))
    pixels = [
        np.clip((np.asarray(x) * std + mean) * 255 + 0.5, 0, 255).astype(np.uint8)
        for x in images.values()
    ]
    picture = io.BytesIO()
    _draw(pixels, views.texts(rows)).save(picture, "PNG")
    write_whole(storage_path(path), picture.getvalue())


def _draw(pixels: list[np.ndarray], captions: list[list[str]]) -> Image.Image:
    """Kinds of views u8[B, V, S, S, 3] and captions [B][C] -> one picture."""
    font = ImageFont.load_default(_FONT_SIZE)
    largest = max((x.shape[2] for x in pixels), default=_MIN_SIDE)  # none: text only
    # Whole factors keep small pixels sharp.
    scale = min(max(1, -(-_MIN_SIDE // largest)), max(1, _MAX_SIDE // largest))
    scale = scale if largest <= _MAX_SIDE else _MAX_SIDE / largest
    sides = [round(x.shape[2] * scale) for x in pixels]
    tallest = max(sides, default=0)
    width = _MARGIN + sum(x.shape[1] * (s + _MARGIN) for x, s in zip(pixels, sides))
    width = max(width, 480)
    columns = int((width - 2 * _MARGIN) / (0.52 * _FONT_SIZE))
    texts = ["\n".join(_wrapped(example, columns)) for example in captions]
    line_height = _FONT_SIZE + 4
    heights = [tallest + (t.count("\n") + 1) * line_height + 3 * _MARGIN for t in texts]
    sheet = Image.new("RGB", (width, sum(heights) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, (text, height) in enumerate(zip(texts, heights)):
        left = _MARGIN
        for kind, side in zip(pixels, sides):
            for view in kind[row]:
                picture = Image.fromarray(view).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(picture, (left, top))
                left += side + _MARGIN
        draw.multiline_text((_MARGIN, top + tallest + _MARGIN), text, "black", font, spacing=3)
        top += height
    return sheet


def _wrapped(captions: list[str], columns: int) -> list[str]:
    lines = []
    for number, caption in enumerate(captions, 1):
        prefix = f"{number}. " if len(captions) > 1 else ""
        lines += textwrap.wrap(prefix + caption, columns, subsequent_indent="   ") or [prefix]
    return lines
