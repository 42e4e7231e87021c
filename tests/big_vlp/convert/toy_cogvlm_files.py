"""Weights of small CogVLMs under other names, and of the parts that one is made of."""

import numpy as np

# Names in a checkpoint of SwissArmyTransformer, written out for one block of each kind.
SAT_BLOCKS = """
transformer.layers.1.input_layernorm.weight                     model.layers.1.input_layernorm.weight
transformer.layers.1.post_attention_layernorm.weight            model.layers.1.post_attention_layernorm.weight
transformer.layers.1.attention.query_key_value.weight           model.layers.1.self_attn.language_expert_query_key_value.weight
transformer.layers.1.attention.dense.weight                     model.layers.1.self_attn.language_expert_dense.weight
mixins.rotary.vision_query_key_value_list.1.weight              model.layers.1.self_attn.vision_expert_query_key_value.weight
mixins.rotary.vision_dense_list.1.weight                        model.layers.1.self_attn.vision_expert_dense.weight
transformer.layers.1.mlp.dense_h_to_4h.weight                   model.layers.1.mlp.language_mlp.up_proj.weight
transformer.layers.1.mlp.dense_4h_to_h.weight                   model.layers.1.mlp.language_mlp.down_proj.weight
mixins.mlp.gate_proj.1.weight                                   model.layers.1.mlp.language_mlp.gate_proj.weight
mixins.mlp.vision_gate_proj.1.weight                            model.layers.1.mlp.vision_mlp.gate_proj.weight
mixins.mlp.vision_dense_h_to_4h_list.1.weight                   model.layers.1.mlp.vision_mlp.up_proj.weight
mixins.mlp.vision_dense_4h_to_h_list.1.weight                   model.layers.1.mlp.vision_mlp.down_proj.weight
mixins.eva.vit_model.transformer.layers.1.input_layernorm       model.vision.transformer.layers.1.input_layernorm
mixins.eva.vit_model.transformer.layers.1.post_attention_layernorm model.vision.transformer.layers.1.post_attention_layernorm
mixins.eva.vit_model.transformer.layers.1.attention.query_key_value model.vision.transformer.layers.1.attention.query_key_value
mixins.eva.vit_model.transformer.layers.1.attention.dense       model.vision.transformer.layers.1.attention.dense
mixins.eva.vit_model.transformer.layers.1.mlp.dense_h_to_4h     model.vision.transformer.layers.1.mlp.fc1
mixins.eva.vit_model.transformer.layers.1.mlp.dense_4h_to_h     model.vision.transformer.layers.1.mlp.fc2
"""  # noqa: E501
SAT_OTHERS = """
transformer.word_embeddings.weight                              model.embed_tokens.weight
transformer.final_layernorm.weight                              model.norm.weight
mixins.lm.lm_head.weight                                        lm_head.weight
mixins.eva.vit_model.mixins.patch_embedding.proj                model.vision.patch_embedding.proj
mixins.eva.vit_model.transformer.word_embeddings.weight         model.vision.patch_embedding.cls_embedding
mixins.eva.vit_model.transformer.position_embeddings.weight     model.vision.patch_embedding.position_embedding.weight
mixins.eva.linear_proj                                          model.vision.linear_proj
mixins.eva.boi                                                  model.vision.boi
mixins.eva.eoi                                                  model.vision.eoi
"""  # noqa: E501


def sat_name(key):
    """The name in SwissArmyTransformer's checkpoint of a released name."""
    number = next((part for part in key.split(".") if part.isdecimal()), None)
    table = SAT_OTHERS if number is None else SAT_BLOCKS
    for line in table.split("\n")[1:-1]:
        theirs, ours = (name.replace(".1.", f".{number}.") for name in line.split())
        if key == ours or key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    raise AssertionError(key)


def llama_state(kv_heads=4, vocab_size=30):
    """A language model in Hugging Face's names."""
    rng = np.random.default_rng(0)
    ends = ("model.embed_tokens", "lm_head")
    shapes = {"model.norm": (16,), **dict.fromkeys(ends, (vocab_size, 16))}
    for i in range(3):
        start = f"model.layers.{i}"
        shapes |= {f"{start}.self_attn.{n}_proj": (16, 16) for n in "qo"}
        shapes |= {f"{start}.self_attn.{n}_proj": (4 * kv_heads, 16) for n in "kv"}
        shapes |= {f"{start}.mlp.{n}_proj": (24, 16) for n in ("gate", "up")}
        shapes |= {f"{start}.mlp.down_proj": (16, 24)}
        shapes |= {f"{start}.{n}_layernorm": (16,) for n in ("input", "post_attention")}
    return {f"{k}.weight": rng.normal(size=s).astype(np.float16) for k, s in shapes.items()}


def eva_state(prefix="visual.", width=12):
    """EVA-CLIP of three blocks; with a prefix there is a text tower beside the image's."""
    rng, w = np.random.default_rng(1), width
    shapes = {"cls_token": (1, 1, w), "pos_embed": (1, 5, w), "head.weight": (8, w)}
    shapes |= {"patch_embed.proj.weight": (w, 3, 4, 4), "patch_embed.proj.bias": (w,)}
    shapes |= {"norm.weight": (w,), "norm.bias": (w,), "head.bias": (8,)}
    for j in range(3):
        block = {"attn.q_bias": (w,), "attn.v_bias": (w,), "attn.qkv.weight": (3 * w, w)}
        block |= {"mlp.fc1.weight": (20, w), "mlp.fc1.bias": (20,), "attn.proj.weight": (w, w)}
        block |= {"attn.proj.bias": (w,), "mlp.fc2.weight": (w, 20), "mlp.fc2.bias": (w,)}
        block |= {f"norm{i}.{part}": (w,) for i in (1, 2) for part in ("weight", "bias")}
        shapes |= {f"blocks.{j}.{name}": shape for name, shape in block.items()}
    state = {prefix + k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    return state | ({"logit_scale": np.ones(()), "text.proj": np.ones(3)} if prefix else {})


def eva02_state(prefix="visual.", width=64):
    """EVA02-CLIP-L of three blocks, in the names of EVA-CLIP."""
    rng, w = np.random.default_rng(1), width
    shapes = {"cls_token": (1, 1, w), "pos_embed": (1, 5, w), "head.weight": (8, w)}
    shapes |= {"patch_embed.proj.weight": (w, 3, 4, 4), "patch_embed.proj.bias": (w,)}
    shapes |= {"norm.weight": (w,), "norm.bias": (w,), "head.bias": (8,), "rope.freqs_cos": (4, w)}
    for j in range(3):
        block = {"attn.q_bias": (w,), "attn.v_bias": (w,), "attn.rope.freqs_sin": (4, w)}
        block |= {f"attn.{n}_proj.weight": (w, w) for n in "qkv"}
        block |= {"attn.proj.weight": (w, w), "attn.proj.bias": (w,)}
        block |= {f"mlp.w{n}.weight": (20, w) for n in (1, 2)} | {"mlp.w3.weight": (w, 20)}
        block |= {"mlp.w1.bias": (20,), "mlp.w2.bias": (20,), "mlp.w3.bias": (w,)}
        for name, size in (("norm1", w), ("norm2", w), ("attn.inner_attn_ln", w)):
            block |= {f"{name}.{part}": (size,) for part in ("weight", "bias")}
        block |= {f"mlp.ffn_ln.{part}": (20,) for part in ("weight", "bias")}
        shapes |= {f"blocks.{j}.{name}": shape for name, shape in block.items()}
    return {prefix + k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


LLAMA_CONFIG = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
}
