"""Every bit depth of every format is shown as it is meant, or refused; nothing exceeds a limit."""

import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.images import crops, pillow
from input_pipeline.preprocess import Preprocess

ROOT = Path(__file__).parents[3]
SIDE = 64
RAMP = np.linspace(0, 65535, SIDE).astype(np.uint16)[None].repeat(SIDE, 0)
GREY = (RAMP >> 8).astype(np.uint8)
GIANT = 65_500


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rgb(grey=GREY):
    return Image.fromarray(np.repeat(grey[..., None], 3, 2))


def png(rows, depth, color, *chunks, size=(SIDE, SIDE)):
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b)) + kind + b + struct.pack(">I", zlib.crc32(kind + b))
        for kind, b in parts
    )


def tiff(samples, bits, photometric=1, sample_format=1, order="<", size=(SIDE, SIDE)):
    """An uncompressed grey TIFF."""
    body = samples.tobytes()
    tags = [(256, size[0]), (257, size[1]), (258, bits), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, size[1]), (279, len(body)), (339, sample_format)]
    # Type 4: 32-bit numbers, which need no padding in either order.
    directory = struct.pack(order + "H", len(tags))
    directory += b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8 + len(body)) + body + directory + bytes(4)


def with_stray_bytes(data):
    """libjpeg-turbo warns of them, Pillow copes."""
    table = data.index(b"\xff\xdb")
    return data[:table] + b"\0\0" + data[table:]


def jpeg_of_size(data, width, height):
    """Another size in the header of a JPEG."""
    frame = data.index(b"\xff\xc0")
    size = struct.pack(">HH", height, width)
    return data[: frame + 5] + size + data[frame + 9 :]


def packed(bits):
    """Rows of a ramp of 1, 2 or 4 bits per pixel, and its 8-bit values."""
    values = np.arange(SIDE) * 2**bits // SIDE
    digits = values[:, None] >> np.arange(bits)[::-1] & 1
    row = np.packbits(digits.astype(np.uint8).ravel())
    return [row] * SIDE, values * 255 // (2**bits - 1)


BIG = RAMP.astype(">u2")
TWELVE = RAMP >> 4


def channels(count, alpha=False):
    """The ramp in every channel, high byte first; alpha is its opposite."""
    return np.stack([RAMP] * count + [65535 - RAMP] * alpha, -1).astype(">u2")


def twelve_bits():
    pairs = TWELVE.reshape(SIDE, -1, 2).astype(int)
    first, second = pairs[..., 0], pairs[..., 1]
    parts = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
    return np.stack(parts, -1).astype(np.uint8)


SIXTEEN = {
    "PNG": lambda: encode(Image.fromarray(RAMP), "PNG"),
    "PNG with a transparent grey": lambda: png(BIG, 16, 0, (b"tRNS", b"\x12\x34")),
    "PNG with alpha": lambda: png(channels(1, alpha=True), 16, 4),
    "PNG in colours": lambda: png(channels(3), 16, 2),
    "PNG in colours with alpha": lambda: png(channels(3, alpha=True), 16, 6),
    "TIFF": lambda: tiff(RAMP, 16),
    "TIFF, high byte first": lambda: tiff(BIG, 16, order=">"),
    "TIFF, white is zero": lambda: tiff(65535 - RAMP, 16, photometric=0),
    "TIFF, packed": lambda: encode(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
    "TIFF of 12 bits": lambda: tiff(twelve_bits(), 12),
    "JPEG 2000": lambda: encode(Image.fromarray(RAMP), "JPEG2000"),
    "PGM": lambda: b"P5 64 64 65535\n" + BIG.tobytes(),
    "PGM of 12 bits": lambda: b"P5 64 64 4095\n" + TWELVE.astype(">u2").tobytes(),
    "PPM": lambda: b"P6 64 64 65535\n" + channels(3).tobytes(),
}


@pytest.mark.parametrize("name", SIXTEEN)
def test_deep_samples_are_scaled_to_8_bits(name):
    pixels = crops.decode(SIXTEEN[name]())
    assert pixels.dtype == np.uint8 and pixels.shape == (SIDE, SIDE, 3)
    # PPM's decoder rounds where others cut.
    assert np.abs(pixels.astype(int) - GREY[..., None]).max() <= 1
    assert pixels.min() == 0 and pixels.max() == 255


def test_training_and_evaluation_see_the_same_deep_image():
    data = SIXTEEN["PNG"]()
    (crop,) = crops.random_crops(data, [(SIDE, (1.0, 1.0))], 0.0, random.Random(0))
    np.testing.assert_array_equal(crop, crops.decode(data))
    squashed = crops.eval_image(data, Preprocess(SIDE, resize="squash"))
    np.testing.assert_array_equal(squashed, crop)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_fill_the_range(bits):
    rows, expected = packed(bits)
    palette = b"".join(bytes([v * 255 // (2**bits - 1)]) * 3 for v in range(2**bits))
    for data in (
        png(rows, bits, 0),
        png(rows, bits, 0, (b"tRNS", b"\0\1")),
        png(rows, bits, 3, (b"PLTE", palette)),
        png(rows, bits, 3, (b"PLTE", palette), (b"tRNS", b"\0\x80")),
        tiff(np.stack(rows), bits),
    ):
        np.testing.assert_array_equal(crops.decode(data)[5, :, 1], expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "GIF", "JPEG2000", "BMP", "TGA"])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_every_format_is_shown_as_it_is(form, mode):
    image = rgb().convert("RGBA")
    image.putalpha(Image.fromarray(255 - GREY))
    try:
        data = encode(image.convert(mode), form, **({"lossless": True} if form == "WEBP" else {}))
    except (OSError, ValueError):
        pytest.skip("the format has no such mode")
    found = crops.decode(data).astype(int)
    # The other half is all but transparent, and may have lost its colours. Palettes have few.
    seen = found[:, : SIDE // 2] - GREY[:, : SIDE // 2, None]
    assert np.abs(seen).max() <= (26 if mode in ("P", "PA") or form == "GIF" else 3)


@pytest.mark.parametrize(
    "data",
    [
        lambda: encode(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
        lambda: encode(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
        lambda: tiff(RAMP.astype(np.uint32) << 16, 32),
        lambda: tiff(RAMP, 16, sample_format=2),
        lambda: tiff(GREY, 8, sample_format=2),
        lambda: b"Pf 64 64 -1.0\n" + (RAMP / 65535).astype("<f4").tobytes(),
    ],
    ids=["int32", "float", "uint32", "signed 16", "signed 8", "PFM"],
)
def test_samples_without_a_known_range_are_refused(data):
    with pytest.raises(ValueError, match="cannot be shown truthfully"):
        crops.decode(data())


@pytest.mark.parametrize("adobe", [0, 2, None], ids=["CMYK", "YCCK", "no marker"])
def test_inks_are_those_of_pillow(adobe):
    image = rgb().convert("CMYK")
    image.putdata([(i % 256, 40, 90, i // 256 * 9) for i in range(SIDE * SIDE)])
    data = encode(image, "JPEG", quality=95)
    start = data.index(b"\xff\xee")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    marker = b"" if adobe is None else data[start : end - 1] + bytes([adobe])
    data = data[:start] + marker + data[end:]
    expected = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(crops.decode(data), expected)
    shrunk = crops.random_crops(data, [(16, (1.0, 1.0))], 0.0, random.Random(0))[0]
    small = np.array(Image.fromarray(expected).resize((16, 16), Image.Resampling.BOX))
    # Colours that do not fit are cut off before the mean or after it.
    assert np.abs(shrunk.astype(int) - small).mean() < 9


def test_the_first_frame_stands_for_an_animation():
    later = [Image.new("RGB", (SIDE, SIDE), "red")]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encode(rgb(), form, save_all=True, append_images=later)
        assert np.abs(crops.decode(data).astype(int) - GREY[..., None]).max() < 9


def giants(width, height):
    """Small files whose headers name a size."""
    jpeg = encode(rgb(), "JPEG")
    inks = encode(rgb().convert("CMYK"), "JPEG")
    gif, bmp = (bytearray(encode(rgb(), form)) for form in ("GIF", "BMP"))
    gif[6:10] = struct.pack("<HH", width, height)
    bmp[18:26] = struct.pack("<ii", width, height)
    jp2 = bytearray(encode(rgb(), "JPEG2000"))
    box = jp2.index(b"ihdr") + 4
    jp2[box : box + 8] = struct.pack(">II", height, width)
    return {
        "JPEG": jpeg_of_size(jpeg, width, height),
        "JPEG with stray bytes": with_stray_bytes(jpeg_of_size(jpeg, width, height)),
        "CMYK JPEG": jpeg_of_size(inks, width, height),
        "PNG": png([], 8, 2, size=(width, height)),
        "PNG of 16 bits": png([], 16, 0, size=(width, height)),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "TIFF": tiff(GREY, 8, size=(width, height)),
        "JPEG 2000": bytes(jp2),
        "PPM": f"P6 {width} {height} 255\n".encode(),
    }


@pytest.mark.parametrize("size", [(GIANT, GIANT), (20_000, 20_000), (1, 60_000), (30_000, 100)])
@pytest.mark.parametrize("name", giants(1, 1))
def test_headers_beyond_the_limits_are_refused_unread(size, name):
    data = giants(*size)[name]
    for read in (
        crops.decode,
        lambda data: crops.random_crops(data, [(8, (0.5, 1.0))], 0.0, random.Random(0)),
        lambda data: crops.eval_image(data, Preprocess(8)),
    ):
        with pytest.raises(ValueError, match=r"cannot decode.*(pixels|one side)"):
            read(data)


def test_images_within_the_limits_are_read(monkeypatch):
    """Also the large ones, which are read one at a time."""
    monkeypatch.setattr(pillow, "_LARGE_PIXELS", 100)
    for form in ("PNG", "JPEG"):
        for size in ((256, 1), (1, 256), (64, 64)):
            assert crops.decode(encode(Image.new("RGB", size), form)).shape == (*size[::-1], 3)
        with pytest.raises(ValueError, match="256 times"):
            crops.decode(encode(Image.new("RGB", (257, 1)), form))


def test_a_long_image_is_resized_alone(monkeypatch):
    """Its shorter side becomes that of the crop: S pixels of it are 256 S of the longer one."""
    monkeypatch.setattr(pillow, "_LARGE_PIXELS", 100)
    held = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda *args: held.append(pillow._large.locked()) or resize(*args),
    )
    image = crops.eval_image(encode(Image.new("RGB", (256, 1)), "PNG"), Preprocess(8))
    assert image.shape == (8, 8, 3) and held == [True]


def test_nobody_is_warned_of_an_image_that_is_used():
    """A large one, and one of a palette with transparent colours."""
    program = """
import sys
from PIL import Image
Image.MAX_IMAGE_PIXELS = 3000
from input_pipeline.images import crops
for data in sys.argv[1:]:
    assert crops.decode(bytes.fromhex(data)).shape == (64, 64, 3)
"""
    palette = png(packed(1)[0], 1, 3, (b"PLTE", bytes(6)), (b"tRNS", b"\0\x80"))
    data = [encode(rgb(), "PNG").hex(), palette.hex()]
    command = [sys.executable, "-c", program, *data]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_jpeg_of_very_many_scans_is_refused_in_every_place():
    data = encode(rgb(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    bomb = data[:-2] + 200 * data[last:-2] + b"\xff\xd9"
    for odd in (bomb, with_stray_bytes(bomb)):
        with pytest.raises(ValueError, match="a JPEG of 210 scans; the limit is 100"):
            crops.decode(odd)


def test_bytes_that_look_like_scans_are_none():
    """In a comment, and behind the image, as of a film that a phone puts there."""
    data = encode(rgb(), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 802) + b"\xff\xda" * 400
    odd = data[:2] + comment + data[2:] + b"\xff\xda" * 400
    np.testing.assert_array_equal(crops.decode(odd), crops.decode(data))


def test_text_that_unpacks_to_much_is_refused():
    bomb = b"k\0\0" + zlib.compress(bytes(1 << 27))
    for kind in (b"zTXt", b"iCCP"):
        with pytest.raises(ValueError, match="too large"):
            crops.decode(png(GREY, 8, 0, (kind, bomb)))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
def test_a_jpeg_that_lost_pixels_is_an_error_and_not_grey(mode, options):
    """Decoders fill with grey where an end was put on what is left of the file."""
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise).convert(mode), "JPEG", **options)
    cut = data[: len(data) // 2]
    for broken in (cut, cut + b"\xff\xd9"):
        with pytest.raises(ValueError, match="truncated"):
            crops.decode(broken)
        with pytest.raises(ValueError, match="truncated"):
            crops.random_crops(broken, [(8, (0.5, 1.0))], 0.0, random.Random(0))
