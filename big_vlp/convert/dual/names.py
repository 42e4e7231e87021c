"""The names that each family of released files has for the parameters of two towers.

All are rules of `convert.common`. A family is chosen for each tower by itself: open_clip's SigLIP
has an image tower of timm's. Which parameters there are depends on the arguments of the tower,
which are those of `two_towers.completed`.
"""

from collections.abc import Mapping

from big_vlp.convert.common import Rules, dense, norm, prefixed

# (rules, layers, heads) of a part of a model.
Part = tuple[Rules, int, int]
_QKV = ("query", "key", "value")


def _block(norm1, qkv, qkv_bias, out, norm2, fc1, fc2) -> Rules:
    return (
        *norm("norm1", norm1),
        ("attn/qkv/kernel", qkv, "qkv"),
        ("attn/qkv/bias", qkv_bias, "qkv_bias"),
        *dense("attn/out", out, "out"),
        *norm("norm2", norm2),
        *dense("mlp/fc1", fc1),
        *dense("mlp/fc2", fc2),
    )


def _map_head(probe, queries, others, out, norm_, mlp, fused: bool) -> Rules:
    """SigLIP's pooling; one matrix for queries, keys and values, or one for the first alone."""
    paths = tuple(f"{name}/kernel" for name in _QKV), tuple(f"{name}/bias" for name in _QKV)
    if fused:
        projections = (
            (paths[0], f"{others}weight", "heads3"),
            (paths[1], f"{others}bias", "heads_bias3"),
        )
    else:
        projections = (
            (paths[0][0], f"{queries}weight", "heads1"),
            (paths[1][0], f"{queries}bias", "heads_bias1"),
            (paths[0][1:], f"{others}weight", "heads2"),
            (paths[1][1:], f"{others}bias", "heads_bias2"),
        )
    return (
        ("probe", probe, "row1"),
        *projections,
        *dense("out", out, "out"),
        *norm("norm", norm_),
        *dense("mlp/fc1", f"{mlp}.fc1"),
        *dense("mlp/fc2", f"{mlp}.fc2"),
    )


_OPEN_CLIP = _block(
    "ln_1", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj", "ln_2", "mlp.c_fc",
    "mlp.c_proj",
)  # fmt: skip
_TIMM = _block(
    "norm1", "attn.qkv.weight", "attn.qkv.bias", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"
)
_HUGGING_FACE = _block(
    "layer_norm1",
    tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
    tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
    "self_attn.out_proj",
    "layer_norm2",
    "mlp.fc1",
    "mlp.fc2",
)


def _flax(path: str, key: str, kernel: str = "kernel") -> Rules:
    """A layer of Flax's: as it is."""
    return (
        (f"{path}/{kernel}", f"{key}/{kernel}", "same"),
        (f"{path}/bias", f"{key}/bias", "same"),
    )


_ATTENTION = "MultiHeadDotProductAttention_0"
_BIG_VISION_MAP = (
    ("probe", "probe", "row1"),
    *(rule for part in (*_QKV, "out") for rule in _flax(part, f"{_ATTENTION}/{part}")),
    *_flax("norm", "LayerNorm_0", "scale"),
    *_flax("mlp/fc1", "MlpBlock_0/Dense_0"),
    *_flax("mlp/fc2", "MlpBlock_0/Dense_1"),
)


def _big_vision_blocks(key: str, looped: bool) -> Rules:
    """Of blocks in big_vision: after a loop over them arrays of all, else those of each."""
    keys = {x: tuple(f"{_ATTENTION}/{part}/{x}" for part in _QKV) for x in ("kernel", "bias")}
    rules = (
        *_flax("norm1", "LayerNorm_0", "scale"),
        ("attn/qkv/kernel", keys["kernel"], f"stack{1 + looped}"),
        ("attn/qkv/bias", keys["bias"], f"stack{0 + looped}"),
        *_flax("attn/out", f"{_ATTENTION}/out"),
        *_flax("norm2", "LayerNorm_1", "scale"),
        *_flax("mlp/fc1", "MlpBlock_0/Dense_0"),
        *_flax("mlp/fc2", "MlpBlock_0/Dense_1"),
    )
    blocks = "encoderblock" if looped else "encoderblock_{i}"
    return prefixed(rules, "transformer/blocks/", f"{key}/{blocks}/")


def open_clip_image(image: Mapping) -> Rules:
    """OpenAI's names, which open_clip and COSMOS kept."""
    rules = [
        ("class_token", "class_embedding", "same"),
        ("position_embedding", "positional_embedding", "same"),
        ("patch/kernel", "conv1.weight", "conv"),
        ("proj/kernel", "proj", "same"),
        *norm("norm_post", "ln_post"),
        *prefixed(_OPEN_CLIP, "transformer/blocks/", "transformer.resblocks.{i}."),
    ]
    if image["norm_pre"]:
        rules += norm("norm_pre", "ln_pre")
    return prefixed(rules, key="visual.")


def open_clip_text(text: Mapping, prefix: str = "") -> Rules:
    """OpenAI's names; `prefix` is "text." in open_clip's models with other towers than CLIP's."""
    rules = (
        ("token_embedding/embedding", "token_embedding.weight", "same"),
        ("position_embedding", "positional_embedding", "same"),
        *norm("norm_post", "ln_final"),
        *prefixed(_OPEN_CLIP, "transformer/blocks/", "transformer.resblocks.{i}."),
        *(
            dense("proj", "text_projection")
            if text["proj_bias"]
            else (("proj/kernel", "text_projection", "same"),)
        ),
    )
    return prefixed(rules, key=prefix)


def timm_image(image: Mapping) -> Rules:
    """SigLIP's image tower in open_clip."""
    rules = (
        ("position_embedding", "pos_embed", "row1"),
        *dense("patch", "patch_embed.proj", "conv"),
        *prefixed(_TIMM, "transformer/blocks/", "blocks.{i}."),
        *norm("norm_post", "norm"),
        *prefixed(
            _map_head("latent", "q.", "kv.", "proj", "norm", "mlp", fused=False),
            "map/",
            "attn_pool.",
        ),
    )
    return prefixed(rules, key="visual.trunk.")


def clip_hf_image(image: Mapping) -> Rules:
    """transformers' CLIPModel. (The typing error in the norm's name is theirs.)"""
    rules = (
        ("class_token", "embeddings.class_embedding", "same"),
        ("position_embedding", "embeddings.position_embedding.weight", "same"),
        ("patch/kernel", "embeddings.patch_embedding.weight", "conv"),
        *norm("norm_pre", "pre_layrnorm"),
        *prefixed(_HUGGING_FACE, "transformer/blocks/", "encoder.layers.{i}."),
        *norm("norm_post", "post_layernorm"),
    )
    projection = ("proj/kernel", "visual_projection.weight", "linear")
    return (*prefixed(rules, key="vision_model."), projection)


def siglip_hf_image(image: Mapping, patch: str = "conv") -> Rules:
    """transformers' SiglipModel, and Siglip2Model, whose patches come flat."""
    rules = (
        ("position_embedding", "embeddings.position_embedding.weight", "same"),
        *dense("patch", "embeddings.patch_embedding", patch),
        *prefixed(_HUGGING_FACE, "transformer/blocks/", "encoder.layers.{i}."),
        *norm("norm_post", "post_layernorm"),
        *prefixed(
            _map_head(
                "probe", "", "attention.in_proj_", "attention.out_proj", "layernorm", "mlp",
                fused=True,
            ),
            "map/",
            "head.",
        ),
    )  # fmt: skip
    return prefixed(rules, key="vision_model.")


def hugging_face_text(text: Mapping) -> Rules:
    """transformers' CLIPModel and SiglipModel."""
    rules = (
        ("token_embedding/embedding", "text_model.embeddings.token_embedding.weight", "same"),
        ("position_embedding", "text_model.embeddings.position_embedding.weight", "same"),
        *prefixed(_HUGGING_FACE, "transformer/blocks/", "text_model.encoder.layers.{i}."),
        *norm("norm_post", "text_model.final_layer_norm"),
    )
    if text["proj_bias"]:
        return (*rules, *dense("proj", "text_model.head"))
    return (*rules, ("proj/kernel", "text_projection.weight", "linear"))


def big_vision_image(image: Mapping, looped: bool = False) -> Rules:
    """SigLIP's and SigLIP 2's .npz."""
    rules = (
        *_flax("patch", "embedding"),
        ("position_embedding", "pos_embedding", "row1"),
        *_big_vision_blocks("Transformer", looped),
        *_flax("norm_post", "Transformer/encoder_norm", "scale"),
        *prefixed(_BIG_VISION_MAP, "map/", "MAPHead_0/"),
    )
    return prefixed(rules, key="params/img/")


def big_vision_text(text: Mapping, looped: bool = False) -> Rules:
    """The text tower in the same files."""
    rules = (
        ("token_embedding/embedding", "Embed_0/embedding", "same"),
        ("position_embedding", "pos_embedding", "row1"),
        *_big_vision_blocks("Encoder_0", looped),
        *_flax("norm_post", "Encoder_0/encoder_norm", "scale"),
        *_flax("proj", "head"),
    )
    return prefixed(rules, key="params/txt/")
