"""Files of open_clip, OpenAI, transformers and big_vision against those packages, random weights.

Each is imported, gives equal features here, and is exported into a file that the package loads
strictly, with equal features again.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import input_pipeline
from big_vlp.convert.__main__ import main
from big_vlp.convert.dual import open_clip as ours
from big_vlp.convert.files import read_state, write_file
from big_vlp.storage.model_dir import open_model
from input_pipeline.images.crops import eval_image
from input_pipeline.text.tokenizers import make_tokenizer

torch = pytest.importorskip("torch", reason="the oracles are packages of PyTorch's")
SIZE, LENGTH, IDS = 32, 12, 49408
VOCABULARY = Path(input_pipeline.__file__).parent / "data" / "scenes_llama.model"
VISION = {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": LENGTH, "vocab_size": IDS, "width": 24, "heads": 3, "layers": 3}
BOTH_WAYS = {"no_causal_mask": True, "pool_type": "last"}
CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
SIGLIP_TEXT = {
    **TEXT, **BOTH_WAYS, "vocab_size": 640, "width": 32, "heads": 4, "proj_bias": True,
    "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}, "hf_tokenizer_name": "x",
}  # fmt: skip
OPEN_CLIP = {
    "openai": {"quick_gelu": True},
    "big": {"vision_cfg": {**VISION, "mlp_ratio": 4.9231}},
    "clipa": {"vision_cfg": {**VISION, **CLIPA}, "text_cfg": {**TEXT, **BOTH_WAYS}},
    "average": {
        "vision_cfg": {**VISION, "pool_type": "avg"},
        "text_cfg": {**TEXT, "proj_bias": True, "mlp_ratio": 3.7362},
        "custom_text": True,
        "init_logit_bias": -10,
    },
}


def rng():
    return np.random.default_rng(0)


IMAGES = rng().normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)


def tokens(ids, end, length=LENGTH):
    found = rng().integers(1, ids - 2, (3, length)).astype(np.int64)
    found[0, 5], found[0, 6:] = end, 0
    found[1:, -1] = end
    return found


def randomise(model):
    """All parameters of a kind that tells mistakes: gains and biases too."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        fan = shape[-1] if len(shape) > 1 else 1
        value = torch.randn(shape) * (fan**-0.5 if len(shape) > 1 else 0.3)
        if len(shape) == 1 and name.endswith("weight"):
            value += 1
        parameter.data = value
    return model.eval()


def unit(features):
    return torch.nn.functional.normalize(features, dim=-1).detach().numpy()


def theirs(model, words, images=IMAGES):
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        return unit(model.encode_image(pixels)), unit(model.encode_text(torch.tensor(words)))


def features(directory, words, images=IMAGES):
    stored = open_model(directory)
    method = dataclasses.replace(stored.make_method(), dtype="float32")
    params, fns = stored.load(), method.predict_fns()
    return (
        fns["encode_image"](params, {"image": images}),
        fns["encode_text"](params, {"tokens": words.astype(np.int32)}),
    )


def close(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected):
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=tolerance)


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def same_state(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[key]), value.numpy(), err_msg=key)


def save(model, directory, config):
    directory.mkdir()
    (directory / ours.CONFIG).write_text(json.dumps(config))
    state = {key: np.asarray(value) for key, value in model.state_dict().items()}
    write_file(directory / ours.WEIGHTS, state)


def picture(tmp_path):
    from PIL import Image

    path = tmp_path / "picture.png"
    Image.fromarray(rng().integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return Image.open(path).convert("RGB"), path.read_bytes()


def as_we_see(directory, data):
    pre = open_model(directory).preprocess
    return (eval_image(data, pre) / np.float32(255) - pre.mean) / np.array(pre.std, np.float32)


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip(name, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    config = {"embed_dim": 20, "vision_cfg": VISION, "text_cfg": TEXT, **OPEN_CLIP[name]}
    record = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    record |= {"interpolation": "bilinear", "resize_mode": "squash"} if name == "clipa" else {}
    made = {k: v for k, v in config.items() if k != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model, words = randomise(kind(**json.loads(json.dumps(made)))), tokens(IDS, IDS - 1)
    released, here, back = (tmp_path / x for x in ("released", "here", "back"))
    save(model, released, {"model_cfg": config, "preprocess_cfg": record})
    run("import", "open_clip", released, here)
    expected = theirs(model, words)
    close(features(here, words), expected)
    run("export", "open_clip", here, back)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{back}")
    same_state(loaded.state_dict(), model.state_dict())
    close(theirs(loaded.eval(), words), expected, 0)
    image, data = picture(tmp_path)
    close([as_we_see(here, data)], [preprocess(image).permute(1, 2, 0).numpy()], 1e-6)
    assert "library_name: open_clip" in (back / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP"])
def test_open_clip_at_released_sizes(name, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    config = open_clip.get_model_config(name)
    made = {k: v for k, v in json.loads(json.dumps(config)).items() if k != "custom_text"}
    kind = open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP
    model, text = randomise(kind(**made)), config["text_cfg"]
    ids, length = text["vocab_size"], text["context_length"]
    words = tokens(ids, ids - 1 if kind is open_clip.CLIP else 1, length)
    images = rng().normal(size=(2, 224, 224, 3)).astype(np.float32)
    released, here, back = (tmp_path / x for x in ("released", "here", "back"))
    record = {"mean": [0.5] * 3, "std": [0.5] * 3}
    save(model, released, {"model_cfg": config, "preprocess_cfg": record})
    small_vocabulary(tmp_path / "words.json", ids)
    run("import", "open_clip", released, here, *(
        () if kind is open_clip.CLIP else ("--tokenizer", f"siglip2:{tmp_path / 'words.json'}")
    ))  # fmt: skip
    close(features(here, words, images), theirs(model, words, images))
    run("export", "open_clip", here, back)
    same_state(read_state(back), model.state_dict())


@pytest.fixture
def tiny_timm(monkeypatch):
    """A SigLIP tower of timm's of a size for tests, under a name that both sides know."""
    timm = pytest.importorskip("timm")
    from timm.models import vision_transformer

    def vit_tiny_siglip_test(num_classes, global_pool, **_):
        sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.5}
        return vision_transformer.VisionTransformer(
            img_size=SIZE, class_token=False, act_layer="gelu_tanh", num_classes=num_classes,
            global_pool=global_pool, **sizes,
        )  # fmt: skip

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "vit_tiny_siglip_test",
                        vit_tiny_siglip_test)  # fmt: skip
    row = (32, 2, 4, 80, 8, SIZE, "gelu_tanh")
    monkeypatch.setitem(ours.TIMM_MODELS, "vit_tiny_siglip_test", row)
    return {
        "image_size": SIZE, "timm_model_name": "vit_tiny_siglip_test", "timm_pool": "map",
        "timm_proj": "none",
    }  # fmt: skip


def test_siglip_of_open_clip_and_big_vision(tmp_path, tiny_timm):
    """open_clip -> here -> big_vision's file, which open_clip reads; and that file -> here."""
    open_clip = pytest.importorskip("open_clip")
    from open_clip.convert import load_big_vision_weights

    config = {"embed_dim": 32, "vision_cfg": tiny_timm, "text_cfg": SIGLIP_TEXT}
    config["init_logit_bias"] = -10
    record = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    make = lambda: randomise(open_clip.CustomTextCLIP(**json.loads(json.dumps(config))))  # noqa: E731
    model, words = make(), tokens(640, 1)
    released, here, back = (tmp_path / x for x in ("released", "here", "back"))
    save(model, released, {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": record})
    vocabulary = f"sentencepiece:{VOCABULARY}"
    run("import", "open_clip", released, here, "--tokenizer", vocabulary)
    expected = theirs(model, words)
    close(features(here, words), expected)
    run("export", "open_clip", here, back)
    again = json.loads((back / ours.CONFIG).read_text())["model_cfg"]
    assert again.pop("custom_text") and again["vision_cfg"]["timm_model_name"]
    loaded = open_clip.CustomTextCLIP(**again)
    loaded.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in read_state(back).items()})
    close(theirs(loaded.eval(), words), expected, 0)
    npz = tmp_path / "siglip.npz"
    run("export", "siglip", here, npz)
    other = make()
    for parameter in other.parameters():
        parameter.data.zero_()
    load_big_vision_weights(other, str(npz))
    same_state({k: v.numpy() for k, v in other.state_dict().items()}, model.state_dict())
    # As training in a loop over the blocks leaves it.
    stored = dict(np.load(npz))
    for key in [key for key in stored if "encoderblock_0/" in key]:
        layers = range(2 if "img" in key else 3)
        blocks = [key.replace("encoderblock_0/", f"encoderblock_{i}/") for i in layers]
        whole = np.stack([stored.pop(block) for block in blocks])
        stored[key.replace("encoderblock_0/", "encoderblock/")] = whole
    np.savez(tmp_path / "looped.npz", **stored)
    for file in ("siglip.npz", "looped.npz"):
        target = tmp_path / f"of_{file}"
        run("import", "siglip", tmp_path / file, target, "--tokenizer", vocabulary)
        assert open_model(target).preprocess == open_model(here).preprocess
        same_state(
            {k: torch.tensor(v) for k, v in flat(target).items()},
            {k: torch.tensor(v) for k, v in flat(here).items()},
        )


def flat(directory):
    from big_vlp import trees

    return {key: np.asarray(x) for key, x in trees.flatten(open_model(directory).load()).items()}


@pytest.mark.parametrize("file", ["state.pt", "archive.pt"])
def test_openai_clip(tmp_path, file):
    """Half-precision weights, as a state dict, and in a TorchScript archive, as released."""
    open_clip = pytest.importorskip("open_clip")
    from open_clip.model import build_model_from_openai_state_dict, convert_weights_to_fp16

    wide = {"vision_cfg": {**VISION, "width": 128, "head_width": 64, "layers": 1}}
    wide["text_cfg"] = {**TEXT, "width": 64, "heads": 1, "layers": 1}
    model = randomise(open_clip.CLIP(20, **wide, quick_gelu=True))
    convert_weights_to_fp16(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model, words = model.float(), tokens(IDS, IDS - 1)
    if file == "state.pt":
        numbers = {"input_resolution": torch.tensor(SIZE), "context_length": torch.tensor(LENGTH)}
        torch.save({**state, **numbers}, tmp_path / file)
    else:
        torch.jit.script(Holder(state)).save(str(tmp_path / file))
    run("import", "openai_clip", tmp_path / file, tmp_path / "here")
    expected = theirs(model, words)
    close(features(tmp_path / "here", words), expected)
    run("export", "openai_clip", tmp_path / "here", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    loaded = build_model_from_openai_state_dict(back, cast_dtype=torch.float32).float()
    close(theirs(loaded, words), expected, 0)


class Holder(torch.nn.Module):
    """Modules with the tensors of a state dict."""

    def __init__(self, state):
        super().__init__()
        for key, value in state.items():
            module, names = self, key.split(".")
            for name in names[:-1]:
                if name not in module._modules:
                    module.add_module(name, Holder({}))
                module = module._modules[name]
            module.register_parameter(names[-1], torch.nn.Parameter(value))

    def forward(self, x):
        return x


TOWER = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
HF_TEXT = {**TOWER, "max_position_embeddings": LENGTH, "hidden_size": 32}


def hugging_face(kind):
    """(model, words, kind of vocabulary)."""
    transformers = pytest.importorskip("transformers")
    vision = {**TOWER, "hidden_size": 32, "patch_size": 8}
    if kind == "clip":
        text = {**HF_TEXT, "hidden_size": 24, "vocab_size": IDS, "eos_token_id": IDS - 1}
        config = transformers.CLIPConfig(
            vision_config={**vision, "image_size": SIZE, "hidden_act": "gelu"},
            text_config=text, projection_dim=20,
        )  # fmt: skip
        return randomise(transformers.CLIPModel(config)), tokens(IDS, IDS - 1)
    size = {"num_patches": 16} if kind == "siglip2" else {"image_size": SIZE}
    text = {**HF_TEXT, "vocab_size": 640}
    name = kind.capitalize()
    config = getattr(transformers, f"{name}Config")(
        vision_config={**vision, **size}, text_config=text
    )
    return randomise(getattr(transformers, f"{name}Model")(config)), tokens(640, 1)


def of_transformers(model, kind, words):
    pixels, given = torch.tensor(IMAGES).permute(0, 3, 1, 2), {}
    if kind == "siglip2":
        patches = IMAGES.reshape(2, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 192)
        pixels = torch.tensor(patches)
        given = {"pixel_attention_mask": torch.ones(2, 16, dtype=torch.long)}
        given["spatial_shapes"] = torch.tensor([[4, 4]] * 2)
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels, **given)
        text = model.get_text_features(input_ids=torch.tensor(words))
    return tuple(unit(getattr(x, "pooler_output", x)) for x in (image, text))


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_transformers(kind, tmp_path):
    model, words = hugging_face(kind)
    from transformers import AutoModel

    released, here, back = (tmp_path / x for x in ("released", "here", "back"))
    model.save_pretrained(released)
    processor(kind).save_pretrained(released)
    if kind == "siglip":
        shutil.copy(VOCABULARY, released / "spiece.model")
    if kind == "siglip2":
        small_vocabulary(released / "tokenizer.json")
    system = "clip_hf" if kind == "clip" else kind
    run("import", system, released, here)
    expected = of_transformers(model, kind, words)
    close(features(here, words), expected)
    run("export", system, here, back)
    loaded, info = AutoModel.from_pretrained(back, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not any(info.values()), info
    same_state({k: v.numpy() for k, v in loaded.state_dict().items()}, model.state_dict())
    close(of_transformers(loaded.eval(), kind, words), expected, 0)
    if kind != "siglip2":  # which keeps proportions
        image, data = picture(tmp_path)
        found = processor(kind, back)(images=image, return_tensors="pt")["pixel_values"][0]
        close([as_we_see(here, data)], [found.permute(1, 2, 0).numpy()], 1e-6)


def processor(kind, directory=None):
    """An image processor that resizes by PIL, as published numbers have it."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    found = {
        "clip": CLIPImageProcessorPil,
        "siglip": SiglipImageProcessorPil,
        "siglip2": Siglip2ImageProcessorPil,
    }[kind]
    if directory is not None:
        return found.from_pretrained(directory)
    square = {"height": SIZE, "width": SIZE}
    if kind == "clip":
        return found(size={"shortest_edge": SIZE + 4}, crop_size=square, image_mean=[0.4] * 3)
    return found(size=square) if kind == "siglip" else found(patch_size=8, max_num_patches=16)


def small_vocabulary(path, count=640):
    from tokenizers import Tokenizer, models

    words = ["<pad>", "<eos>", "<bos>", "<unk>", *map(str, range(count - 4))]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>")
    Tokenizer(model).save(str(path))


def test_clipa_tokens(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "dog", "##s", ".", "a", "'", "s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    made = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=8, strip_sep_token=True)
    texts = ["A red  dog.", "", "RED dogs' a a a a a a", "dog &amp; r\u00e9d\u4e00s", "dogs [sep]"]
    found = make_tokenizer(f"wordpiece:{tmp_path / 'vocab.txt'}")(texts, 8)
    np.testing.assert_array_equal(found, made(texts).numpy())
