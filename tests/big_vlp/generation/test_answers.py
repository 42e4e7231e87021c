"""What evaluators call: rows in turns, weights made for writing."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.generation import answers
from big_vlp.generation.answers import Generate, in_turns
from big_vlp.generation.beams import Beams
from big_vlp.methods import make_method
from big_vlp.parallel.meshes import make_mesh
from evaluators.shared.rows import RowMap
from input_pipeline.preprocess import Preprocess
from input_pipeline.views.cogvlm import Rows
from tests.big_vlp.generation.toy_generation import IMAGE, TEXT, stronger

PREPROCESS = Preprocess(
    28, image_token_size=14, context_length=12, tokenizer="llama:scenes", resize="squash"
)
ROWS = Rows.of(PREPROCESS)


def method_of(dtype="float32", **changes):
    model = {
        "image": IMAGE,
        "text": {**TEXT, "vocab_size": ROWS.text.vocab_size, **changes.pop("text", {})},
        "adapter_mlp_dim": 16,
        "expert_parts": changes.pop("expert_parts", ["qkv", "out", "mlp"]),  # as in a config
    }
    return make_method("cogvlm", preprocess=PREPROCESS, model=model, dtype=dtype, **changes)


def test_rows_do_not_depend_on_those_beside_them_nor_on_turns():
    method = method_of()
    params = stronger(jax.jit(method.init)(jax.random.key(0))[0])
    images = np.random.default_rng(0).integers(0, 255, (3, 1, 28, 28, 3), np.uint8)
    prompts = [ROWS.prompt(text) for text in ("Question: how many?", "", "a b")]

    def load(row):
        return {"images": images[row], **prompts[row]}

    in_turns = Generate(method, ROWS, 4, row_bytes=1)
    with jax.default_matmul_precision("highest"):
        found = RowMap(in_turns, make_mesh())(params, load, 3, batch_size=2)
        assert found.shape == (3, 4) and found.dtype == np.int32
        fn = jax.jit(Generate(method, ROWS, 4))
        for i, prompt in enumerate(prompts):
            batch = {"images": images[i : i + 1], **{k: v[None] for k, v in prompt.items()}}
            np.testing.assert_array_equal(fn(params, batch)[0], found[i])
        other = dict(batch, images=255 - batch["images"])
        assert (np.asarray(fn(params, other)) != found[2]).any()
        beams = jax.jit(Generate(method, ROWS, 4, Beams(2)))
        assert beams(params, batch).shape == (1, 4)


@pytest.mark.parametrize(
    "size, most, turns", [(7, 7, 1), (7, 9, 1), (7, 4, 2), (7, 3, 3), (6, 1, 6)]
)
def test_turns(size, most, turns):
    batch, shapes = {"a": np.arange(size), "b": np.arange(4 * size).reshape(size, 2, 2)}, []

    def fn(rows):
        shapes.append(rows["a"].shape)
        return rows["a"][:, None] + rows["b"].sum(axis=2)

    expected = fn(batch)
    shapes.clear()
    np.testing.assert_array_equal(in_turns(fn, batch, most), expected)
    assert set(shapes) == {(-(-size // turns),)} and shapes[0][0] <= most


@pytest.mark.parametrize("beams", [None, Beams(3)])
def test_a_turn_has_as_many_rows_as_fit(beams):
    method = method_of("bfloat16", text={"kv_heads": 2})
    params = method.shapes[0]
    row = 2 * 2 * 2 * 2 * 8  # keys and values, layers, heads, head size, bytes
    count = beams.count if beams else 1
    taken = row * (30 + 5 * count) + 4 * count * ROWS.text.vocab_size
    for row_bytes, rows in [(taken - 1, 1), (2 * taken, 2), (3 * taken - 1, 2), (1, 1)]:
        generate = Generate(method, ROWS, 5, beams, row_bytes=row_bytes)
        assert generate._rows_at_once(params, 30) == rows


def test_weights_for_writing():
    """In the compute dtype what every token needs; what need not change is the same array, and so
    are LoRA's factors, whose smallest changes kernels would lose."""
    method = method_of("bfloat16", lora={"kernels": [".*/attn/out/kernel"], "rank": 2, "alpha": 3})
    rng = np.random.default_rng(0)
    model = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), method.shapes[0])
    before = trees.flatten(model)
    found = trees.flatten(method.predict_fns()["generate"].weights(model))
    for path, value in before.items():
        name = path.split("/")[-1]
        unread = not path.startswith("language/") or "/vision/" in path
        if unread or name in ("lora_a", "lora_b", "scale"):
            assert found[path] is value, path
        else:
            np.testing.assert_array_equal(found[path], value.astype(jnp.bfloat16), path)
            assert found[path].dtype == jnp.bfloat16
    again = trees.flatten(method_of("bfloat16").for_writing(trees.unflatten(found)))
    assert all(again[path] is value for path, value in found.items())


def test_settings_are_those_that_answers_depend_on():
    def settings(*args, **changes):
        return Generate(method_of(**changes), ROWS, *(args or (4,))).settings

    lora = {"kernels": [".*/attn/out/kernel"], "rank": 2, "alpha": 3}
    found = [
        settings(),
        settings(5),
        settings(4, Beams(2)),
        settings(4, Beams(3)),
        settings(dtype="bfloat16"),
        settings(text={"heads": 2}),
        settings(lora=lora),
        settings(lora=lora | {"alpha": 4}),
    ]
    assert len(set(found)) == len(found) and settings() == found[0]
    assert not any(" at 0x" in text for text in found)
    with mock.patch.object(answers, "__version__", "another"):
        assert settings() not in found


def test_less_padding_gives_the_same_answers():
    method = method_of()
    params = stronger(jax.jit(method.init)(jax.random.key(0))[0])
    images = np.random.default_rng(0).integers(0, 255, (2, 1, 28, 28, 3), np.uint8)
    prompts = [ROWS.prompt(text) for text in ("how many?", "a b")]
    batch = {key: np.stack([prompt[key] for prompt in prompts]) for key in prompts[0]}
    fn = jax.jit(Generate(method, ROWS, 4))
    with jax.default_matmul_precision("highest"):
        whole = np.asarray(fn(params, {"images": images, **batch}))
        cut = {key: value[:, : 1 + ROWS.num_slots + 6] for key, value in batch.items()}
        assert (batch["token_types"][:, 1 + ROWS.num_slots + 6 :] == -1).all()
        np.testing.assert_array_equal(whole, fn(params, {"images": images, **cut}))
