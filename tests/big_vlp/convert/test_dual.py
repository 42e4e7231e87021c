"""Models of two towers through the formats of others: exact round trips, and one clear error.

That the formats are those of others is in test_dual_oracles.py.
"""

import dataclasses
import hashlib
import json
import pickle
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from tokenizers import Tokenizer, models

import input_pipeline
from big_vlp import trees
from big_vlp.convert.__main__ import main
from big_vlp.convert.common import ConversionError, Tensor
from big_vlp.convert.dual import forms, hugging_face, open_clip, published, shapes
from big_vlp.convert.files import read_state, write_file
from big_vlp.methods import make_method
from big_vlp.models.text import TextTransformer
from big_vlp.models.towers import vit
from big_vlp.models.two_towers import completed
from big_vlp.storage.model_dir import open_model, save_model
from input_pipeline.preprocess import Preprocess

VOCABULARY = f"sentencepiece:{Path(input_pipeline.__file__).parent / 'data' / 'scenes_llama.model'}"
HALF = (0.5, 0.5, 0.5)
TEXT = {"vocab_size": 49408, "width": 64, "layers": 3, "heads": 1, "activation": "quick_gelu"}
IMAGE = {"patch_size": 4, "width": 64, "layers": 2, "heads": 1, "activation": "quick_gelu"}
CLIP = forms.Dual(
    {"image": IMAGE, "text": TEXT, "embed_dim": 10},
    False,
    Preprocess(image_size=12, tokenizer="clip", context_length=6),
)
SIGLIP = forms.Dual(
    {
        "image": {
            **IMAGE, "pool": "map", "heads": 2, "norm_epsilon": 1e-6, "mlp_dim": 20,
            "activation": "gelu_tanh",
        },
        "text": {
            **TEXT, "vocab_size": 640, "causal": False, "pool": "last", "norm_epsilon": 1e-6,
            "activation": "gelu_tanh", "heads": 4,
        },
        "embed_dim": 64,
    },
    True,
    Preprocess(12, VOCABULARY, 6, "squash", "bicubic", HALF, HALF),
)  # fmt: skip


def changed(dual, sigmoid=None, record=None, **towers):
    """The dual with other arguments of its towers."""
    model = {**dual.model, **{k: {**dual.model[k], **v} for k, v in towers.items()}}
    record = dataclasses.replace(dual.preprocess, **(record or {}))
    return forms.Dual(model, dual.sigmoid if sigmoid is None else sigmoid, record)


def arbitrary(made, seed=0):
    """Parameters of a dual, or of a method."""
    rng, shapes = np.random.default_rng(seed), made.shapes
    shapes = shapes if isinstance(made, forms.Dual) else shapes[0]
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[path]), value, err_msg=path)


def stored(directory, dual, seed=0):
    model = arbitrary(dual, seed)
    save_model(directory, {"model": model}, dual.section, dual.preprocess, None)
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pairs") / "clip"
    return directory, stored(directory, CLIP)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pairs") / "siglip"
    return directory, stored(directory, SIGLIP)


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory):
    """(model directory, parameters, dual), with a vocabulary of Gemma's kind."""
    folder = tmp_path_factory.mktemp("pairs")
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *map(str, range(636))]
    made = models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>")
    Tokenizer(made).save(str(folder / "tokenizer.json"))
    record = {"tokenizer": f"siglip2:{folder / 'tokenizer.json'}", "interpolation": "bilinear"}
    dual = changed(SIGLIP, record=record)
    return folder / "siglip2", stored(folder / "siglip2", dual), dual


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
    rest = text.rstrip("\n").split("\n")[1:]
    assert all(line.startswith(("  ", "Found ")) for line in rest), text
    for word in words:
        assert word in text


FORMS = {
    "openai_clip": ("clip", "back.safetensors"),
    "open_clip": ("clip", "back"),
    "clip_hf": ("clip", "back"),
    "siglip": ("siglip", "back"),
    "siglip2": ("siglip2", "back.npz"),
}


@pytest.mark.parametrize("system", FORMS)
def test_there_and_back(system, clip, siglip, siglip2, tmp_path, run):
    of, name = FORMS[system]
    given = {"clip": (*clip, CLIP), "siglip": (*siglip, SIGLIP), "siglip2": siglip2}[of]
    directory, model, dual = given
    told = run("export", system, directory, tmp_path / name)
    assert "left out     nothing" in told and "12 pixels" in told
    options = () if of == "clip" else ("--tokenizer", dual.preprocess.tokenizer)
    told = run("import", system, tmp_path / name, tmp_path / "again", *options)
    count = sum(x.size for x in jax.tree.leaves(model["image_tower"]))
    assert f"{count:,} parameters" in told and dual.model["image"]["activation"] in told
    again = open_model(tmp_path / "again")
    same(again.load(), model)
    assert again.preprocess == dual.preprocess
    assert forms.Dual(again.make_method().model, dual.sigmoid, again.preprocess) == dual
    assert again.meta["source"]["format"] == system
    if name == "back":
        card = (tmp_path / name / "README.md").read_text()
        assert "library_name:" in card and "12 pixels" in card
        assert str(Path(VOCABULARY.partition(":")[2]).parent) not in card


def test_flat_patches_of_siglip2_in_transformers(siglip2, tmp_path, run):
    """Rows, columns and channels of each, in this order."""
    directory, model, _ = siglip2
    run("export", "siglip2", directory, tmp_path / "back")
    state = read_state(tmp_path / "back")
    kernel = np.asarray(state["vision_model.embeddings.patch_embedding.weight"])
    np.testing.assert_array_equal(
        kernel.T.reshape(4, 4, 3, 64), model["image_tower"]["patch"]["kernel"]
    )
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["vision_config"]["num_patches"] == 9
    ids = {k: config["text_config"][f"{k}_token_id"] for k in ("pad", "eos", "bos")}
    assert ids == {"pad": 0, "eos": 1, "bos": 2}  # Gemma's


def test_blocks_that_a_loop_stacked(siglip2, tmp_path, run):
    """Read whole, once, with no key for each block."""
    directory, model, dual = siglip2
    run("export", "siglip2", directory, tmp_path / "x.npz")
    state = {key: np.asarray(value) for key, value in read_state(tmp_path / "x.npz").items()}
    for key in [key for key in state if "encoderblock_0/" in key]:
        layers = dual.model["image" if "/img/" in key else "text"]["layers"]
        blocks = [key.replace("encoderblock_0/", f"encoderblock_{i}/") for i in range(layers)]
        state[key.replace("block_0/", "block/")] = np.stack([state.pop(x) for x in blocks])
    state, read = shapes.below_params(state), []

    def counted(key):
        return Tensor(state[key].shape, state[key].dtype, lambda: read.append(key) or state[key])

    lazy = {key: counted(key) for key in state}
    found = shapes.big_vision(lazy, dual.preprocess.tokenizer, "bilinear")
    assert found == dual
    same(forms.from_state(forms.LOOPED_BIG_VISION, lazy, found), model)
    assert sorted(read) == sorted(state)


def test_pixels_beyond_the_last_patch_of_an_npz(siglip2, tmp_path, run):
    """Such as So400m/14's 384: the file tells 27 patches."""
    wide = changed(siglip2[2], record={"image_size": 14}, image={"ignore_rest": True})
    stored(tmp_path / "wide", wide)
    run("export", "siglip2", tmp_path / "wide", tmp_path / "x.npz")
    rest = ("--tokenizer", wide.preprocess.tokenizer)
    told = run("import", "siglip2", tmp_path / "x.npz", tmp_path / "a", *rest)
    assert "Images have 12 pixels" in told and "up to 15? Then give --image-size" in told
    run("import", "siglip2", tmp_path / "x.npz", tmp_path / "b", *rest, "--image-size", 14)
    again = open_model(tmp_path / "b")
    assert again.preprocess == wide.preprocess
    assert again.make_method().model["image"]["ignore_rest"]
    told = run("import", "siglip2", tmp_path / "x.npz", tmp_path / "c", *rest, "--image-size", 16)
    refused(told, "3 x 3 patches of 4 pixels", "up to 15, not 16")


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
    method = make_method(**section, preprocess=CLIP.preprocess)
    params = arbitrary(method)
    save_model(tmp_path / "cosmos", {"model": params}, section, CLIP.preprocess, None)
    told = run("export", "open_clip", tmp_path / "cosmos", tmp_path / "back")
    assert "image_pooler/key_value/kernel" in told and "distill_logit_scale" in told
    run("import", "open_clip", tmp_path / "back", tmp_path / "again")
    same(open_model(tmp_path / "again").load(), {
        part: params[part] for part in ("image_tower", "text_tower", "logit_scale")
    })  # fmt: skip
    told = run("export", "openai_clip", tmp_path / "cosmos", tmp_path / "x.safetensors")
    refused(told, "This format has no words for what the model computes otherwise",
            "image.activation is gelu, that of OpenAI's CLIP quick_gelu")  # fmt: skip


def test_what_is_beside_the_weights_must_be_there(clip, siglip, tmp_path, run):
    (directory, _), back = clip, tmp_path / "back"
    run("export", "open_clip", directory, back)
    (back / "open_clip_config.json").rename(tmp_path / "elsewhere.json")
    told = run("import", "open_clip", back, tmp_path / "x")
    refused(told, "open_clip_config.json is missing", "--config-json")
    options = ("--config-json", tmp_path / "elsewhere.json")
    assert "quick_gelu" in run("import", "open_clip", back, tmp_path / "x", *options)
    config = json.loads((tmp_path / "elsewhere.json").read_text())["model_cfg"]
    (tmp_path / "elsewhere.json").write_text(json.dumps(config))
    told = run("import", "open_clip", back, tmp_path / "y", *options)
    refused(told, "The config says nothing of images", "preprocess_cfg", "--name")
    # Those of the name, which then finds other weights.
    name = ("--name", "ViT-L-14/laion2b_s32b_b82k")
    told = run("import", "open_clip", back, tmp_path / "y", *options, *name)
    refused(told, "image.width is 64, that of")
    assert "mean is" not in told
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


def test_processors_of_both_as_transformers_5_writes_them(clip, tmp_path, run):
    run("export", "clip_hf", clip[0], tmp_path / "hf")
    path = tmp_path / "hf" / "preprocessor_config.json"
    content = {"image_processor": json.loads(path.read_text()), "processor_class": "CLIPProcessor"}
    path.unlink()
    (tmp_path / "hf" / "processor_config.json").write_text(json.dumps(content))
    run("import", "clip_hf", tmp_path / "hf", tmp_path / "x")
    assert open_model(tmp_path / "x").preprocess == CLIP.preprocess


def test_weights_of_another_model_than_the_configs(clip, siglip, tmp_path, run):
    """Names of one family, and a config of another, both ways."""
    run("export", "open_clip", clip[0], tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_config.json").unlink()
    run("export", "openai_clip", clip[0], tmp_path / "x.safetensors")
    tower = "vit_base_patch16_siglip_224"
    options = ("--tokenizer", VOCABULARY, "--name", "ViT-B-16-SigLIP/webli")
    # As the command, but for the vocabulary, which is too small.
    for config, state in (
        (published.config("ViT-B-16-SigLIP/webli"), read_state(tmp_path / "x.safetensors")),
        (published.config("ViT-B-16/openai"), dict.fromkeys(["visual.trunk.pos_embed"])),
    ):
        dual = open_clip.from_config(config, VOCABULARY)
        with pytest.raises(ConversionError, match="names of another model than that which is") as e:
            forms.from_state(forms.open_clip_form(state), state, dual)
        assert "the model lacks image_tower/" in str(e.value) and "no name for" in str(e.value)
    assert tower in str(published.config("ViT-B-16-SigLIP/webli"))
    refused(run("import", "open_clip", tmp_path / "clip", tmp_path / "y", *options), "640 ids")


def test_vocabularies_of_other_models(siglip, siglip2, tmp_path, run):
    run("export", "siglip", siglip[0], tmp_path / "back")
    run("export", "siglip2", siglip2[0], tmp_path / "back2")
    of_gemma = siglip2[2].preprocess.tokenizer
    (tmp_path / "few.json").write_text("{}")
    for system, tokenizer, words in (
        ("siglip", "clip", "clip is no tokenizer of siglip, which has sentencepiece"),
        ("siglip", "llama:scenes", "is no tokenizer of siglip"),
        ("siglip", of_gemma, "is no tokenizer of siglip, which has sentencepiece"),
        ("siglip2", VOCABULARY, "is no tokenizer of siglip2, which has siglip2"),
        ("siglip2", f"siglip2:{tmp_path / 'few.json'}", "is no vocabulary of its kind"),
        ("siglip2", f"siglip2:{VOCABULARY.partition(':')[2]}", "lacks <eos> or <pad>"),
        ("siglip2", "siglip2:nowhere.json", "No vocabulary at"),
    ):
        back = tmp_path / ("back" if system == "siglip" else "back2")
        told = run("import", system, back, tmp_path / "x", "--tokenizer", tokenizer)
        refused(told, words)
    few = changed(SIGLIP, text={"vocab_size": 700})
    stored(tmp_path / "few", few)
    run("export", "siglip", tmp_path / "few", tmp_path / "of_few")
    told = run("import", "siglip", tmp_path / "of_few", tmp_path / "x", "--tokenizer", VOCABULARY)
    refused(told, "has 640 ids, the model 700: they do not belong together")
    assert not (tmp_path / "x").exists()


def test_how_open_clip_makes_other_tokens_is_told(tmp_path):
    def remarks(tokenizer, **options):
        config = {**open_clip.to_config(changed(CLIP, text={"proj_bias": True}))[0]["model_cfg"]}
        text = {**config["text_cfg"], "tokenizer_kwargs": options, "hf_tokenizer_name": "x"}
        config = {"model_cfg": {**config, "text_cfg": text}, "preprocess_cfg": {}}
        return open_clip.remarks(config, open_clip.from_config(config, f"{tokenizer}:x"))

    (line,) = remarks("siglip2", clean="canonicalize")  # as open_clip has SigLIP 2
    assert (
        "'canonicalize', where punctuation is dropped; here, as the authors do, by 'lower'" in line
    )
    assert remarks("siglip2", clean="lower") == remarks("sentencepiece", clean="canonicalize") == []
    assert remarks("wordpiece", strip_sep_token=True) == []
    assert "ends these texts with [SEP]" in remarks("wordpiece")[0]
    assert "by 'whitespace'" in remarks("sentencepiece")[0]
    for options in ({"reduction_mask": "syntax"}, {"clean": "other"}):
        with pytest.raises(ConversionError, match=r"tokenizer_kwargs=.*there is no such way here"):
            remarks("siglip2", **options)


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
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_not_executed(archive, tmp_path, run):
    path, evil = tmp_path / "evil.pt", Evil(tmp_path / "executed")
    if archive:  # TorchScript's
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("evil/data.pkl", pickle.dumps(evil))
            file.writestr("evil/code/__torch__.py", "")
    else:
        torch = pytest.importorskip("torch")
        torch.save({"weight": torch.ones(1), "evil": evil}, path)
    told = run("import", "openai_clip", path, tmp_path / "x")
    refused(told, "evil.pt", "pathlib" if archive else "other Python objects")
    assert "weights_only" not in told and not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "executed").exists()  # what others would do


def test_exports_that_others_have_no_place_for(clip, siglip, tmp_path, run):
    for system, model, name, message in (
        ("clip_hf", siglip, "x", "CLIPModel has no place for this model"),
        ("siglip", clip, "x", "SiglipModel has no place for this model"),
        ("siglip2", clip, "x.npz", "SiglipModel has no place"),
        ("open_clip", siglip, "x", "timm, which has none of these sizes"),
        ("open_clip", clip, "x.pt", "this format is a directory"),
        ("openai_clip", clip, "x", "give a file named *.safetensors"),
        ("openai_clip", siglip, "x.safetensors", "has no place for this model"),
        ("siglip2", siglip, "x.npz", "interpolation is bicubic, that of big_vision's siglip2"),
    ):
        refused(run("export", system, model[0], tmp_path / name), message)
        assert not (tmp_path / name).exists()


def test_what_a_file_without_a_config_cannot_say(tmp_path, run):
    """It would be read as something else."""
    other = {"activation": "gelu", "norm_epsilon": 1e-5}
    stored(tmp_path / "siglip", changed(SIGLIP, record={"mean": (0.4,) * 3}, image=other))
    told = run("export", "siglip", tmp_path / "siglip", tmp_path / "x.npz")
    refused(told, "image.activation is gelu, that of big_vision's siglip gelu_tanh", "mean is (0.4",
            "image.norm_epsilon is 1e-05")  # fmt: skip
    stored(tmp_path / "sigmoid", changed(CLIP, sigmoid=True))
    told = run("export", "openai_clip", tmp_path / "sigmoid", tmp_path / "x.safetensors")
    refused(told, "loss is sigmoid, that of OpenAI's CLIP softmax")
    assert not [*tmp_path.glob("x.*")]


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
    dual = forms.Dual(towers, True, record)
    config, form = open_clip.to_config(dual)
    assert open_clip.from_config(json.loads(json.dumps(config)), None) == dual
    assert form is forms.OPENAI
    record = Preprocess(12, "clip", 6, resize_size=14, mean=HALF)
    dual = forms.Dual({**CLIP.model, "text": {**TEXT, "mlp_dim": 100}}, False, record)
    contents = [json.loads(json.dumps(x)) for x in hugging_face.to_config(dual, "clip")]
    assert hugging_face.from_config(*contents, "clip")[0] == dual
    contents[1]["crop_size"] = 10
    with pytest.raises(ConversionError, match=r"images of 10 pixels, and config.json says 12"):
        hugging_face.from_config(*contents, "clip")
    contents[1] |= {"crop_size": 12, "do_normalize": False}
    with pytest.raises(ConversionError, match="do_normalize"):
        hugging_face.from_config(*contents, "clip")


def test_defaults_of_transformers():
    """What a released SigLIP's config says is little more than its type."""
    dual, _ = hugging_face.from_config({"model_type": "siglip"}, {}, VOCABULARY)
    assert dual.model["image"] == {
        "patch_size": 16, "width": 768, "layers": 12, "heads": 12, "mlp_dim": 3072, "pool": "map",
        "activation": "gelu_tanh", "norm_epsilon": 1e-6, "class_token": False, "norm_pre": False,
        "norm_after_pool": False, "ignore_rest": False, "final_norm": True,
    }  # fmt: skip
    pre = dual.preprocess
    assert (pre.image_size, pre.resize, pre.interpolation) == (224, "squash", "bicubic")
    assert (pre.mean, pre.context_length) == (HALF, 64)
    config = {"model_type": "siglip", "vision_config": {"patch_size": 14, "image_size": 384}}
    dual, _ = hugging_face.from_config(config, {"size": {"height": 384, "width": 384}}, VOCABULARY)
    assert dual.shapes["image_tower"]["position_embedding"].shape == (27**2, 768)


def test_published_models():
    """Each has a config that can be read, and the published number of parameters where known."""
    pairs = {
        name: open_clip.from_config(config, None if "/openai" in name else "sentencepiece:x")
        for name, config in published.PUBLISHED.items()
    }
    for name, count in (("ViT-B-32/openai", 151_277_313), ("cosmos_vitb16_cc3m", 149_620_737)):
        assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(pairs[name].shapes)) == count
    big = pairs["ViT-bigG-14/laion2b_s39b_b160k"].model["image"]
    assert (big["mlp_dim"], big["heads"]) == (8192, 16)
    # A hash over all; that they are open_clip's is in test_dual_oracles.py.
    rows = json.dumps(published.PUBLISHED, sort_keys=True).encode()
    assert hashlib.sha256(rows).hexdigest()[:16] == "635e2c12b5f1a6eb"


def test_published_numbers():
    numbers = {name: published.numbers(name) for name in published.PUBLISHED}
    top1 = {
        name: found["imagenet1k"]["top1_accuracy"]
        for name, found in numbers.items()
        if found and not name.startswith("cosmos")
    }
    assert top1 == {
        "ViT-L-14/openai": 0.755,
        "ViT-B-32-256/datacomp_s34b_b86k": 0.728,
        "ViT-B-16/datacomp_xl_s13b_b90k": 0.735,
        "ViT-L-14/laion2b_s32b_b82k": 0.753,
        "ViT-L-14/datacomp_xl_s13b_b90k": 0.792,
        "ViT-L-14/dfn2b_s39b": 0.822,
        "ViT-H-14/laion2b_s32b_b79k": 0.78,
        "ViT-H-14-quickgelu/dfn5b": 0.834,
        "ViT-H-14-378-quickgelu/dfn5b": 0.844,
        "ViT-bigG-14/laion2b_s39b_b160k": 0.801,
        "ViT-SO400M-14-SigLIP/webli": 0.82,
        "ViT-SO400M-14-SigLIP-384/webli": 0.831,
        "ViT-L-16-SigLIP2-256/webli": 0.825,
        "ViT-SO400M-16-SigLIP2-384/webli": 0.841,
        "ViT-gopt-16-SigLIP2-384/webli": 0.85,
    }
    cosmos = {name: x for name, x in numbers.items() if name.startswith("cosmos")}
    assert len(cosmos) == 10 and cosmos["cosmos_vitb16_merged30m"] == {
        "coco_val2017": {"image_to_text_R@1": 0.68, "text_to_image_R@1": 0.525},
        "flickr30k_val": {"image_to_text_R@1": 0.929, "text_to_image_R@1": 0.803},
        "imagenet1k": {"top1_accuracy": 0.576},
        "cifar100": {"top1_accuracy": 0.723},
        "food101": {"top1_accuracy": 0.739},
        "ade20k": {"mean_iou": 0.085},
        "cityscapes": {"mean_iou": 0.139},
        "coco_stuff": {"mean_iou": 0.107},
        "context59": {"mean_iou": 0.157},
        "voc20": {"mean_iou": 0.536},
    }
    rows = json.dumps(cosmos, sort_keys=True).encode()
    assert hashlib.sha256(rows).hexdigest()[:16] == "0a914f1ff7b47427"
    assert published.numbers(None) == published.numbers("my_own") == {}


def test_names_of_published_models(clip, siglip, tmp_path, run, monkeypatch):
    run("export", "openai_clip", clip[0], tmp_path / "x.safetensors")
    name = "ViT-L-14/laion2b_s32b_b82k"
    told = run("import", "openai_clip", tmp_path / "x.safetensors", tmp_path / "x", "--name", name)
    refused(told, "These are other weights than the name says", "mean is (0.48145466",
            "image.width is 64, that of ViT-L-14", "is quick_gelu")  # fmt: skip
    told = run("import", "openai_clip", tmp_path / "x.safetensors", tmp_path / "x", "--name", "b")
    refused(told, "No checkpoint 'b' is known; known are ViT-B-32/openai")
    # The right name brings the published numbers; SigLIP's as released has tanh's gelu.
    for (directory, _), dual, name, system, vocabulary in (
        (clip, CLIP, "ViT-L-14/openai", "open_clip", ()),
        (siglip, changed(SIGLIP, image={"activation": "gelu"}, text={"activation": "gelu"}),
         "ViT-SO400M-14-SigLIP/webli", "siglip", ("--tokenizer", VOCABULARY)),
    ):  # fmt: skip
        target, back = tmp_path / f"of_{system}", tmp_path / f"back_{system}"
        run("export", system, directory, back)
        monkeypatch.setattr(open_clip, "from_config", lambda config, tokenizer, dual=dual: dual)
        told = run("import", system, back, target, "--name", name, *vocabulary)
        monkeypatch.undo()
        percent = "75.5%" if system == "open_clip" else "82.0%"
        assert f"published    imagenet1k top1_accuracy {percent}" in told
        assert open_model(target).meta["source"]["published"] == published.numbers(name)


def test_completed_arguments_are_those_of_the_models():
    """Whatever their defaults are."""
    given = {
        "image": {"patch_size": 4, "width": 8, "layers": 1, "heads": 1},
        "text": {"vocab_size": 9, "width": 8, "layers": 1, "heads": 1},
        "embed_dim": 8,
    }
    model = completed(given)
    for kind, tower in ((vit.Tower, "image"), (TextTransformer, "text")):
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        resolved = {k for k, v in model[tower].items() if k not in given[tower]}
        assert {k: model[tower][k] for k in resolved if defaults[k] is not None} == {
            k: defaults[k] for k in resolved if defaults[k] is not None
        }
        assert resolved >= {"activation", "norm_epsilon", "pool", "mlp_dim"}
        assert None not in model[tower].values()
    siglip = completed({**SIGLIP.model, "image": {**SIGLIP.model["image"], "mlp_dim": None}})
    assert siglip == completed(siglip)
    assert siglip["image"]["mlp_dim"] == 256 and not siglip["image"]["class_token"]
    assert siglip["text"]["proj_bias"]
