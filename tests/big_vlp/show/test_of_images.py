"""The command that shows a batch, and which words a model has for an image."""

import io
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import big_vlp
from big_vlp.methods import make_method
from big_vlp.show import __main__ as show
from big_vlp.show.__main__ import main
from big_vlp.show.of_images import draw
from big_vlp.storage.model_dir import Labels, save_model
from input_pipeline.preprocess import Preprocess
from input_pipeline.records import BrokenRecordError
from input_pipeline.sources import make_source

ROOT = Path(__file__).parents[3]
PREPROCESS = Preprocess(image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
TOWER = {"width": 16, "layers": 1, "heads": 2, "num_positions": 4}
NAMES = ("dog.n.01", "cat.n.01", "sofa.n.01", "car.n.01")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A classifier that says the same of every image: cat, car, dog, sofa."""
    directory = tmp_path_factory.mktemp("model")
    section = {"name": "catlip", "model": TOWER, "num_classes": 4, "dtype": "float32"}
    tree, _ = jax.jit(make_method(**section, preprocess=PREPROCESS).init)(jax.random.key(0))
    tree["classifier"]["kernel"] *= 0
    tree["classifier"]["bias"] = np.float32([0, 3, -2, 1])
    save_model(directory, {"model": tree}, section, PREPROCESS, Labels(NAMES))
    return str(directory)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "scene.jpg"
    path.write_bytes(make_source("scenes", size=1, image_size=48)[0]["image"])
    return path


def test_the_most_probable_come_first(model, image):
    (found,) = big_vlp.load(model).classify(image, top=3)
    assert [name for name, _ in found] == ["cat.n.01", "car.n.01", "dog.n.01"]
    probabilities = 1 / (1 + np.exp(-np.array([3, 1, 0])))
    np.testing.assert_allclose([p for _, p in found], probabilities, rtol=1e-5)


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_table_and_picture(model, image, tmp_path, capsys, place, request):
    folder = tmp_path if place == "disk" else request.getfixturevalue("bucket")
    (folder / "scene.jpg").write_bytes(image.read_bytes())
    image, png = folder / "scene.jpg", folder / "words.png"
    arguments = ["words", "--model", model, "--image", str(image), str(image)]
    assert main([*arguments, "--top", "2", "--output", str(png)]) == 0
    text = capsys.readouterr().out
    assert text.count("cat.n.01") == 2 and "0.953" in text and "dog.n.01" not in text
    with Image.open(io.BytesIO(png.read_bytes())) as picture:
        assert picture.height > 600  # a row for each image


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--model": "nowhere"}, "no model directory"),
        ({"--image": "nowhere.jpg"}, "nowhere.jpg"),
        ({"--top": "0"}, "give 1 or more"),
        ({"--weights": "averaged"}, r"has no 'averaged' weights"),
        ({"--output": "missing/words.png"}, "there is no such directory"),
    ],
)
def test_what_cannot_be_shown(model, image, tmp_path, capsys, change, message):
    options = {"--model": model, "--image": str(image), **change}
    options.setdefault("--output", str(tmp_path / "words.png"))
    arguments = [part for option in options.items() for part in option]
    assert main(["words", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "words.png").exists()


def test_a_file_that_is_no_image(model, tmp_path, capsys):
    path = tmp_path / "text.jpg"
    path.write_text("no image")
    assert main(["words", "--model", model, "--image", str(path)]) == 1
    assert str(path) in capsys.readouterr().err


def test_an_image_is_drawn_as_the_model_sees_it(tmp_path):
    """Also one of 16 bits: a ramp, of which Pillow's own conversion makes white."""
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    draw(tmp_path / "words.png", [tmp_path / "deep.png"], [[("cat", 0.9), ("dog", 0.1)]])
    left = np.asarray(Image.open(tmp_path / "words.png").convert("RGB"))[:, :380]
    dark = ((left > 40) & (left < 120)).all(axis=-1)
    assert dark.mean() > 0.1


def test_a_batch_is_drawn(tmp_path):
    sheet = tmp_path / "sheet.png"
    command = [
        sys.executable,
        "-m",
        "big_vlp.show",
        "batch",
        "--config",
        "configs/cosmos.py:runlocal",
    ]
    command += ["--output", str(sheet), "--step", "2", "--config.global_batch=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "batch 2 of configs/cosmos.py" in done.stdout
    assert Image.open(sheet).size[1] > 3 * 96


def test_a_broken_record_is_one_line(monkeypatch):
    def first_rows(step, count):
        raise BrokenRecordError("Record 'x/3': cut.")

    loader = types.SimpleNamespace(first_rows=first_rows)
    parts = dict(make_loader=lambda: loader, make_method=lambda: None, total_steps=1)
    made = types.SimpleNamespace(from_config=lambda config: types.SimpleNamespace(**parts))
    monkeypatch.setattr(show, "Experiment", made)
    flags = types.SimpleNamespace(FLAGS=types.SimpleNamespace(config=None, step=0, output="x.png"))
    monkeypatch.setattr(show, "flags", flags)
    with pytest.raises(SystemExit, match=r"^error: Record 'x/3': cut\.$"):
        show._batch(None)
