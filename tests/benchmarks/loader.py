"""Making training crops on one core, against the same in torchvision's order with Pillow.

Both sides get the same JPEG bytes, draw the same boxes and flips with the same function, run in one
process, on one core, under the same allocator settings (`MALLOC_*`, in the results' environment),
in turn, and end with u8[S, S, 3] arrays of every view. Theirs decodes the whole image, converts it
to RGB, and crops, resizes (bicubic with antialiasing) and flips view by view. Ours is what the
loader runs, `crops.random_crops`. The images are procedural JPEGs of 512x384, some 95 KB each.

- geometry: COSMOS' two global crops of 224 and six local ones of 96.
- geometry + photometrics: theirs adds colour jitter, greyscale, blur and solarise to each crop on
  the host. Ours does those on the device: its time here is that of geometry alone.
- geometry + photometrics, all here: the same, with our device part run on this very core.
- random resized crop: one crop of 224, with CLIP's share of 0.9 to 1 of the image.
- decode: each side's decoder alone.
"""

import io
import itertools
import random

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from input_pipeline.images import crops
from tests.benchmarks.common import interleaved, one_core

WIDTH, HEIGHT, QUALITY = 512, 384, 93
COSMOS_VIEWS = [(224, (0.4, 1.0))] * 2 + [(96, (0.05, 0.4))] * 6
CLIP_VIEWS = [(224, (0.9, 1.0))]
# Probabilities of blur and solarise for each view of COSMOS, as in configs/cosmos.py.
BLUR_SOLARIZE = [(1.0, 0.0), (0.1, 0.2)] + [(0.5, 0.0)] * 6
FLIP_PROB = 0.5


def measure(num_images: int = 500, repeats: int = 3) -> list[dict]:
    """Args: JPEGs per pass; passes that count."""
    rows = []
    with one_core():
        data = [jpeg(seed) for seed in range(num_images)]
        photometrics = our_photometrics()
        cosmos, augmented = our_crops(COSMOS_VIEWS), their_crops(COSMOS_VIEWS, photometric)
        for case, ours, theirs, target in (
            ("geometry", cosmos, their_crops(COSMOS_VIEWS), 4.0),
            ("geometry + photometrics", cosmos, augmented, 3.0),
            ("geometry + photometrics, all here", photometrics, augmented, None),
            ("random resized crop", our_crops(CLIP_VIEWS), their_crops(CLIP_VIEWS), 1.9),
            ("decode", lambda data, _: crops.decode(data), lambda data, _: pillow(data), None),
        ):
            sides = {"ours": over(data, ours), "theirs": over(data, theirs)}
            times = interleaved(sides, repeats)
            rows.append(
                {
                    "case": case,
                    "bytes": sum(map(len, data)) // len(data),
                    "ours_per_s": len(data) / times["ours"]["wall_s"],
                    "theirs_per_s": len(data) / times["theirs"]["wall_s"],
                    "wall_ratio": times["theirs"]["wall_s"] / times["ours"]["wall_s"],
                    "cpu_ratio": times["theirs"]["cpu_s"] / times["ours"]["cpu_s"],
                    "target": target,
                }
            )
    return rows


def over(data: list[bytes], side):
    """A function that makes `side` of every image, each with its own draws."""

    def run():
        for i, item in enumerate(data):
            side(item, random.Random(i))

    return run


def our_crops(views):
    def run(data, rng):
        # As the views do it: crops of one size in one array.
        out = [
            place
            for size, of_size in itertools.groupby(views, key=lambda view: view[0])
            for place in np.empty((len(list(of_size)), size, size, 3), np.uint8)
        ]
        return crops.random_crops(data, views, FLIP_PROB, rng, out)

    return run


def our_photometrics():
    """Crops, then what the training step does to them first, one image at a time."""
    # Not above: jax sizes its thread pool by the cores that are left when it starts.
    import jax
    import jax.numpy as jnp

    from big_vlp.augment.photometric import Photometric, normalise
    from input_pipeline.preprocess import Preprocess

    pre = Preprocess(image_size=224, tokenizer="clip", context_length=77)
    kinds = [Photometric(blur_prob=blur, solarize_prob=sol) for blur, sol in BLUR_SOLARIZE[:3]]

    @jax.jit
    def on_device(views, seed):
        keys = jax.random.split(jax.random.key(seed), sum(map(len, views)))
        keys = keys[:1], keys[1:2], keys[2:]
        augmented = (kind.apply(x, k) for kind, x, k in zip(kinds, views, keys))
        return [normalise(x, pre.mean, pre.std) for x in augmented]

    cut = our_crops(COSMOS_VIEWS)

    def run(data, rng):
        made = cut(data, rng)
        views = [jnp.asarray(np.stack(x)) for x in (made[:1], made[1:2], made[2:])]
        jax.block_until_ready(on_device(views, rng.getrandbits(31)))

    return run


def their_crops(views, augment=None):
    """Crops by Pillow; `augment(image, rng, blur_prob, solarize_prob)` changes each of them."""

    def run(data, rng):
        image = pillow(data)
        boxes = [crops.random_resized_crop_box(*image.size, scale, rng) for _, scale in views]
        made = []
        for i, ((left, top, width, height), (size, _)) in enumerate(zip(boxes, views)):
            crop = image.crop((left, top, left + width, top + height))
            crop = crop.resize((size, size), Image.Resampling.BICUBIC)
            if rng.random() < FLIP_PROB:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if augment is not None:
                crop = augment(crop, rng, *BLUR_SOLARIZE[i])
            made.append(np.asarray(crop))
        return made

    return run


def pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def photometric(image, rng, blur_prob: float, solarize_prob: float):
    """COSMOS' augmentation of one Pillow crop, in torchvision's order and with its operations."""
    if rng.random() < 0.8:
        changes = [
            (ImageEnhance.Brightness, rng.uniform(0.6, 1.4)),
            (ImageEnhance.Contrast, rng.uniform(0.6, 1.4)),
            (ImageEnhance.Color, rng.uniform(0.8, 1.2)),
            (None, rng.uniform(-0.1, 0.1)),
        ]
        rng.shuffle(changes)
        for enhance, amount in changes:
            image = enhance(image).enhance(amount) if enhance else shift_hue(image, amount)
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if rng.random() < blur_prob:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < solarize_prob:
        image = ImageOps.solarize(image, 128)
    return image


def shift_hue(image, turns: float):
    """Shifts the hue by a part of the colour circle, as torchvision does for Pillow images."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.asarray(hue) + np.uint8(int(turns * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


def jpeg(seed: int) -> bytes:
    """A JPEG with detail at all scales, smooth in some images and rough in others."""
    rng = np.random.default_rng(seed)
    fade = rng.uniform(0.7, 0.9)  # from one octave to the next
    pixels = np.full((HEIGHT, WIDTH, 3), 127, np.float32)
    for octave in range(1, 10):
        shape = 3 * 2**octave // 4 + 1, 2**octave + 1
        grey, colour = rng.normal(size=(*shape, 1)), rng.normal(size=(*shape, 3))
        noise = (grey + colour / 2).astype(np.float32)
        waves = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        pixels += 47 * fade**octave * waves
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
