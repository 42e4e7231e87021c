"""Data sets in the layouts of clip_benchmark and of segmentation, written into a folder."""

import io
import tarfile

import numpy as np
from PIL import Image


def image(level=0, kind="PNG"):
    """A grey square of 8 x 8 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(file, kind)
    return file.getvalue()


def array(values):
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def write_tar(path, samples):
    """`samples`: a dict of extension -> bytes for each."""
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for extension, data in members.items():
                info = tarfile.TarInfo(f"s{number:07d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_task(folder, tars, class_names=("red cat", "dog"), templates=("a {c}.", "the {c}")):
    """A list of samples for each tar."""
    (folder / "test").mkdir(parents=True)
    for number, samples in enumerate(tars):
        write_tar(folder / "test" / f"{number}.tar", samples)
    (folder / "test" / "nshards.txt").write_text(f"{len(tars)}\n")
    if class_names:
        (folder / "classnames.txt").write_text("\n".join(class_names))
    if templates:
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    return folder


def write_labelled(root, name, mask, images="images", masks="masks", endings=(".jpg", ".png")):
    """A black image, and its mask u8[H, W]."""
    pixels = np.zeros((*mask.shape, 3), np.uint8)
    for folder, ending, values in ((images, endings[0], pixels), (masks, endings[1], mask)):
        path = root / folder / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
