"""Models of two towers through the formats of others: exact round trips, and one clear error.

That the formats are those of others is in test_pairs_oracles.py.
"""

import json
import pickle
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

import input_pipeline
from big_vlp import trees
from big_vlp.convert.__main__ import main
from big_vlp.convert.common import ConversionError
from big_vlp.convert.files import read_state, write_file
from big_vlp.convert.pairs import forms, hugging_face, open_clip, published
from big_vlp.models.two_towers import completed
from big_vlp.storage.model_dir import open_model, save_model
from input_pipeline.preprocess import Preprocess

VOCABULARY = f"sentencepiece:{Path(input_pipeline.__file__).parent / 'data' / 'scenes_llama.model'}"
HALF = (0.5, 0.5, 0.5)
TEXT = {"vocab_size": 49408, "width": 64, "layers": 3, "heads": 1, "activation": "quick_gelu"}
IMAGE = {"patch_size": 4, "width": 64, "layers": 2, "heads": 1, "activation": "quick_gelu"}
CLIP = forms.Pair(
    {"image": IMAGE, "text": TEXT, "embed_dim": 10},
    False,
    Preprocess(image_size=12, tokenizer="clip", context_length=6),
)
SIGLIP = forms.Pair(
    {
        "image": {
            **IMAGE, "pool": "map", "heads": 2, "norm_epsilon": 1e-6, "mlp_dim": 20,
            "activation": "gelu_tanh",
        },
        "text": {
            **TEXT, "vocab_size": 700, "causal": False, "pool": "last", "norm_epsilon": 1e-6,
            "activation": "gelu_tanh", "heads": 4,
        },
        "embed_dim": 64,
    },
    True,
    Preprocess(12, VOCABULARY, 6, "squash", "bilinear", HALF, HALF),
)  # fmt: skip


def arbitrary(pair, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), pair.shapes)


def same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[path]), value, err_msg=path)


def stored(directory, pair, seed=0):
    model = arbitrary(pair, seed)
    save_model(directory, {"model": model}, pair.section, pair.preprocess, None)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pairs") / "clip"
    return directory, stored(directory, CLIP)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pairs") / "siglip"
    return directory, stored(directory, SIGLIP)


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return told.out if code == 0 else told.err

    return run


def refused(text, *words):
    """One line that says so, or the lines of its list."""
    assert text.startswith("error: ") and "Traceback" not in text, text
    for word in words:
        assert word in text


FORMS = {
    "openai_clip": (CLIP, "back.safetensors"),
    "open_clip": (CLIP, "back"),
    "clip_hf": (CLIP, "back"),
    "siglip": (SIGLIP, "back"),
    "siglip2": (SIGLIP, "back.npz"),
}


@pytest.mark.parametrize("system", FORMS)
def test_there_and_back(system, clip, siglip, tmp_path, run):
    pair, name = FORMS[system]
    directory, model = clip if pair is CLIP else siglip
    told = run("export", system, directory, tmp_path / name)
    assert "left out     nothing" in told and "12 pixels" in told
    options = () if pair is CLIP else ("--tokenizer", VOCABULARY)
    told = run("import", system, tmp_path / name, tmp_path / "again", *options)
    count = sum(x.size for x in jax.tree.leaves(model["image_tower"]))
    assert f"{count:,} parameters" in told and pair.model["image"]["activation"] in told
    again = open_model(tmp_path / "again")
    same(again.load(), model)
    assert again.preprocess == pair.preprocess
    assert forms.Pair(again.make_method().model, pair.sigmoid, again.preprocess) == pair
    assert again.meta["source"]["format"] == system
    if name == "back":
        card = (tmp_path / name / "README.md").read_text()
        assert "library_name:" in card and "12 pixels" in card


def test_the_largest_model_of_siglip2_goes_to_transformers(siglip, tmp_path, run):
    """Patches that come flat: rows, columns and channels of each, in this order."""
    directory, model = siglip
    run("export", "siglip2", directory, tmp_path / "back")
    state = read_state(tmp_path / "back")
    kernel = np.asarray(state["vision_model.embeddings.patch_embedding.weight"])
    np.testing.assert_array_equal(
        kernel.T.reshape(4, 4, 3, 64), model["image_tower"]["patch"]["kernel"]
    )
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["vision_config"]["num_patches"] == 9


def test_keys_of_training_and_halves(clip, tmp_path, run):
    """module. in front, buffers, and bf16: what is no weight is named, the rest is exact."""
    directory, model = clip
    run("export", "openai_clip", directory, tmp_path / "whole.safetensors")
    half = np.dtype(ml_dtypes.bfloat16)
    state = {
        f"module.{key}": np.asarray(value).astype(half)
        for key, value in read_state(tmp_path / "whole.safetensors").items()
    }
    state["module.attn_mask"] = np.zeros((6, 6), np.float32)
    write_file(tmp_path / "half.safetensors", state)
    told = run("import", "openai_clip", tmp_path / "half.safetensors", tmp_path / "half")
    assert "left out     attn_mask" in told
    found = open_model(tmp_path / "half").load()
    same(found, jax.tree.map(lambda x: x.astype(half).astype(np.float32), model))


def test_cosmos_towers_go_to_open_clip(tmp_path, run):
    image = {**IMAGE, "activation": "gelu"}
    text = {**TEXT, "activation": "gelu", "heads": 8}
    model = {"image": image, "text": text, "embed_dim": 64, "pooler_heads": 8}
    section = {"name": "cosmos", "model": model, "ema_decay": 1.0}
    from big_vlp.methods import make_method

    shapes = make_method(**section, preprocess=CLIP.preprocess).shapes[0]
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    save_model(tmp_path / "cosmos", {"model": params}, section, CLIP.preprocess, None)
    told = run("export", "open_clip", tmp_path / "cosmos", tmp_path / "back")
    assert "image_pooler/key_value/kernel" in told and "distill_logit_scale" in told
    run("import", "open_clip", tmp_path / "back", tmp_path / "again")
    same(open_model(tmp_path / "again").load()["image_tower"], params["image_tower"])
    refused(
        run("export", "openai_clip", tmp_path / "cosmos", tmp_path / "x.safetensors"),
        "image.activation is gelu, that of OpenAI's CLIP quick_gelu",
    )


def test_what_is_beside_the_weights_must_be_there(clip, siglip, tmp_path, run):
    (directory, _), back = clip, tmp_path / "back"
    run("export", "open_clip", directory, back)
    (back / "open_clip_config.json").rename(tmp_path / "elsewhere.json")
    told = run("import", "open_clip", back, tmp_path / "x")
    refused(told, "open_clip_config.json is missing", "--config-json")
    options = ("--config-json", tmp_path / "elsewhere.json")
    assert "quick_gelu" in run("import", "open_clip", back, tmp_path / "x", *options)
    run("export", "clip_hf", directory, tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    refused(run("import", "clip_hf", tmp_path / "hf", tmp_path / "y"), "how images are prepared")
    run("export", "siglip", siglip[0], tmp_path / "siglip.npz")
    told = run("import", "siglip2", tmp_path / "siglip.npz", tmp_path / "y")
    refused(told, "no vocabulary beside", "siglip2:PATH of tokenizer.json")
    assert not (tmp_path / "y").exists()


def test_other_weights_than_the_config_says(clip, siglip, tmp_path, run):
    directory, back = clip[0], tmp_path / "back"
    run("export", "open_clip", directory, back)
    path = back / "open_clip_config.json"
    config = json.loads(path.read_text())

    def told(**vision):
        config["model_cfg"]["vision_cfg"] |= vision
        path.write_text(json.dumps(config))
        return run("import", "open_clip", back, tmp_path / "x")

    refused(told(patch_size=2), "wrong shape: visual.conv1.weight is (64, 3, 4, 4), should be")
    text = told(patch_size=4, layers=12)
    refused(text, "missing: visual.transformer.resblocks.10", "more")
    assert text.count("\n") < 50
    refused(told(layers=2, ls_init_value=0.1), "vision_cfg has what these towers have not: ls_")
    refused(told(ls_init_value=None, layers=[3, 4]), "ResNet")
    refused(told(timm_model_name="convnext_base"), "timm's 'convnext_base'; known are vit_base")
    refused(run("import", "clip_hf", back, tmp_path / "x"), "config.json is missing")
    run("export", "siglip", siglip[0], tmp_path / "hf")
    refused(run("import", "clip_hf", tmp_path / "hf", tmp_path / "x"), "'siglip'; clip_hf is for")
    refused(run("import", "openai_clip", tmp_path / "hf", tmp_path / "x"), "in OpenAI's names")
    assert not (tmp_path / "x").exists()


def test_a_vocabulary_larger_than_the_model(siglip, tmp_path, run):
    run("export", "siglip", siglip[0], tmp_path / "back")
    told = run("import", "siglip", tmp_path / "back", tmp_path / "x", "--tokenizer", "clip")
    refused(told, "clip has 49408 ids, the model 700")


def test_damaged_files(siglip, clip, tmp_path, run):
    run("export", "siglip", siglip[0], tmp_path / "whole.npz")
    run("export", "openai_clip", clip[0], tmp_path / "whole.safetensors")
    for system, suffix in (("siglip", "npz"), ("openai_clip", "safetensors")):
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(data[: len(data) * 2 // 3])
        told = run("import", system, path, tmp_path / "x", "--tokenizer", VOCABULARY)
        refused(told, str(path), "damaged")
    state = {f"student.{k}": v for k, v in read_state(tmp_path / "whole.safetensors").items()}
    write_file(tmp_path / "two.safetensors", state)
    refused(run("import", "openai_clip", tmp_path / "two.safetensors", tmp_path / "x"), "as cosmos")
    assert not (tmp_path / "x").exists()


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_not_executed(archive, tmp_path, run, capsys):
    path = tmp_path / "evil.pt"
    if archive:  # TorchScript's
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("evil/data.pkl", pickle.dumps(Evil()))
            file.writestr("evil/code/__torch__.py", "")
    else:
        torch = pytest.importorskip("torch")
        torch.save({"weight": torch.ones(1), "evil": Evil()}, path)
    told = run("import", "openai_clip", path, tmp_path / "x")
    refused(told, "evil.pt", "print")
    assert "weights_only" not in told and "executed\n" not in told


def test_exports_that_others_have_no_place_for(clip, siglip, tmp_path, run):
    for system, model, name, message in (
        ("clip_hf", siglip, "x", "CLIPModel has no place for this model"),
        ("siglip", clip, "x", "SiglipModel has no place for this model"),
        ("siglip2", clip, "x.npz", "SiglipModel has no place"),
        ("open_clip", siglip, "x", "timm, which has none of these sizes"),
        ("open_clip", clip, "x.pt", "this format is a directory"),
        ("openai_clip", clip, "x", "give a file named *.safetensors"),
        ("openai_clip", siglip, "x.safetensors", "has no place for this model"),
    ):
        refused(run("export", system, model[0], tmp_path / name), message)
        assert not (tmp_path / name).exists()


def test_configs_of_the_formats_keep_all():
    """Also what released models have and the small ones above have not."""
    towers = {
        "image": {
            **IMAGE, "heads": 4, "mlp_dim": 315, "pool": "mean", "class_token": True,
            "norm_pre": False, "norm_after_pool": True, "activation": "gelu",
        },
        "text": {
            **TEXT, "activation": "gelu_tanh", "mlp_dim": 239, "causal": False, "pool": "last",
            "proj_bias": False, "norm_epsilon": 1e-6,
        },
        "embed_dim": 10,
    }  # fmt: skip
    record = Preprocess(12, "clip", 6, "squash", "bilinear", HALF, (0.1, 0.2, 0.3))
    pair = forms.Pair(towers, True, record)
    config, form = open_clip.to_config(pair)
    assert open_clip.from_config(json.loads(json.dumps(config)), None) == pair
    assert form is forms.OPENAI
    record = Preprocess(12, "clip", 6, resize_size=14, mean=HALF)
    pair = forms.Pair({**CLIP.model, "text": {**TEXT, "mlp_dim": 100}}, False, record)
    contents = [json.loads(json.dumps(x)) for x in hugging_face.to_config(pair, "clip")]
    assert hugging_face.from_config(*contents, "clip")[0] == pair
    contents[1]["crop_size"] = 10
    with pytest.raises(ConversionError, match=r"images of 10 pixels, and config.json says 12"):
        hugging_face.from_config(*contents, "clip")
    contents[1] |= {"crop_size": 12, "do_normalize": False}
    with pytest.raises(ConversionError, match="do_normalize"):
        hugging_face.from_config(*contents, "clip")


def test_defaults_of_transformers():
    """What a released SigLIP's config says is little more than its type."""
    pair, _ = hugging_face.from_config({"model_type": "siglip"}, {}, VOCABULARY)
    assert pair.model["image"] == {
        "patch_size": 16, "width": 768, "layers": 12, "heads": 12, "mlp_dim": 3072, "pool": "map",
        "activation": "gelu_tanh", "norm_epsilon": 1e-6, "class_token": False, "norm_pre": False,
        "norm_after_pool": False, "ignore_rest": False,
    }  # fmt: skip
    pre = pair.preprocess
    assert (pre.image_size, pre.resize, pre.interpolation) == (224, "squash", "bicubic")
    assert (pre.mean, pre.context_length) == (HALF, 64)
    config = {"model_type": "siglip", "vision_config": {"patch_size": 14, "image_size": 384}}
    pair, _ = hugging_face.from_config(config, {"size": {"height": 384, "width": 384}}, VOCABULARY)
    assert pair.shapes["image_tower"]["position_embedding"].shape == (27**2, 768)


def test_published_models():
    """Each has a config that can be read, and the published number of parameters where known."""
    pairs = {
        name: open_clip.from_config(known.config, None)
        for name, known in published.PUBLISHED.items()
    }
    for name, count in (("ViT-B-32/openai", 151_277_313), ("cosmos_vitb16_cc3m", 149_620_737)):
        assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(pairs[name].shapes)) == count
    numbers = [x for known in published.PUBLISHED.values() for x in known.numbers.values()]
    assert len(numbers) == 5 * 10 + 9 and all(0 < x < 100 for x in numbers)
    big = pairs["ViT-bigG-14/laion2b_s39b_b160k"].model["image"]
    assert (big["mlp_dim"], big["heads"]) == (8192, 16)
    mean = {x: published.PUBLISHED[f"ViT-L-14/{x}"].config["preprocess_cfg"]
            for x in ("laion2b_s32b_b82k", "datacomp_xl_s13b_b90k")}  # fmt: skip
    assert mean["laion2b_s32b_b82k"]["mean"] == HALF and not mean["datacomp_xl_s13b_b90k"]


def test_names_of_published_models(clip, tmp_path, run):
    run("export", "openai_clip", clip[0], tmp_path / "x.safetensors")
    name = "ViT-L-14/laion2b_s32b_b82k"
    told = run("import", "openai_clip", tmp_path / "x.safetensors", tmp_path / "x", "--name", name)
    refused(told, "image.width is 64, that of ViT-L-14", "mean is (0.48145466", "is quick_gelu")
    told = run("import", "openai_clip", tmp_path / "x.safetensors", tmp_path / "x", "--name", "b")
    refused(told, "No checkpoint 'b' is known; known are ViT-B-32/openai")


def test_completed_arguments_are_those_of_the_models():
    given = {**SIGLIP.model, "image": {**SIGLIP.model["image"], "mlp_dim": None}}
    model = completed(given)
    assert model == completed(model)
    assert model["image"]["mlp_dim"] == 256 and not model["image"]["class_token"]
    assert model["text"]["proj_bias"]
