"""The command that writes, with a language model that sees no images."""

import jax
import numpy as np
import pytest
from PIL import Image

import big_vlp
from big_vlp.generate import main
from big_vlp.storage.model_dir import save_model
from input_pipeline.preprocess import Preprocess
from input_pipeline.text.tokenizers import make_tokenizer
from tests.big_vlp.methods.toy_cogvlm_method import make, make_model

PREPROCESS = Preprocess(28, tokenizer="llama:scenes", context_length=16, resize="squash")
TOKENIZER = make_tokenizer("llama:scenes")
TEXT = {"vocab_size": TOKENIZER.vocab_size, "width": 16, "layers": 1, "heads": 2, "mlp_dim": 16}
SECTION = {"name": "cogvlm", "model": {"text": TEXT, "expert_parts": ()}, "dtype": "float32"}


@pytest.fixture(scope="module")
def method():
    return make(PREPROCESS, model=SECTION["model"])


@pytest.fixture(scope="module")
def model(method):
    return make_model(method)


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, {"model": model}, SECTION, PREPROCESS, None)
    return str(directory)


def test_it_goes_on_with_a_text(method, model, directory, capsys):
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode("a red")]
    start = len(ids)
    run = jax.jit(lambda row: method.network.apply({"params": model}, None, row, row * 0))
    for _ in range(4):
        row = np.array([ids + [0] * (start + 4 - len(ids))])  # nobody sees what follows
        ids.append(int(run(row)[0, len(ids) - 1].argmax()))
    assert TOKENIZER.eos_id not in ids and len(set(ids[start:])) > 1
    arguments = ["--prompt", "a red", "--template", "base", "--max-new-tokens", "4"]
    assert main(["--model", directory, *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.out == TOKENIZER.decode(ids[start:]) + "\n"
    assert "error" not in captured.err
    options = {"template": "base", "max_new_tokens": 4}
    texts = big_vlp.load(directory).generate(prompts="a red", **options)
    assert texts == [TOKENIZER.decode(ids[start:]).strip()]


def test_images_are_refused(directory, tmp_path, capsys):
    path = tmp_path / "image.png"
    Image.new("RGB", (30, 20)).save(path)
    assert main(["--model", directory, "--image", str(path), "--prompt", "what?"]) == 1
    assert "image" in capsys.readouterr().err
