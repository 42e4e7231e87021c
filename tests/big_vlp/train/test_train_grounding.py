"""The demo that points: what it learns, from the scenes' own data and from built data."""

import json

import numpy as np
import pytest

from big_vlp.run.log import read_log
from big_vlp.train import train
from input_pipeline.grounding import command
from input_pipeline.sources.scenes import describe
from tests.big_vlp.train.test_train_cogvlm import published, recipe

SCENES, STEPS, LAST = 1000, 200, 50


def build(directory):
    """Shards of the same scenes, whose boxes a detector has found that knows colours and shapes."""
    boxes = {}
    for number in range(SCENES):
        scene = describe("train", number)
        boxes[scene.id] = [
            {"label": f"{o.colour} {o.shape}", "box": o.box} for o in scene.layout.objects
        ]
    (directory / "boxes.json").write_text(json.dumps(boxes))
    source = f"scenes:size={SCENES},image_size=64"
    words = ["--input", source, "--boxes", str(directory / "boxes.json"), "--captions", "caption"]
    assert command.main([*words, "--output", str(directory / "data"), "--workers", "2"]) == 0
    return dict(name="prepared", path=str(directory / "data"))


def curve(workdir):
    lines = [line for line in read_log(workdir) if line["split"] == "train"]
    return np.array([line["values"]["loss"] for line in lines])


@pytest.mark.slow
def test_the_demo_learns_which_object_is_meant(tmp_path):
    """The recipe as it is. Where objects are not told apart, a model has `chance`."""
    train(published("demo_cogvlm", "stage=grounding"), tmp_path)
    *_, values = [line["values"] for line in read_log(tmp_path) if line["split"] == "places"]
    print(values)
    assert values["accuracy@0.5"] > 0.4 > 0.3 > values["accuracy@0.5_chance"]
    assert max(values["accuracy@0.5_blind"], values["accuracy@0.5_shuffled"]) < 0.1


@pytest.mark.slow
def test_the_demo_learns_from_built_data_as_from_the_scenes_own(tmp_path):
    curves = {}
    own = dict(name="scenes", split="train", size=SCENES, image_size=64)
    for name, data in (("own", own), ("built", build(tmp_path))):
        config = recipe("demo_cogvlm", "stage=grounding", optim__cooldown_steps=LAST)
        config.data = data
        config.update(total_steps=STEPS, global_batch=8)
        train(config, tmp_path / name)
        curves[name] = curve(tmp_path / name)
    first, (own, built) = curves["own"][0], (curves[name][-LAST:].mean() for name in curves)
    print(f"loss {first:.3f} -> {own:.3f} on the scenes' own data, {built:.3f} on built data")
    assert own < 0.8 * first
    np.testing.assert_allclose(built, own, rtol=0.03)
