"""The contact sheet shows the very pixels and captions that train the model."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from big_vlp.methods import make_method
from big_vlp.run import contact_sheet
from input_pipeline.loader import Loader
from input_pipeline.plans.constant import Plan as Constant
from input_pipeline.preprocess import Preprocess
from input_pipeline.sources import make_source
from input_pipeline.views import make_views

ROOT = Path(__file__).parents[3]
SIZE, LOCAL_SIZE, LENGTH, ROWS = 16, 8, 24, 4
KEY = jax.random.key(3)
COLOURS = {"brightness": 0.3, "contrast": 0, "saturation": 0, "hue": 0, "blur_prob": 0.0}
SMALL = {"image_size": SIZE, "tokenizer": "clip", "context_length": LENGTH}


def make(name, rows=ROWS, **view_options):
    """(method, views, batch); the model's sizes do not matter, it is never run."""
    views = make_views(name, **SMALL, **view_options)
    method = make_method(
        name,
        preprocess=Preprocess(**SMALL),
        model={"image": {}, "text": {}, "embed_dim": 1},
        photometric=dict.fromkeys(("global_1", "global_2", "local"), COLOURS)
        if name == "cosmos"
        else COLOURS,
        **({"ema_decay": 0.9} if name == "cosmos" else {}),
    )
    source = make_source("scenes", size=20, image_size=32)
    plan = Constant(image_size=SIZE, global_batch=rows, total_steps=2, seed=0)
    return method, views, Loader(source, {SIZE: views}, plan, total_steps=2, seed=0).batch(1)


def cosmos(num_local=2, **options):
    return make("cosmos", num_local=num_local, local_size=LOCAL_SIZE, num_captions=3, **options)


def sheet_of(tmp_path, method, views, batch, step=1):
    path = tmp_path / "sheet.png"
    contact_sheet.write_contact_sheet(path, method, views, batch, KEY, step)
    return np.array(Image.open(path)).astype(int)


def place(sheet, tile):
    """The one corner (y, x) at which `tile` is in the sheet, up to rounding."""
    size = len(tile)
    found = []
    for y, x in np.argwhere((np.abs(sheet - tile[0, 0]) <= 1).all(axis=-1)):
        part = sheet[y : y + size, x : x + size]
        if part.shape == tile.shape and (np.abs(part - tile) <= 1).all():
            found.append((int(y), int(x)))
    (corner,) = found
    return corner


def training_pixels(method, batch, step):
    """{kind: u8[B, V, S, S, 3]}: what the train step of `step` feeds the towers."""
    keys = jax.random.split(jax.random.fold_in(KEY, step), len(batch["tokens"]))
    images = jax.jit(method.model_images)(batch, keys)
    mean, std = np.array(method.preprocess.mean), np.array(method.preprocess.std)
    return {k: np.round((np.array(x) * std + mean) * 255).clip(0, 255) for k, x in images.items()}


@pytest.mark.parametrize(
    "kind, views",
    [("cosmos", 4), ("no local crops", 2), ("clip", 1)],
)
def test_every_view_is_shown_as_the_model_sees_it(tmp_path, kind, views):
    parts = make("clip") if kind == "clip" else cosmos(num_local=2 if kind == "cosmos" else 0)
    method, _, batch = parts
    sheet = sheet_of(tmp_path, *parts)
    factor = contact_sheet._MIN_SIDE // SIZE
    corners = [
        place(sheet, np.repeat(np.repeat(view, factor, axis=0), factor, axis=1))
        for images in training_pixels(method, batch, step=1).values()
        for row in images
        for view in row
    ]
    assert len(set(corners)) == len(corners) == ROWS * views
    assert len({y for y, _ in corners}) == ROWS  # an example per row of the sheet


def test_other_steps_have_other_colours(tmp_path):
    parts = make("clip")
    first, again, other = (sheet_of(tmp_path, *parts, step=i) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape == other.shape
    assert (first != other).any()


def test_the_sheet_is_cut_to_a_few_rows(tmp_path):
    many = make("clip", rows=2 * contact_sheet.MAX_EXAMPLES)
    few = sheet_of(tmp_path, *make("clip", rows=contact_sheet.MAX_EXAMPLES))
    sheet = sheet_of(tmp_path, *many)
    assert abs(len(sheet) - len(few)) < 100
    # The rows shown keep the colours they have in the whole batch.
    (images,) = training_pixels(many[0], many[2], step=1).values()
    for row in images[: contact_sheet.MAX_EXAMPLES]:
        place(sheet, np.repeat(np.repeat(row[0], 6, axis=0), 6, axis=1))


def test_captions_are_decoded(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        contact_sheet, "_draw", lambda *args: drawn.append(args) or Image.new("RGB", (1, 1))
    )
    method, views, batch = cosmos()
    sheet_of(tmp_path, method, views, batch)
    ((pixels, captions),) = drawn
    assert [x.shape[:2] for x in pixels] == [(ROWS, 2), (ROWS, 2)]
    for texts, ids in zip(captions, batch["tokens"]):
        assert all(texts)
        np.testing.assert_array_equal(views.tokenizer(texts, LENGTH)[:, : LENGTH - 1], ids[:, :-1])


def test_rows_of_text_are_shown_without_images(tmp_path, monkeypatch):
    text = {"image_size": SIZE, "tokenizer": "llama:scenes", "context_length": 40}
    views = make_views("cogvlm", **text, tasks={"vqa": 1.0})
    preprocess = Preprocess(**text, resize="squash")
    model = {"text": {"vocab_size": 640, "width": 8, "layers": 1, "heads": 1, "mlp_dim": 8}}
    model["expert_parts"] = ()
    method = make_method("cogvlm", preprocess=preprocess, model=model)
    source = make_source("scenes", size=20, image_size=32)
    plan = Constant(image_size=SIZE, global_batch=ROWS, total_steps=2, seed=0)
    batch = Loader(source, {SIZE: views}, plan, total_steps=2, seed=0).batch(1)
    dark = (sheet_of(tmp_path, method, views, batch) < 128).all(axis=-1).any(axis=1)
    # Lines of text, one below the other, and nothing else.
    lines = np.flatnonzero(np.diff(dark.astype(int)) == 1)
    assert len(lines) >= ROWS
    drawn = []
    monkeypatch.setattr(
        contact_sheet, "_draw", lambda *args: drawn.append(args) or Image.new("RGB", (1, 1))
    )
    sheet_of(tmp_path, method, views, batch)
    ((pixels, captions),) = drawn
    assert pixels == [] and len(captions) == ROWS
    assert all("Short answer:" in text and text.endswith("</s>") for (text,) in captions)


@pytest.mark.parametrize("size", [8, 40, 96, 160, 224, 300])
def test_pictures_of_any_size_are_legible(size):
    pixels = [np.full((2, 2, size, size, 3), 90, np.uint8)]
    sheet = np.array(contact_sheet._draw(pixels, [["a cat " * 40, "a dog"], ["one"]]))
    grey = (sheet == 90).all(axis=-1)
    side = grey.sum(axis=1).max() / 2  # two views next to each other
    assert (
        contact_sheet._MIN_SIDE <= side <= max(contact_sheet._MAX_SIDE, 2 * contact_sheet._MIN_SIDE)
    )
    assert (sheet[~grey] < 50).any()  # text


def test_one_of_several_processes_has_few_rows(tmp_path):
    """They look as they do beside the rows of the others."""
    method, views, batch = cosmos(rows=8)
    few = {name: x[:4] for name, x in batch.items()}
    path = tmp_path / "few.png"
    contact_sheet.write_contact_sheet(path, method, views, few, KEY, 1, batch_size=8)
    found, whole = np.array(Image.open(path)), sheet_of(tmp_path, method, views, batch)
    height = len(found) - contact_sheet._MARGIN
    np.testing.assert_array_equal(found[:height], whole[:height])
