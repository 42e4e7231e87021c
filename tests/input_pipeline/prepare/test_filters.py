import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline.images import crops
from input_pipeline.prepare.filters import Rules, Tally, passing, with_captions


def image(width=40, height=30, format="JPEG", seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    smooth.save(file, format, quality=95)
    return file.getvalue()


def sample(key, data=None, captions=("a cat",)):
    data = image() if data is None else data
    return key, {"id": f"x/{key}", "image": data, "captions": {"caption": list(captions)}}


def run(samples, duplicates=(), **rules):
    tally = Tally()
    return list(passing(samples, Rules(**rules), tally, duplicates)), tally


def reasons(tally):
    return {d["key"]: d["reason"] for d in tally.dropped}


def test_without_rules_all_that_decodes_passes_untouched():
    samples = [
        sample("a"),
        sample("wide", image(300, 10)),
        sample("png", image(format="PNG")),
        sample("cut", image()[:-50]),
        sample("text", b"<html>"),
        sample("wordless", captions=[]),
    ]
    records, tally = run(samples)
    assert records == [record for _, record in samples[:3]]
    assert all(record is given for record, (_, given) in zip(records, samples))
    assert reasons(tally) == {
        "cut": "broken image",
        "text": "broken image",
        "wordless": "no caption",
    }
    assert tally.formats == {"jpeg": 2, "png": 1}
    assert (tally.widths, tally.heights) == ([40, 300, 40], [30, 10, 30])
    assert not tally.resized and not tally.removed_captions


def test_the_limits_of_sides_and_aspect_ratios_themselves_pass():
    sizes = [(64, 64), (63, 64), (200, 63), (192, 64), (64, 192), (193, 64), (64, 193)]
    samples = [sample(f"{w}x{h}", image(w, h)) for w, h in sizes]
    records, tally = run(samples, min_side=64, max_aspect_ratio=3)
    assert [r["id"] for r in records] == ["x/64x64", "x/192x64", "x/64x192"]
    assert reasons(tally) == {
        "63x64": "small image",
        "200x63": "small image",
        "193x64": "extreme aspect ratio",
        "64x193": "extreme aspect ratio",
    }
    assert tally.dropped[0]["detail"] == "63x64"


def test_captions_of_wrong_length_are_removed_and_records_without_any_left_dropped():
    samples = [
        sample("a", captions=["one", "one two", "one two three", "one  two\nthree four"]),
        sample("b", captions=["one"]),
    ]
    given = [list(record["captions"]["caption"]) for _, record in samples]
    records, tally = run(samples, min_caption_words=2, max_caption_words=3)
    assert [r["captions"] for r in records] == [{"caption": ["one two", "one two three"]}]
    assert reasons(tally) == {"b": "no caption of allowed length"}
    assert tally.removed_captions == {"fewer than 2 words": 2, "more than 3 words": 1}
    assert tally.captions == {"caption": 2}
    # The caller's records are as they were.
    assert [record["captions"]["caption"] for _, record in samples] == given


def test_a_field_may_lose_all_captions_while_another_keeps_some():
    record = {"id": "1", "image": image(), "captions": {"short": ["one"], "long": ["one two"]}}
    records, tally = run([("1", record)], min_caption_words=2)
    assert records[0]["captions"] == {"short": [], "long": ["one two"]}
    assert tally.captions == {"short": 0, "long": 1}


def test_data_without_captions_passes_the_caption_rules():
    samples = [("1", {"id": "1", "image": image(), "label": 3, "captions": {}})]
    samples.append(("2", {"id": "2", "image": image(), "label": 3}))
    records, tally = run(samples, min_caption_words=5)
    assert len(records) == 2 and not tally.dropped


def test_duplicates_are_numbered_among_the_samples_with_captions_and_judged_last():
    samples = [
        sample("wordless", captions=[]),
        sample("first"),
        sample("second"),
        sample("broken", image()[:-50]),
    ]
    numbered = list(with_captions(samples, Rules(), Tally()))
    assert [key for key, _ in numbered] == ["first", "second", "broken"]
    records, tally = run(samples, duplicates={1, 2}, drop_duplicates=True)
    assert [r["id"] for r in records] == ["x/first"]
    assert reasons(tally)["second"] == "duplicate image"
    assert reasons(tally)["broken"] == "broken image"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 50), (32, 16)), ((50, 101), (16, 32)), ((20, 20), (16, 16)), ((333, 100), (53, 16))],
)
def test_resize_brings_the_shorter_side_down_and_keeps_the_aspect(size, expected, format):
    data = image(*size, format)
    (record,), tally = run([sample("a", data)], resize=16)
    pixels = crops.decode(record["image"])
    assert pixels.shape == (expected[1], expected[0], 3)
    assert record["image"].startswith(b"\xff\xd8") and tally.formats == {"jpeg": 1}
    assert (tally.widths, tally.heights) == ([expected[0]], [expected[1]])
    assert tally.resized == {
        "images": 1,
        "bytes_before": len(data),
        "bytes_after": len(record["image"]),
    }
    # Brightness only: JPEG halves the resolution of colour, which is coarse enough here.
    averaged = Image.fromarray(crops.decode(data)).resize(expected, Image.Resampling.BOX)
    pair = [np.asarray(x.convert("L"), int) for x in (Image.fromarray(pixels), averaged)]
    assert np.abs(pair[0] - pair[1]).mean() < 6


@pytest.mark.parametrize("size", [(16, 90), (90, 16), (16, 16), (9, 40)])
def test_resize_never_enlarges_and_leaves_such_images_their_bytes(size):
    given = sample("a", image(*size))
    (record,), tally = run([given], resize=16)
    assert record is given[1] and not tally.resized


def test_resize_leaves_what_would_be_too_long_for_a_jpeg():
    given = sample("a", image(2, 500, "PNG"))
    (record,), tally = run([given], resize=1)
    assert record is not given[1] and tally.heights == [250]
    strip = sample("b", image(300, 70_000, "PNG"))
    (record,), tally = run([strip], resize=299)
    assert record is strip[1] and tally.heights == [70_000] and not tally.resized


def test_images_beyond_the_limits_are_dropped_and_listed():
    whole = image(format="JPEG")
    frame = whole.index(b"\xff\xc0")
    giant = whole[: frame + 5] + (65_500).to_bytes(2, "big") * 2 + whole[frame + 9 :]
    samples = [sample("a"), sample("giant", giant), sample("line", image(9000, 1, "PNG"))]
    records, tally = run([*samples, sample("b")])
    assert [record["id"] for record in records] == ["x/a", "x/b"]
    assert reasons(tally) == {"giant": "broken image", "line": "broken image"}
    assert "65500x65500 pixels" in tally.dropped[0]["detail"]


def test_want_of_memory_costs_an_image_and_not_the_shard(monkeypatch):
    decode = crops.decode

    def starved(data):
        if data.startswith(b"\x89PNG"):
            raise MemoryError
        return decode(data)

    monkeypatch.setattr(crops, "decode", starved)
    records, tally = run([sample("a"), sample("png", image(format="PNG")), sample("b")])
    assert [record["id"] for record in records] == ["x/a", "x/b"]
    assert tally.dropped == [
        {"key": "png", "reason": "broken image", "detail": "there is no memory to decode it"}
    ]


def test_resize_takes_the_mask_along_and_leaves_relative_boxes():
    mask = np.zeros((60, 80), np.uint8)
    mask[:30, :40], mask[30:] = 7, 200
    boxes = np.array([[0, 0, 0.5, 0.5]], np.float32)
    record = {"id": "1", "image": image(80, 60), "captions": {}, "mask": mask, "boxes": boxes}
    (small,), tally = run([("1", record)], resize=15)
    assert small["boxes"] is boxes and record["mask"] is mask
    assert small["mask"].shape == crops.decode(small["image"]).shape[:2] == (15, 20)
    np.testing.assert_array_equal(small["mask"], mask[2::4, 2::4])
    assert small["mask"].dtype == np.uint8
    assert tally.fields["mask"] == "array of uint8, 2 axes"


def test_sides_are_judged_before_the_resize():
    records, _ = run(
        [sample("a", image(80, 80)), sample("b", image(30, 30))], min_side=64, resize=20
    )
    assert [r["id"] for r in records] == ["x/a"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": image(), "captions": {"caption": "a cat"}}, "'k': captions must be lists"),
        ({"image": image(), "captions": {"caption": ["a cat", 3]}}, "'k': captions must be lists"),
        ({"image": image(), "captions": ["a cat"]}, "'k': captions must be lists"),
        ({"captions": {}}, "'k' has no image"),
    ],
)
def test_records_out_of_shape_are_an_error_that_names_them(record, message):
    with pytest.raises(ValueError, match=message):
        run([("k", record)])


def test_options_and_arguments_are_the_rules_that_are_set():
    assert Rules().options() == {} and Rules().arguments() == []
    rules = Rules(max_aspect_ratio=2.5, drop_duplicates=True, resize=288)
    assert rules.options() == {"max_aspect_ratio": 2.5, "drop_duplicates": True, "resize": 288}
    assert " ".join(rules.arguments()) == "--max-aspect-ratio 2.5 --drop-duplicates --resize 288"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_side": 0}, "--min-side must be at least 1, got 0"),
        ({"max_aspect_ratio": 0.3}, "--max-aspect-ratio must be at least 1"),
        ({"resize": -3}, "--resize must be at least 1"),
        ({"min_caption_words": 5, "max_caption_words": 4}, "at least 5 and at most 4 words"),
    ],
)
def test_rules_that_make_no_sense_are_an_error(rules, message):
    with pytest.raises(ValueError, match=message):
        Rules(**rules)


def test_records_of_several_images_and_of_none():
    """Each image has to pass, and each is made smaller."""
    two, text = {"id": "two", "captions": {}}, {"id": "text", "captions": {}, "images": []}
    samples = [
        ("two", {**two, "images": [image(40, 30), image(200, 100)]}),
        ("text", text),
        ("small", {**two, "images": [image(40, 30), image(20, 30)]}),
        ("cut", {**two, "images": [image(40, 30), image()[:-50]]}),
    ]
    records, tally = run(samples, min_side=25, resize=50)
    assert [record["id"] for record in records] == ["two", "text"]
    assert records[1] == text
    assert records[0]["images"][0] == samples[0][1]["images"][0]
    assert [crops.decode(x).shape[:2] for x in records[0]["images"]] == [(30, 40), (50, 100)]
    assert reasons(tally) == {"small": "small image", "cut": "broken image"}
    assert (tally.widths, tally.heights) == ([40, 100], [30, 50])
    assert tally.formats == {"jpeg": 2} and tally.resized["images"] == 1
    with pytest.raises(ValueError, match="'none' has no image"):
        run([("none", {"id": "none", "captions": {}})])
