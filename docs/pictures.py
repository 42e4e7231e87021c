"""Draws the pictures of README.md and docs/evaluation.md with the model of README's first demo.

PYTHONPATH=. python docs/pictures.py runs/demo
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from big_vlp.show.__main__ import main as show
from input_pipeline.sources import make_source

FOLDER = Path(__file__).parent
SCENES = {"split": "val", "size": 200, "image_size": 64}
ATTENDED = (1, 7)  # numbers of scenes


def main(run: str) -> None:
    words = ",".join(f"{key}={value}" for key, value in SCENES.items())
    retrieval, attention = FOLDER / "retrieval.png", FOLDER / "attention.png"
    asked = ["--input", f"scenes:{words}", "--caption-field", "caption", "--queries", "3"]
    draw("retrieval", run, retrieval, *asked)
    source = make_source("scenes", **SCENES)
    with tempfile.TemporaryDirectory() as folder:
        images, texts = [], []
        for number in ATTENDED:
            record = source[number]
            images.append(str(Path(folder) / f"scene {number}.png"))
            Path(images[-1]).write_bytes(record["image"])
            texts.append(record["captions"]["caption"][0])
        draw("attention", run, attention, "--image", *images, "--text", *texts)


def draw(command: str, run: str, path: Path, *arguments: str) -> None:
    """Runs `python -m big_vlp.show`, and makes the picture small."""
    if show([command, "--model", run, "--output", str(path), *arguments]):
        sys.exit(1)
    Image.open(path).convert("RGB").quantize(160).save(path, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
