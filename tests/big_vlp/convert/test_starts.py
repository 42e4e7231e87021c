"""Starts that the released form has no place for: EVA02-CLIP-L's tower, a language model alone."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from big_vlp import trees
from big_vlp.convert.__main__ import main
from big_vlp.convert.cogvlm import starts
from big_vlp.convert.common import ConversionError
from big_vlp.convert.files import write_state
from big_vlp.storage.model_dir import open_model
from tests.big_vlp.convert.toy_cogvlm_files import (
    LLAMA_CONFIG,
    eva02_state,
    eva_state,
    llama_state,
)

CONFIG = {**LLAMA_CONFIG, "vocab_size": 640}
TIMM = {
    "attn.q_bias": "attn.q_proj.bias",
    "attn.v_bias": "attn.v_proj.bias",
    "attn.inner_attn_ln": "attn.norm",
    "mlp.w1": "mlp.fc1_g",
    "mlp.w2": "mlp.fc1_x",
    "mlp.w3": "mlp.fc2",
    "mlp.ffn_ln": "mlp.norm",
}


def same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(value), err_msg=path)


def test_both_libraries_names_are_one_tower():
    eva = eva02_state()
    renamed = {}
    for key, value in eva.items():
        key = key.replace("visual.", "visual.trunk.")
        for theirs, timms in TIMM.items():
            key = key.replace(theirs, timms)
        renamed[key] = value
    assert starts.is_eva02(eva) and starts.is_eva02(renamed) and not starts.is_eva02(eva_state())
    (params, sizes), (others, also) = map(starts.eva02_tower, (eva, renamed))
    same(params, others)
    assert sizes == also
    assert sizes == dict(image_size=8, patch_size=4, width=64, layers=2, heads=1, mlp_dim=20)
    blocks = params["transformer"]["blocks"]
    up = np.asarray(blocks["mlp"]["up"]["kernel"])
    np.testing.assert_array_equal(up[1].T, eva["visual.blocks.1.mlp.w2.weight"])
    del eva["visual.blocks.0.attn.v_bias"]
    with pytest.raises(ConversionError, match=r"EVA02.*\n  missing: blocks\.0\.attn\.v_proj\.bias"):
        starts.eva02_tower(eva)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_commands(tmp_path, kv_heads):
    llama, eva = tmp_path / "llama", tmp_path / "eva.safetensors"
    write_state(llama, llama_state(kv_heads, vocab_size=640))
    config = {**CONFIG, "num_key_value_heads": kv_heads, "rope_theta": 20000.0}
    (llama / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(eva02_state(), eva)
    tokenizer = ["--tokenizer", "llama:scenes"]
    alone, whole = tmp_path / "alone", tmp_path / "whole"
    assert main(["import", "llama", str(llama), str(alone), *tokenizer]) == 0
    arguments = ["import", "cogvlm_parts", str(llama), str(whole), "--eva", str(eva), *tokenizer]
    assert main([*arguments, "--image-size", "16"]) == 0
    alone, whole = map(open_model, (alone, whole))
    models = alone.load(), whole.load()
    for stored, model in zip((alone, whole), models):
        method = stored.make_method("cogvlm")
        assert not trees.differences(trees.flatten(method.shapes[0]), trees.flatten(model))
        assert method.network.text["rope_base"] == 20000.0
    assert [stored.make_method().network.text["pad_id"] for stored in (alone, whole)] == [0, 0]
    assert alone.preprocess.image_token_size is None and set(models[0]) == {"language"}
    assert (whole.preprocess.image_size, whole.preprocess.image_token_size) == (16, 4)
    assert whole.make_method().network.tower == "eva02"
    blocks = models[1]["language"]["blocks"]
    same(blocks["vision"], blocks["language"])
    same(blocks["language"], models[0]["language"]["blocks"]["language"])
    same(models[1]["vision"], starts.eva02_tower(eva02_state())[0])
    assert np.std(np.float32(models[1]["adapter"]["linear"]["kernel"])) > 0


@pytest.mark.parametrize("given, expected", [({}, 639), ({"pad_token_id": 0}, 0)])
@pytest.mark.parametrize("tower", [None, eva_state, eva02_state])
def test_where_the_language_model_tells_no_padding_the_tokenizer_does(
    tmp_path, tower, given, expected
):
    """As Llama 3's config.json tells none; token 0 is a word there, and must be learnt."""
    llama, eva, target = tmp_path / "llama", tmp_path / "eva.safetensors", tmp_path / "model"
    write_state(llama, llama_state(vocab_size=640))
    (llama / "config.json").write_text(json.dumps({**CONFIG, **given}))
    names = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>")
    words = tokenizers.models.BPE(vocab={f"<{i}>": i for i in range(637)}, merges=[])
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.add_special_tokens(list(names))
    tokenizer.save(str(llama / "tokenizer.json"))
    arguments = ["import", "llama", str(llama), str(target)]
    if tower is not None:
        safetensors.numpy.save_file(tower(width=64), eva)
        arguments[1:2] = ["cogvlm_parts"]
        arguments += ["--eva", str(eva)]
    assert main(arguments) == 0
    assert open_model(target).make_method().network.text["pad_id"] == expected
