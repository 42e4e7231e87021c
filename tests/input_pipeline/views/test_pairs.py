import io
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from input_pipeline.text import captions
from input_pipeline.text.tokenizers import make_tokenizer
from input_pipeline.views import make_views

FIELDS = {"raw_caption": ["a red dog"], "long_a": ["two green trees", "one blue house", "a cat"]}
PIXELS = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


def make_record(pixels=PIXELS, **changes):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"id": "r7", "image": buffer.getvalue(), "captions": FIELDS, **changes}


def clip_views(**kwargs):
    options = {"image_size": 32, "tokenizer": "clip", "context_length": 16, **kwargs}
    return make_views("clip", **options)


def cosmos_views(**kwargs):
    options = {"tokenizer": "clip", "context_length": 24, "image_size": 32, "local_size": 16}
    return make_views("cosmos", **options | kwargs)


ALL_VIEWS = [
    clip_views(),
    clip_views(flip_prob=0.5, caption_mode="raw", crop_scale=(0.2, 0.3)),
    clip_views(flip_prob=0.5, crop_scale=None),
    cosmos_views(),
    cosmos_views(num_local=0, num_captions=2),
    cosmos_views(num_local=3, num_captions=5, caption_mode="long", num_global=1),
    cosmos_views(caption_mode="random", num_global=3, num_captions=3, flip_prob=0.0),
]


@pytest.mark.parametrize("make_example", ALL_VIEWS)
def test_examples_match_their_spec_and_depend_on_rng_alone(make_example):
    record = make_record()
    seen = []
    for seed in range(4):
        example = make_example(record, random.Random(seed))
        actual = {name: (value.shape, value.dtype) for name, value in example.items()}
        assert actual == make_example.spec()
        # A loader worker holds a pickled copy.
        again = pickle.loads(pickle.dumps(make_example))(record, random.Random(seed))
        for name, value in example.items():
            assert value.flags.c_contiguous
            np.testing.assert_array_equal(value, again[name])
        seen.append(example)
    for name, value in seen[0].items():
        if value.size and not (name == "tokens" and make_example.caption_mode == "raw"):
            assert any((value != other[name]).any() for other in seen[1:]), name


def test_defaults_are_the_paper_setting():
    sizes = {"image_size": 224, "context_length": 77}
    spec = make_views("cosmos", tokenizer="clip", **sizes).spec()
    assert spec == {
        "global_images": ((2, 224, 224, 3), np.uint8),
        "local_images": ((6, 96, 96, 3), np.uint8),
        "tokens": ((8, 77), np.int32),
    }


def test_tokens_are_the_sampled_captions():
    make_example = cosmos_views(num_captions=6)
    pool = [text for texts in FIELDS.values() for text in texts]
    tokenizer = make_tokenizer("clip")
    known = {row.tobytes() for row in tokenizer(pool, 24)}
    separator = tokenizer([". "], 24)[0, 1]
    longer = 0
    for seed in range(40):
        tokens = make_example(make_record(), random.Random(seed))["tokens"]
        for row in tokens[2:]:
            assert row.tobytes() in known
        longer += sum(separator in row for row in tokens[:2])
    # Four of five global captions join several sentences.
    assert 0.65 * 80 < longer < 0.95 * 80


def test_clip_takes_one_caption_of_the_mode():
    row = make_tokenizer("clip")(["a red dog"], 16)[0]
    example = clip_views(caption_mode="raw")(make_record(), random.Random(0))
    np.testing.assert_array_equal(example["tokens"], row)


def _ramp():
    """Red is x and green is y, so that a crop's colours say where it was taken."""
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    return np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)


def _extent(crop, channel):
    return (int(crop[..., channel].max()) - int(crop[..., channel].min())) / 255


@pytest.mark.parametrize("crop_scale, min_local", [(0.4, 0.05), (0.25, 0.1)])
def test_crop_areas_are_within_their_scales(crop_scale, min_local):
    make_example = cosmos_views(crop_scale=crop_scale, min_local_scale=min_local, num_local=4)
    record = make_record(_ramp())
    for seed in range(30):
        example = make_example(record, random.Random(seed))
        for name, (low, high) in (
            ("global_images", (crop_scale, 1.0)),
            ("local_images", (min_local, crop_scale)),
        ):
            side = example[name].shape[1]
            for crop in example[name]:
                # The outer half pixels of the crop are not seen at the output's pixel centres.
                share = _extent(crop, 0) * _extent(crop, 1) * (side / (side - 1)) ** 2
                assert low - 0.03 <= share <= high + 0.03


def test_without_a_crop_scale_the_whole_image_is_squashed():
    """Also one that no crop of an allowed shape could cover."""
    pixels = np.zeros((20, 200, 3), np.uint8)
    pixels[:10, :100], pixels[10:, 100:] = 255, 255
    image = clip_views(crop_scale=None)(make_record(pixels), random.Random(0))["image"]
    corners = image[[2, 2, -3, -3], [2, -3, 2, -3], 0].tolist()
    assert corners == [255, 0, 0, 255]


def test_flip_is_horizontal_and_per_crop():
    record = make_record(_ramp())
    flipped = []
    for seed in range(25):
        example = cosmos_views()(record, random.Random(seed))
        crops = [*example["global_images"], *example["local_images"]]
        assert all(crop[0, 0, 1] < crop[-1, 0, 1] for crop in crops)
        flipped.append([bool(crop[0, 0, 0] > crop[0, -1, 0]) for crop in crops])
    assert 0.35 < np.mean(flipped) < 0.65
    assert any(len(set(row)) == 2 for row in flipped)
    example = cosmos_views(flip_prob=0.0)(record, random.Random(0))
    assert all(crop[0, 0, 0] < crop[0, -1, 0] for crop in example["local_images"])


def test_global_and_local_crops_are_drawn_independently():
    example = cosmos_views(flip_prob=0.0)(make_record(_ramp()), random.Random(0))
    corners = {tuple(crop[0, 0]) for crop in example["local_images"]}
    assert len(corners) == len(example["local_images"])
    assert (example["global_images"][0] != example["global_images"][1]).any()


def test_broken_records_are_named():
    broken = make_record(image=b"junk")
    for make_example in (clip_views(), cosmos_views()):
        with pytest.raises(
            ValueError, match=r"Record 'r7': cannot decode .*input_pipeline.prepare"
        ):
            make_example(broken, random.Random(0))
        with pytest.raises(ValueError, match=r"Record 'r7': .*plain string"):
            make_example(make_record(captions={"title": "a cat"}), random.Random(0))
        with pytest.raises(ValueError, match=r"Record 'r7': .*no caption"):
            make_example(make_record(captions={"title": []}), random.Random(0))


@pytest.mark.parametrize(
    "make, kwargs, message",
    [
        (cosmos_views, {"num_global": 3}, "num_global is 3"),
        (cosmos_views, {"num_global": 0, "caption_mode": "random"}, "num_global=0"),
        (cosmos_views, {"num_local": -1}, "num_local=-1"),
        (cosmos_views, {"num_captions": 1, "caption_mode": "random"}, "num_captions is 1"),
        (cosmos_views, {"num_captions": 1}, "two global captions"),
        (cosmos_views, {"caption_mode": "raw"}, "exactly one caption"),
        (cosmos_views, {"crop_scale": 0.0}, "crop scale"),
        (cosmos_views, {"crop_scale": 0.04}, "crop scale"),
        (cosmos_views, {"flip_prob": 1.5}, "flip_prob"),
        (cosmos_views, {"tokenizer": "bpe"}, "Unknown tokenizer"),
        (clip_views, {"crop_scale": (0.9, 1.1)}, "crop scale"),
        (clip_views, {"caption_mode": "textcrop"}, "two global captions"),
        (clip_views, {"caption_mode": "all"}, "Unknown caption mode"),
    ],
)
def test_options_are_checked(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_unknown_names_and_keywords():
    with pytest.raises(ValueError, match="Unknown views 'dino'"):
        make_views("dino")
    for make in (clip_views, cosmos_views):
        with pytest.raises(TypeError, match="num_locals"):
            make(num_locals=3)


def test_images_come_before_captions():
    """Crops do not depend on the caption options: ablations of text see the same image views."""
    record = make_record()
    a = cosmos_views(num_captions=8)(record, random.Random(0))
    b = cosmos_views(num_captions=3, caption_mode="random")(record, random.Random(0))
    np.testing.assert_array_equal(a["local_images"], b["local_images"])


def test_workers_need_no_jax():
    code = "import sys, input_pipeline.views.cosmos; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("mode", [m for m in captions.MODES if m.startswith("textcrop")])
def test_pixelprose_fields_serve_textcrop(mode):
    fields = {"original_caption": ["a cat"], "caption": ["a cat sits. it is red"]}
    example = cosmos_views(caption_mode=mode)(make_record(captions=fields), random.Random(0))
    assert example["tokens"].shape == (8, 24)
