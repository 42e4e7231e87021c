"""CogVLM's converter: exact both ways, strict, other names, and files larger than memory."""

import jax
import ml_dtypes
import numpy as np
import pytest

from big_vlp import trees
from big_vlp.convert.cogvlm.names import from_config, from_reference, to_config, to_reference
from big_vlp.convert.cogvlm.parts import from_parts, from_sat
from big_vlp.convert.common import ConversionError
from big_vlp.convert.files import read_state, write_state
from big_vlp.models.cogvlm import CogVLM
from tests.big_vlp.convert.toy_cogvlm_files import LLAMA_CONFIG, eva_state, llama_state, sat_name

IMAGE = {"image_size": 8, "patch_size": 4, "width": 12, "layers": 2, "heads": 2, "mlp_dim": 20}
TEXT = {"vocab_size": 30, "width": 16, "layers": 3, "heads": 4, "mlp_dim": 24}
COGVLM2 = {
    "image": {**IMAGE, "image_size": 16, "downsample": True},
    "text": {**TEXT, "kv_heads": 2, "rope_base": 500000.0, "pad_id": 7},
    "expert_qkv_bias": True,
}
VARIANTS = {"cogvlm": {}, "cogvlm2": COGVLM2}


def arguments_of(**changes):
    return {"image": IMAGE, "text": TEXT, "adapter_mlp_dim": 28, **changes}


def arbitrary(arguments, dtype=np.float32):
    size = arguments["image"]["image_size"]
    images, tokens = np.zeros((1, 1, size, size, 3)), np.zeros((1, 1), np.int32)
    shapes = jax.eval_shape(
        lambda: CogVLM(**arguments).init(jax.random.key(0), images, tokens, tokens)["params"]
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(dtype), shapes)


def same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert np.asarray(found[path]).shape == value.shape, path
        assert found[path].dtype == value.dtype, path
        np.testing.assert_array_equal(np.asarray(found[path]), value, err_msg=path)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trip(variant, dtype):
    arguments = arguments_of(**VARIANTS[variant])
    params = arbitrary(arguments, dtype)
    state = to_reference(params, arguments)
    assert all(value.dtype == dtype for value in state.values())
    found, again, preprocess = from_reference(state, to_config(arguments))
    same(found, params)
    same(to_reference(found, again), state)
    assert CogVLM(**again).expert_qkv_bias == (variant == "cogvlm2")
    assert again["text"]["rope_base"] == arguments["text"].get("rope_base", 10000.0)
    assert (preprocess.resize, preprocess.image_size) == ("squash", again["image"]["image_size"])


def test_published_names_and_shapes():
    state = to_reference(arbitrary(arguments_of()), arguments_of())
    layer = "model.layers.2."
    assert state[f"{layer}self_attn.vision_expert_query_key_value.weight"].shape == (48, 16)
    assert state[f"{layer}mlp.language_mlp.down_proj.weight"].shape == (16, 24)
    assert state[f"{layer}self_attn.rotary_emb.inv_freq"].shape == (2,)
    assert state["model.vision.boi"].shape == (1, 1, 16)
    assert state["model.vision.patch_embedding.cls_embedding"].shape == (1, 12)
    assert state["model.vision.patch_embedding.proj.weight"].shape == (12, 3, 4, 4)
    assert state["model.vision.linear_proj.gate_proj.weight"].shape == (28, 16)
    arguments = arguments_of(**COGVLM2)
    state = to_reference(arbitrary(arguments), arguments)
    assert state[f"{layer}self_attn.vision_expert_query_key_value.bias"].shape == (32,)
    assert state[f"{layer}self_attn.language_expert_query_key_value.weight"].shape == (32, 16)
    assert state["model.vision.conv.weight"].shape == (12, 12, 2, 2)


def test_shared_keys_follow_the_queries():
    """Rows of the fused matrix: queries, keys, values, each head after head."""
    arguments = arguments_of(**COGVLM2)
    params = arbitrary(arguments)
    attn = params["language"]["blocks"]["vision"]["attn"]
    state = to_reference(params, arguments)
    name = "model.layers.1.self_attn.vision_expert_query_key_value"
    weight, bias = state[f"{name}.weight"].reshape(8, 4, 16), state[f"{name}.bias"].reshape(8, 4)
    for head in range(4):
        np.testing.assert_array_equal(weight[head].T, attn["query"]["kernel"][1, :, head])
        np.testing.assert_array_equal(bias[head], attn["query"]["bias"][1, head])
    for i, head in np.ndindex(2, 2):
        row = 4 + 2 * i + head
        np.testing.assert_array_equal(weight[row].T, attn["key_value"]["kernel"][1, :, i, head])
        np.testing.assert_array_equal(bias[row], attn["key_value"]["bias"][1, i, head])


def test_everything_that_does_not_fit_is_named():
    arguments = arguments_of()
    state = to_reference(arbitrary(arguments), arguments)
    del state["model.layers.1.mlp.vision_mlp.up_proj.weight"]
    state["model.layers.3.input_layernorm.weight"] = np.ones(16)
    state["model.vision.boi"] = np.ones((1, 16))
    with pytest.raises(ConversionError) as error:
        from_reference(state, to_config(arguments))
    assert "missing: model.layers.1.mlp.vision_mlp.up_proj.weight (24, 16)" in str(error.value)
    assert "unexpected: model.layers.3.input_layernorm.weight (16,)" in str(error.value)
    assert "wrong shape: model.vision.boi is (1, 16), should be (1, 1, 16)" in str(error.value)


def test_parameters_must_fit_the_arguments():
    """Such as LoRA's, which were not merged."""
    params = arbitrary(arguments_of())
    params["language"]["head"]["lora_a"] = np.ones((16, 2), np.float32)
    with pytest.raises(ConversionError, match="unexpected: language/head/lora_a"):
        to_reference(params, arguments_of())


def test_a_stack_has_one_type():
    state = to_reference(arbitrary(arguments_of()), arguments_of())
    key = "model.layers.1.mlp.vision_mlp.up_proj.weight"
    state[key] = state[key].astype(ml_dtypes.bfloat16)
    with pytest.raises(ConversionError, match=r"up_proj.weight has several types, \['bf"):
        from_reference(state, to_config(arguments_of()))


def test_what_else_is_refused():
    arguments = arguments_of()
    state = to_reference(arbitrary(arguments), arguments)
    config = to_config(arguments)
    with pytest.raises(ConversionError, match=r"rms_norm_eps.*vision_config\.patch_size"):
        vision = {k: v for k, v in config["vision_config"].items() if k != "patch_size"}
        short = {k: v for k, v in config.items() if k != "rms_norm_eps"}
        from_config({**short, "vision_config": vision})
    with pytest.raises(ConversionError, match="Not the weights of a CogVLM model"):
        from_reference({"weight": np.ones(3)}, config)
    key = "model.layers.1.self_attn.rotary_emb.inv_freq"
    with pytest.raises(ConversionError, match=f"plain rotary.*{key}"):
        from_reference({**state, key: 2 * state[key]}, config)
    for changes in ({"expert_every": 3}, {"expert_parts": ("mlp",)}, {"image_mask": "full"}):
        with pytest.raises(ConversionError, match="no place for this model"):
            to_reference({}, arguments_of(**changes))


def test_config_keeps_what_it_is_given():
    arguments = arguments_of(**COGVLM2)
    config = to_config(arguments, template_version="chat", bos_token_id=1)
    assert (config["num_multi_query_heads"], config["pad_token_id"]) == (2, 7)
    assert (config["template_version"], config["bos_token_id"]) == ("chat", 1)
    assert config["vision_config"]["num_positions"] == 17
    assert from_config(config)["text"].items() >= {"kv_heads": 2, "pad_id": 7}.items()


def test_a_model_goes_through_files_unchanged(tmp_path):
    arguments = arguments_of(**COGVLM2)
    params = arbitrary(arguments, ml_dtypes.bfloat16)
    write_state(tmp_path, to_reference(params, arguments), shard_bytes=20000)
    found, _, _ = from_reference(read_state(tmp_path), to_config(arguments))
    same(found, params)
    with pytest.raises(ConversionError, match=r"has \['model-00001-of-.*already"):
        write_state(tmp_path, to_reference(params, arguments))


def test_sat_names():
    arguments = arguments_of()
    state = to_reference(arbitrary(arguments), arguments)
    sat = {sat_name(k): v for k, v in state.items() if not k.endswith("inv_freq")}
    assert len(sat) == len(state) - TEXT["layers"]
    sat["mixins.rotary.rotary_emb.inv_freq"] = np.ones(2)
    same(from_sat(sat, head_dim=4), state)
    wrong = "transformer.layers.0.attention.query_key_value.matrix_A.0"
    with pytest.raises(ConversionError, match=f"no weights of a CogVLM.*\n  {wrong}"):
        from_sat({**sat, wrong: np.ones(2)}, head_dim=4)


@pytest.mark.parametrize("prefix, kv_heads", [("visual.", 4), ("", 2)])
def test_a_start_from_a_language_model_and_an_image_tower(prefix, kv_heads, tmp_path):
    llama, eva = llama_state(kv_heads), eva_state(prefix)
    config = {**LLAMA_CONFIG, "num_key_value_heads": kv_heads, "rope_theta": 20000.0}
    state, made = from_parts(llama, config, eva, eva_heads=2)
    # Through files, as the real ones go.
    write_state(tmp_path, state)
    params, arguments, _ = from_reference(read_state(tmp_path), made)
    assert arguments["image"].items() >= IMAGE.items()
    assert arguments["text"].items() >= TEXT.items()
    assert (arguments["text"]["rope_base"], arguments["text"]["pad_id"]) == (20000.0, None)
    blocks = params["language"]["blocks"]
    same(blocks["vision"], blocks["language"])
    up = blocks["vision"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(up[2].T, llama["model.layers.2.mlp.up_proj.weight"])
    v = llama["model.layers.1.self_attn.v_proj.weight"].T.reshape(16, kv_heads, 4)
    attn = blocks["language"]["attn"]
    found = attn["qkv"]["kernel"] if kv_heads == 4 else attn["key_value"]["kernel"]
    np.testing.assert_array_equal(found[1, :, -1], v)
    tower = params["vision"]["transformer"]["blocks"]
    assert tower["norm1"]["scale"].shape[0] == 2  # the last block is dropped
    np.testing.assert_array_equal(tower["norm2"]["bias"][1], eva[f"{prefix}blocks.1.norm2.bias"])
    bias = tower["attn"]["qkv"]["bias"].reshape(2, 3, 12)
    np.testing.assert_array_equal(bias[0, 0], eva[f"{prefix}blocks.0.attn.q_bias"])
    assert not bias[:, 1].any()
    np.testing.assert_array_equal(bias[1, 2], eva[f"{prefix}blocks.1.attn.v_bias"])
    adapter = params["adapter"]
    assert not adapter["boi"].any() and (adapter["norm"]["scale"] == 1).all()
    gate = np.float32(adapter["mlp"]["gate"]["kernel"])  # uniform, by the number of inputs
    assert np.std(gate) == pytest.approx((3 * gate.shape[0]) ** -0.5, rel=0.1)
    assert np.abs(gate).max() <= gate.shape[0] ** -0.5
    other = np.asarray(state["model.vision.linear_proj.dense_h_to_4h.weight"])
    assert (other != np.asarray(state["model.vision.linear_proj.gate_proj.weight"])).any()


def test_parts_that_do_not_fit_are_named():
    llama, eva = llama_state(), eva_state()
    with pytest.raises(ConversionError, match=r"lacks.*hidden_size"):
        from_parts(llama, {"vocab_size": 30}, eva)
    with pytest.raises(ConversionError, match="rotary embeddings are scaled"):
        scaled = {"rope_scaling": {"type": "linear", "factor": 4.0}}
        from_parts(llama, {**LLAMA_CONFIG, **scaled}, eva)
    with pytest.raises(ConversionError) as error:
        from_parts(llama, {**LLAMA_CONFIG, "num_hidden_layers": 4}, eva)
    assert "missing: model.layers.3.self_attn.q_proj.weight" in str(error.value)
    with pytest.raises(ConversionError, match=r"unexpected: model\.layers\.2\.input"):
        from_parts(llama, {**LLAMA_CONFIG, "num_hidden_layers": 2}, eva)
    with pytest.raises(ConversionError) as error:
        del eva["visual.blocks.0.attn.v_bias"]
        from_parts(llama, LLAMA_CONFIG, {**eva, "visual.rope.freqs": np.ones(2)})
    assert "missing: blocks.0.attn.v_bias" in str(error.value)
    assert "unexpected: rope.freqs" in str(error.value)
