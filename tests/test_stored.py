"""What an earlier version left on a disk resumes and loads."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from big_vlp import renamed
from big_vlp.command import load_config
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.run.log import read_log
from big_vlp.storage.model_dir import open_model
from big_vlp.train import train

ROOT = Path(__file__).parents[1]
STORED = ROOT / "tests" / "fixtures" / "stored"
EXPECTED = json.loads((STORED / "expected.json").read_text())


def unpacked(name, folder):
    with tarfile.open(STORED / f"{name}.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder / name


@pytest.mark.parametrize("name", ["cosmos", "catlip"])
def test_a_run_resumes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # the config names a vocabulary by a relative path
    workdir = unpacked(name, tmp_path)
    config = load_config(str(STORED / f"{name}.py"))
    config.method = renamed.upgrade(config.to_dict())["method"]  # as the error of old names says
    train(config, workdir)
    logged = {
        str(line["step"]): line["values"]
        for line in read_log(workdir)
        if line["split"] == "train" and line["step"] >= 4
    }
    assert logged.keys() == EXPECTED[name].keys() == {"4", "5", "6", "7"}
    for step, values in EXPECTED[name].items():
        for metric, value in values.items():
            np.testing.assert_allclose(logged[step][metric], value, rtol=1e-4)


def features_of(stored):
    weights, predict = stored.load(), stored.make_method().predict_fns()
    pixels = (np.arange(2 * 16 * 16 * 3).reshape(2, 16, 16, 3) * 7 % 256).astype(np.uint8)
    tokens = np.zeros((2, 16), np.int32)
    tokens[0, :4], tokens[1, :3] = (49406, 320, 1125, 49407), (49406, 2368, 49407)
    return {
        "image": predict["encode_image"](weights, {"image": pixels}),
        "text": predict["encode_text"](weights, {"tokens": tokens}),
    }


def test_a_model_directory_loads(tmp_path):
    features = features_of(open_model(unpacked("model", tmp_path)))
    for name, value in EXPECTED["model"].items():
        np.testing.assert_allclose(features[name], value, atol=1e-5)


def test_a_record_that_has_the_activation_gives_the_same_features(tmp_path):
    """It stood in the preprocess record, for both towers."""
    directory = unpacked("model", tmp_path)
    (file,) = directory.glob("checkpoints/*/meta/metadata")
    meta = json.loads(file.read_text())
    before = features_of(open_model(directory))
    for record in (meta["preprocess"], meta["config"]["preprocess"]):
        assert record["activation"] == "gelu"
        record["activation"] = "quick_gelu"
    file.write_text(json.dumps(meta))
    stored = open_model(directory)
    model = stored.meta["config"]["method"]["model"]
    assert model["image"]["activation"] == model["text"]["activation"] == "quick_gelu"
    assert "activation" not in stored.meta["preprocess"] | stored.meta["config"]["preprocess"]
    after = features_of(stored)
    # The text tower is two wide: its norms leave signs, whatever the activation.
    assert np.abs(after["image"] - before["image"]).max() > 1e-4


def old(method, activation="quick_gelu"):
    return {"preprocess": {"image_size": 8, "activation": activation}, "method": method}


@pytest.mark.parametrize(
    "method, keys",
    [
        ({"name": "clip"}, ["model.image", "model.text"]),
        ({"name": "cosmos", "model": {"text": {}}}, ["model.image", "model.text"]),
        ({"name": "transfer", "tower": "vit"}, ["model"]),
        ({"name": "transfer", "tower": "catlip_vit"}, []),
        ({"name": "catlip"}, []),
        ({"name": "my_lab.mine"}, []),
    ],
)
def test_the_activation_is_a_key_of_the_towers(method, keys):
    with pytest.raises(ValueError, match=r"preprocess.activation is a key of the tower") as error:
        renamed.refuse(old(method))
    written = [f"config.method.{key}.activation='quick_gelu'" for key in keys]
    assert (" and ".join(written) or "leave it out") in str(error.value)
    new = renamed.upgrade(old(method))
    assert new["preprocess"] == {"image_size": 8}
    for key in keys:
        section = new["method"]
        for name in key.split("."):
            section = section[name]
        assert section == {"activation": "quick_gelu"}
    renamed.refuse(new)
    assert keys or new["method"] == method


def test_the_old_name_of_a_key_is_one_error():
    config = load_config(str(STORED / "cosmos.py"))
    with pytest.raises(ConfigError, match=r"momentum is called ema_decay now: write ema_decay=0.9"):
        Experiment.from_config(config)
    config = load_config(str(STORED / "catlip.py"))
    with pytest.raises(ConfigError, match=r"write ema_decay=0.9 for ema_momentum=0.1"):
        Experiment.from_config(config)


def test_lengths_of_texts_are_groups_now():
    """What is stored goes on without: they say nothing of the shares, and results are the same."""
    old = {"method": {"name": "clip", "text_lengths": (32, 48)}}
    with pytest.raises(ValueError, match=r"text_groups now: write text_groups=\(\(0.5, 16\), "):
        renamed.refuse(old)
    assert renamed.upgrade(old)["method"] == {"name": "clip", "text_groups": ()}


def test_a_method_from_outside_names_its_keys_as_it_likes():
    section = {"name": "my_lab.mine", "momentum": 0.9}
    renamed.refuse({"method": section})
    assert renamed.upgrade({"method": section}) == {"method": section}
    with pytest.raises(ValueError, match=r"ema_momentum is called ema_decay now\.$"):
        renamed.refuse({"method": {"name": "catlip", "ema_momentum": "abc"}})
