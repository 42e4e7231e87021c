"""Models for Python programs: what they answer, for whatever they are given."""

import io
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import big_vlp
from big_vlp.api.conversation import Conversation
from big_vlp.api.errors import ModelError
from big_vlp.generation.beams import Beams
from big_vlp.generation.sampling import Sampling
from big_vlp.methods import make_method, segmentation
from big_vlp.storage.model_dir import Labels, open_model, save_model
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.images.crops import eval_image
from input_pipeline.preprocess import Preprocess
from input_pipeline.text.tokenizers import make_tokenizer
from tests.big_vlp.methods.toy_cogvlm_method import fast_jit, make_model
from tests.test_stored import EXPECTED, unpacked
from tests.tiny_config import get_config

CATLIP = {"width": 16, "layers": 1, "heads": 2, "num_positions": 4}
COGVLM = {
    "image": {
        **{"image_size": 28, "patch_size": 14},
        **{"width": 16, "layers": 1, "heads": 2, "mlp_dim": 32},
    },
    "text": {"vocab_size": 640, "width": 32, "layers": 1, "heads": 2, "mlp_dim": 32},
    "adapter_mlp_dim": 32,
}
WHOLE = Preprocess(image_size=32, resize="squash", interpolation="bilinear")
NAMES = ("cat", "dog", "sofa")
SECTIONS = {
    "catlip": ({"model": CATLIP, "num_classes": 3}, Preprocess(32), Labels(NAMES)),
    "transfer": (
        {
            "tower": "vit",
            "model": {"patch_size": 8, "width": 16, "layers": 1, "heads": 2, "embed_dim": 8},
            "num_classes": 3,
        },
        Preprocess(16),
        Labels(NAMES),
    ),
    "segmentation": (
        {
            "num_classes": 3,
            "model": {**CATLIP, "class_token": False, "output_stride": 8},
            "head": {"channels": 8, "rates": (1, 2)},
        },
        WHOLE,
        None,
    ),
    "cogvlm": (
        {"model": COGVLM},
        Preprocess(
            28, tokenizer="llama:scenes", context_length=64, resize="squash", image_token_size=14
        ),
        None,
    ),
}
for name in ("clip", "cosmos"):
    config = get_config(f"method={name}")
    section = config.method.to_dict()
    SECTIONS[section.pop("name")] = section, Preprocess(**config.preprocess), None
DIFFERENT = np.random.default_rng(0).integers(0, 256, (7, 20, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """{method: a directory of its model}, each made when it is asked for."""

    class Made(dict):
        def __missing__(self, name):
            arguments, preprocess, labels = SECTIONS[name]
            section = {"name": name, "dtype": "float32", **arguments}
            method = make_method(**section, preprocess=preprocess)
            items = {"model": make_model(method)}
            if name == "cosmos":
                items["averaged"] = make_model(method, seed=2)
            if name == "segmentation":  # else one class is everywhere
                bias = items["model"]["head"]["classifier"]["bias"]
                logits = predict(method, items["model"], "segment", image=DIFFERENT[:, :16, :16])
                bias -= logits.mean(axis=(0, 1, 2))
            self[name] = tmp_path_factory.mktemp(name) / "model"
            save_model(self[name], items, section, preprocess, labels)
            return self[name]

    return Made()


@pytest.fixture(scope="module")
def models(directories):
    class Loaded(dict):
        def __missing__(self, name):
            self[name] = big_vlp.load(directories[name], batch_size=4)
            return self[name]

    return Loaded()


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def predict(method, model, name, **batch):
    return np.asarray(fast_jit(method.predict_fns()[name])(model, batch))


def predicted(directory, name, weights=None, **batch):
    stored = open_model(directory, weights)
    return predict(stored.make_method(), stored.load(), name, **batch)


def pixels_of(model, images):
    return np.stack([eval_image(png(image), model.preprocess) for image in images])


def test_importing_the_package_is_quick():
    code = "import sys, big_vlp; sys.exit('jax' in sys.modules or not callable(big_vlp.load))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "name, can",
    [
        ("clip", "encode_image encode_text similarity zero_shot segment_named"),
        ("cosmos", "encode_image encode_text similarity zero_shot segment_named attention_maps"),
        ("catlip", "encode_image classify words"),
        ("transfer", "encode_image classify words"),
        ("segmentation", "segment"),
        ("cogvlm", "generate"),
    ],
)
def test_what_models_can(models, name, can):
    assert models[name].can == tuple(can.split())
    assert all(word in repr(models[name]) for word in (name, can.split()[0]))


# Features


@pytest.mark.parametrize(
    "name, function",
    [("clip", "encode_image"), ("cosmos", "encode_image"), ("catlip", "features")],
)
def test_images_are_encoded_as_in_evaluation(models, directories, name, function):
    model = models[name]
    found = model.encode_image(DIFFERENT)
    pixels = pixels_of(model, DIFFERENT)
    expected = predicted(directories[name], function, image=pixels)
    assert found.dtype == np.float32 and isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_named_classes_of_pixels(models):
    model, images = models["cosmos"], [DIFFERENT[0], DIFFERENT[1].swapaxes(0, 1)]
    found = model.segment_named(images, ["red", ["green", "cat"], "blue"])
    assert [labels.shape for labels in found] == [(20, 30), (30, 20)]
    assert {-1, 0, 1, 2} >= set(np.unique(found[0])) != {-1}
    others = model.segment_named(images, ["blue", ["cat", "green"], "red"])
    for labels, other in zip(found, others):
        np.testing.assert_array_equal(np.where(labels < 0, labels, 2 - labels), other)
    [nothing] = model.segment_named(images[0], ["red"])
    assert not nothing.any()
    # Who has the name first has it, as in evaluation.
    [twice] = model.segment_named(images[0], ["red", ["green", "red"], "blue"])
    [once] = model.segment_named(images[0], ["red", "green", "blue"])
    np.testing.assert_array_equal(twice, once)
    for names in (3, [3], ["sky", []]):
        with pytest.raises(ModelError, match="class_names"):
            model.segment_named(images[0], names)


def test_prompts_of_the_same_names_are_encoded_once(models, monkeypatch):
    model, asked = models["clip"], []
    encode = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda texts: asked.append(texts) or encode(texts))
    first = model.zero_shot(DIFFERENT[0], ["a boat", "a sea"])
    np.testing.assert_array_equal(model.zero_shot(DIFFERENT[0], ["a boat", "a sea"]), first)
    model.zero_shot(DIFFERENT[0], ["a sea", "a boat"])
    assert len(asked) == 2


def test_attention_maps_are_the_methods(models, directories):
    model, texts = models["cosmos"], ["a red circle", "two dogs and a cat"]
    patches, words = model.attention_maps(DIFFERENT[:2], texts)
    batch = {"image": pixels_of(model, DIFFERENT[:2]), "tokens": make_tokenizer("clip")(texts, 16)}
    stored = open_model(directories["cosmos"])
    expected = fast_jit(stored.make_method().predict_fns()["attention_maps"])(stored.load(), batch)
    np.testing.assert_allclose(patches.reshape(2, -1), expected[0].mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(words, expected[1].mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(patches.sum(axis=(1, 2)), 1, atol=1e-5)


def test_texts_are_encoded_as_in_evaluation(models, directories):
    texts = ["a red circle", "Two DOGS &amp; a cat", "", "so many words that they do not fit " * 3]
    tokens = make_tokenizer("clip")(texts, 16)
    expected = predicted(directories["cosmos"], "encode_text", tokens=tokens)
    np.testing.assert_allclose(models["cosmos"].encode_text(texts), expected, atol=1e-5)
    np.testing.assert_allclose(models["cosmos"].encode_text(texts[1]), expected[1:2], atol=1e-5)


def test_any_number_in_order_whatever_the_batches(models):
    model = models["clip"]
    all_at_once = model.encode_image(DIFFERENT)
    one_by_one = [model.encode_image(image) for image in DIFFERENT]
    np.testing.assert_allclose(np.concatenate(one_by_one), all_at_once, atol=1e-6)
    for count in (0, 1, 2, 4, 5):
        found = model.encode_image(DIFFERENT[:count])
        assert found.shape == (count, 16)
        np.testing.assert_allclose(found, all_at_once[:count], atol=1e-6)
    np.testing.assert_allclose(model.encode_image(DIFFERENT[::-1]), all_at_once[::-1], atol=1e-6)
    assert model._fns["encode_image"]._cache_size() == 2  # of one image, and of a batch
    assert model.encode_text([]).shape == (0, 16)


def test_images_of_every_kind_are_the_same(models, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(DIFFERENT[0]))
    kinds = [
        str(path),
        path,
        path.read_bytes(),
        Image.open(path),
        DIFFERENT[0],
        np.asfortranarray(DIFFERENT[0]),
        Image.fromarray(DIFFERENT[0]).convert("RGBA"),
    ]
    model = models["clip"]
    expected = model.encode_image([DIFFERENT[0], DIFFERENT[1]])[:1]
    for features in (model.encode_image(kinds), model.encode_image(iter(kinds))):
        np.testing.assert_allclose(features, np.repeat(expected, len(kinds), axis=0), atol=1e-6)
    for one in kinds:
        np.testing.assert_allclose(model.encode_image(one), expected, atol=1e-6)


def test_deep_pil_images_are_as_their_files(models):
    data = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)).save(data, "PNG")
    file, image = models["clip"].encode_image([data.getvalue(), Image.open(data)])
    np.testing.assert_array_equal(file, image)


def test_the_average_is_the_default(directories):
    directory = directories["cosmos"]
    for weights, read in ((None, "averaged"), ("model", "model")):
        model = big_vlp.load(directory, weights, step=0)
        expected = predicted(directory, "encode_image", read, image=pixels_of(model, DIFFERENT))
        np.testing.assert_allclose(model.encode_image(DIFFERENT), expected, atol=1e-5)
        assert model.stored.weights == read


@pytest.mark.parametrize("name", ["model", "cosmos"])
def test_what_a_run_left(name, tmp_path):
    pixels = (np.arange(2 * 16 * 16 * 3).reshape(2, 16, 16, 3) * 7 % 256).astype(np.uint8)
    found = big_vlp.load(unpacked(name, tmp_path)).encode_image(pixels)
    assert found.shape == (2, 4)
    if name == "model":
        np.testing.assert_allclose(found, EXPECTED["model"]["image"], atol=1e-5)


# Pairs


def test_similarities_are_cosines(models):
    model = models["cosmos"]
    found = model.similarity(DIFFERENT, ["a dog", "a cat"])
    image, text = model.encode_image(DIFFERENT), model.encode_text(["a dog", "a cat"])
    assert found.shape == (7, 2) and np.abs(found).max() <= 1
    np.testing.assert_allclose(found, image @ text.T, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-5)


def test_zero_shot(models, directories):
    model, templates = models["clip"], ("a photo of a {}.", "{} there")
    found = model.zero_shot(DIFFERENT, NAMES, templates)
    classes = [
        model.encode_text([t.format(name) for t in templates]).mean(axis=0) for name in NAMES
    ]
    classes = np.stack([x / np.linalg.norm(x) for x in classes])
    scale = np.exp(open_model(directories["clip"]).load()["logit_scale"])
    expected = jax.nn.softmax(scale * model.encode_image(DIFFERENT) @ classes.T)
    assert found.shape == (7, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - model.zero_shot(DIFFERENT, NAMES)).max() > 1e-4
    single = model.zero_shot(DIFFERENT, NAMES, "a photo of a {}.")
    np.testing.assert_array_equal(single, model.zero_shot(DIFFERENT, NAMES))


def test_an_example(directories, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(png(DIFFERENT[0]))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(directories["cosmos"])
    text = (Path(__file__).parents[3] / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(import big_vlp.*?)^```", text, re.M | re.S)
    exec(example, {})
    assert capsys.readouterr().out.count("[[") == 2


# Classes


@pytest.mark.parametrize("name", ["catlip", "transfer"])
def test_the_most_probable_classes(models, directories, name):
    model = models[name]
    pixels = pixels_of(model, DIFFERENT)
    expected = predicted(directories[name], "probabilities", image=pixels)
    found = model.classify(DIFFERENT, top=2)
    assert model.class_names == NAMES and len(found) == 7
    for classes, row in zip(found, expected):
        assert len(classes) == 2 and classes[0][1] >= classes[1][1] >= row.min()
        for class_name, probability in classes:
            assert probability == pytest.approx(row[NAMES.index(class_name)], abs=1e-5)
    (all_classes,) = model.classify(DIFFERENT[0], top=99)
    assert {class_name for class_name, _ in all_classes} == set(NAMES)


def test_every_pixel_gets_a_class(models, directories):
    model = models["segmentation"]
    images = [*DIFFERENT[:5], np.rot90(DIFFERENT[5]), DIFFERENT[6][:9, :9]]
    found = model.segment(images)
    logits = predicted(
        directories["segmentation"], "segment", image=pixels_of(model, map(np.array, images))
    )
    for classes, image, rows in zip(found, images, logits):
        assert classes.shape == image.shape[:2] and classes.dtype == np.int32
        expected = segmentation.upsample(jnp.asarray(rows[None]), classes.shape)[0].argmax(-1)
        assert (classes == expected).mean() > 0.99
    assert all(len(np.unique(classes)) > 1 for classes in found[:6])
    np.testing.assert_array_equal(model.segment(images[5])[0], found[5])


# Text about images


def test_answers(models):
    model, options = models["cogvlm"], {"template": "base", "max_new_tokens": 5}
    prompts, writer = ["", "a circle", "which?"], model._writer
    conversations = [Conversation(writer, [png(image)], "base") for image in DIFFERENT[:3]]
    for images, prompts_, pairs in (
        (DIFFERENT[:3], prompts, [(0, 0), (1, 1), (2, 2)]),
        (DIFFERENT[:3], "which?", [(0, 2), (1, 2), (2, 2)]),
        (DIFFERENT[0], prompts, [(0, 0), (0, 1), (0, 2)]),
    ):
        expected = []
        for image, prompt in pairs:
            conversations[image].history.clear()
            answer = conversations[image].ask(prompts[prompt], max_new_tokens=5)
            expected.append(answer.text.strip())
        assert model.generate(images, prompts_, **options) == expected
    assert len(set(expected)) > 1
    (text,) = model.generate(prompts="a red", **options)
    assert isinstance(text, str)
    assert model.generate([], **options) == []
    assert len(model.generate(DIFFERENT[0], "a", strategy=Beams(2), **options)) == 1


def test_sampling_follows_the_seed(models):
    options = {"template": "base", "max_new_tokens": 8, "strategy": Sampling(9.0)}
    texts = [
        models["cogvlm"].generate(DIFFERENT[0], "a", seed=seed, **options) for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


# What cannot be


@pytest.mark.parametrize(
    "name, ask, message",
    [
        ("catlip", lambda m: m.encode_text("a"), "'catlip', which cannot encode_text; it can enc"),
        ("catlip", lambda m: m.similarity(DIFFERENT, "a"), "cannot similarity"),
        ("clip", lambda m: m.classify(DIFFERENT), "'clip', which cannot classify"),
        ("clip", lambda m: m.segment(DIFFERENT), "cannot segment"),
        ("segmentation", lambda m: m.encode_image(DIFFERENT), "it can segment"),
        ("clip", lambda m: m.generate(DIFFERENT), "cannot generate"),
        ("cogvlm", lambda m: m.zero_shot(DIFFERENT, ["a"]), "it can generate"),
        ("cosmos", lambda m: m.segment_named(DIFFERENT, "sky"), "give a list of names"),
        ("cosmos", lambda m: m.attention_maps(DIFFERENT, "sky"), "7 images and 1 captions"),
        ("clip", lambda m: m.encode_image(["no/where.jpg"]), "no/where.jpg: No such file"),
        ("clip", lambda m: m.encode_image("az://bucket/a.jpg"), "is a URL"),
        ("clip", lambda m: m.encode_image([DIFFERENT[0], b"text"]), r"images\[1\]: cannot decode"),
        ("segmentation", lambda m: m.segment([DIFFERENT[0], b"text"]), r"images\[1\]: cannot"),
        ("clip", lambda m: m.encode_image(None), "images is of type NoneType; give a path"),
        ("clip", lambda m: m.encode_image([DIFFERENT]), r"uint8\[7, 20, 30, 3\]; give a path"),
        (
            "clip",
            lambda m: m.encode_image(DIFFERENT / 255),
            r"images\[0\]: .* float64\[20, 30, 3\]",
        ),
        ("clip", lambda m: m.encode_image(DIFFERENT[0, 0]), r"uint8\[30, 3\]"),
        ("clip", lambda m: m.encode_image([[1]]), r"images\[0\]: it is of type list"),
        ("clip", lambda m: m.encode_image(Image.new("F", (9, 9))), "mode 'F'"),
        ("clip", lambda m: m.encode_image(Image.new("RGB", (9, 9999))), "more than 256 times"),
        ("clip", lambda m: m.encode_text(["a", 2]), r"texts\[1\] is of type int"),
        ("clip", lambda m: m.encode_text(["\udce9"]), r"texts\[0\]: the text .* Unicode"),
        ("clip", lambda m: m.zero_shot(DIFFERENT, "cat"), "class_names='cat': give a list"),
        ("clip", lambda m: m.zero_shot(DIFFERENT, []), "class_names is empty"),
        ("clip", lambda m: m.zero_shot(DIFFERENT, ["a"], ["{} {}"]), r"one {} each; got \['{} {}"),
        ("catlip", lambda m: m.classify(DIFFERENT, top=0), "top=0: give a whole number"),
        ("catlip", lambda m: m.classify(DIFFERENT, top=1.5), "top=1.5"),
        ("cogvlm", lambda m: m.generate(DIFFERENT[:2], ["a"] * 3), "2 images and 3 prompts"),
        ("cogvlm", lambda m: m.generate([b"text"]), r"images\[0\]: cannot decode"),
        ("cogvlm", lambda m: m.generate(DIFFERENT[0], "a " * 99, "base"), "context takes 64"),
        ("cogvlm", lambda m: m.generate(DIFFERENT[0], "a", "ask"), "template: Unknown template"),
        ("cogvlm", lambda m: m.generate(None, "a", "grounding"), "needs an image"),
        ("cogvlm", lambda m: m.generate(DIFFERENT[0], "[[1,2]]", "grounding"), r"prompts\[0\]: T"),
        ("cogvlm", lambda m: m.generate(DIFFERENT[0], max_new_tokens=0), "max_new_tokens=0"),
        ("cogvlm", lambda m: m.generate(DIFFERENT[0], strategy=Beams(0)), "strategy: Beam search"),
    ],
)
def test_what_cannot_be_asked(models, name, ask, message):
    with pytest.raises(BigVlpError, match=message) as raised:
        ask(models[name])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"directory": "nowhere"}, "no model directory"),
        ({"directory": "az://bucket/run"}, "is a URL"),
        ({"weights": "averaged"}, "no 'averaged' weights"),
        ({"step": 3}, "has no checkpoint of step 3"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_loaded(directories, options, message):
    with pytest.raises(BigVlpError, match=message):
        big_vlp.load(**{"directory": directories["clip"], **options})


def test_classes_without_names(tmp_path):
    arguments, preprocess, _ = SECTIONS["transfer"]
    section = {"name": "transfer", "dtype": "float32", **arguments}
    model = make_model(make_method(**section, preprocess=preprocess))
    save_model(tmp_path / "model", {"model": model}, section, preprocess, None)
    with pytest.raises(BigVlpError, match=r"has no labels\.json"):
        big_vlp.load(tmp_path / "model").classify(DIFFERENT)


def test_a_tokenizer_that_is_missing_is_named(tmp_path):
    arguments, _, _ = SECTIONS["cogvlm"]
    preprocess = Preprocess(
        28, tokenizer="llama:nowhere", context_length=64, resize="squash", image_token_size=14
    )
    section = {"name": "cogvlm", **arguments}
    save_model(tmp_path / "model", {"model": {"a": np.zeros(1)}}, section, preprocess, None)
    with pytest.raises(BigVlpError, match="No SentencePiece model at 'nowhere'"):
        big_vlp.load(tmp_path / "model")
