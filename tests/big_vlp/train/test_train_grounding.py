"""Grounding data that was built from captions and boxes trains a CogVLM as the scenes' own does."""

import json

import numpy as np
import pytest

from big_vlp.run.log import read_log
from big_vlp.train import train
from input_pipeline.grounding import command
from input_pipeline.sources.scenes import describe
from tests.big_vlp.train.test_train_cogvlm import recipe

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
def test_the_demo_learns_from_built_data_as_from_the_scenes_own(tmp_path):
    small = dict(optim__warmup_steps=20, checkpoint__every_steps=1000)
    text = recipe("demo_cogvlm", "stage=text", **small, total_steps=STEPS, global_batch=16)
    train(text, tmp_path / "text")
    train(recipe("demo", None, **small, total_steps=20), tmp_path / "image")
    start = f"language={tmp_path / 'text'},image={tmp_path / 'image'}"
    curves = {}
    own = dict(name="scenes", split="train", size=SCENES, image_size=64)
    for name, data in (("own", own), ("built", build(tmp_path))):
        config = recipe("demo_cogvlm", f"stage=grounding,{start}", **small)
        config.data = data
        config.update(total_steps=STEPS, global_batch=8)
        train(config, tmp_path / name)
        curves[name] = curve(tmp_path / name)
    first, (own, built) = curves["own"][0], (curves[name][-LAST:].mean() for name in curves)
    print(f"loss {first:.3f} -> {own:.3f} on the scenes' own data, {built:.3f} on built data")
    assert own < 0.8 * first
    np.testing.assert_allclose(built, own, rtol=0.03)
