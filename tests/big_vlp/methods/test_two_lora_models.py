"""Several LoRA models of one architecture in a process: each gives its own answers.

They differ in nothing that jax sees: shapes, structure and the model's own options are the same.
"""

import jax
import numpy as np
import pytest

from big_vlp.api.writer import Writer, lay_out
from big_vlp.generation.beams import Beams
from big_vlp.generation.sampling import Sampling, generate, stream
from big_vlp.storage.model_dir import save_model
from tests.big_vlp.methods.toy_cogvlm_method import (
    EOS,
    TEXT_ONLY,
    fast_jit,
    make,
    make_batch,
    make_model,
)

# The smallest that writes: one block of a language model.
TEXT = {"vocab_size": 640, "width": 8, "layers": 1, "heads": 2, "mlp_dim": 8}
MODEL = {"text": TEXT, "expert_parts": ()}
LORA = {"kernels": ("language/.*",), "rank": 2}
KEY = jax.random.key(3)


def method_of(alpha=None, **changes):
    lora = None if alpha is None else {**LORA, "alpha": alpha, **changes}
    return make(TEXT_ONLY, model=MODEL, lora=lora, max_new_tokens=3)


@pytest.fixture(scope="module")
def batch():
    return make_batch(slots=0)


@pytest.fixture(scope="module")
def params():
    return make_model(method_of(1.0))


def one_by_one(*args, **options):
    tokens = list(stream(*args, **options))
    return np.stack([*tokens, *[0 * tokens[0]] * (3 - len(tokens))], axis=1)


@pytest.mark.parametrize(
    "write, strategy",
    [
        pytest.param(generate, None, id="greedy"),
        pytest.param(generate, Sampling(2.0), id="sampling", marks=pytest.mark.slow),
        pytest.param(generate, Beams(2), id="beams", marks=pytest.mark.slow),
        pytest.param(one_by_one, None, id="stream"),
    ],
)
def test_each_writes_what_its_merged_weights_write(batch, params, write, strategy):
    options = dict(max_new_tokens=3, eos_id=EOS, strategy=strategy, key=KEY)

    def run(method, params):
        with method.lora_active():
            rows = batch["tokens"], batch["token_types"]
            return np.asarray(write(method.network, params, *rows, **options))

    methods = [method_of(0.0), method_of(8.0)]
    found = [run(method, params) for method in methods]
    expected = [run(method_of(), fast_jit(method.merged)(params)) for method in methods]
    np.testing.assert_array_equal(found, expected)
    assert (found[0] != found[1]).any()


def test_what_evaluators_call_is_of_each_model():
    """Also where the layers that have factors differ."""
    image = {"image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "heads": 2, "mlp_dim": 8}
    model = {"image": image, "text": TEXT, "adapter_mlp_dim": 8}
    changes = [{"alpha": 0.0}, {"alpha": 8.0}, {"alpha": 8.0, "kernels": (".*/qkv/kernel",)}]
    sections = [None, *({**LORA, **change} for change in changes)]
    plain, *methods = (make(model=model, lora=lora, max_new_tokens=3) for lora in sections)
    models, batch = [make_model(method) for method in methods], make_batch()

    def answers(method):
        return fast_jit(method.predict_fns()["generate"])

    found = [np.asarray(answers(m)(params, batch)) for m, params in zip(methods, models)]
    write = answers(plain)
    expected = [write(fast_jit(m.merged)(params), batch) for m, params in zip(methods, models)]
    np.testing.assert_array_equal(found, expected)
    assert all((found[0] != other).any() for other in found[1:])


def test_one_compiled_function_serves_every_scale(params):
    """A function of the user's own, not one of this library."""
    model, tokens = method_of().network, np.arange(3, 9, dtype=np.int32)[None]
    logits = fast_jit(lambda p: model.apply({"params": p}, None, tokens, 0 * tokens)[0, -1])
    found = []
    for alpha in (0.0, 8.0, 0.0):
        with method_of(alpha).lora_active():
            found.append(logits(params))
    assert np.abs(found[0] - found[1]).max() > 0.1
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.slow
def test_writers_of_two_directories(tmp_path, params):
    """What the commands that write and converse do, in one process."""
    answers = []
    for alpha in (0.0, 8.0, None):
        section = {"name": "cogvlm", "model": MODEL, "dtype": "float32"}
        weights = params if alpha is not None else fast_jit(method_of(8.0).merged)(params)
        if alpha is not None:
            section["lora"] = {**LORA, "alpha": alpha}
        save_model(tmp_path / str(alpha), {"model": weights}, section, TEXT_ONLY, None)
        writer = Writer(str(tmp_path / str(alpha)))
        answers.append(writer.write(lay_out(writer.rows, "", 0), None, 3))
    assert answers[0] != answers[1] == answers[2]
