"""Two towers' arguments from the shapes of their weights, where no config comes with them."""

import math
from collections.abc import Mapping

from big_vlp.convert.common import ConversionError, State, count_layers
from big_vlp.convert.dual.forms import Dual
from input_pipeline.preprocess import Preprocess

_HALF = (0.5, 0.5, 0.5)
_IMG, _TXT = "params/img/", "params/txt/"
_MHA = "MultiHeadDotProductAttention_0/query/kernel"
_MLP = "MlpBlock_0/Dense_0/kernel"


def open_clip_towers(
    state: State, *, activation: str, head_dim: int = 64, text_heads: int | None = None
) -> tuple[dict, int, int]:
    """(image, text and embed_dim; image size; context length) of a state dict in OpenAI's names.

    Args:
      activation, head_dim, text_heads: what weights do not tell; text heads by default of 64, too.

    Raises:
      ConversionError: a tensor that tells the sizes is missing, or widths and heads do not go
        together.
    """
    if "visual.layer1.0.conv1.weight" in state:
        raise ConversionError("This is a ResNet; there are only ViTs here.")
    ranks = {
        "visual.conv1.weight": 4, "visual.positional_embedding": 2, "token_embedding.weight": 2,
        "positional_embedding": 2, "text_projection": 2,
    }  # fmt: skip
    _check(state, ranks, "of two towers in OpenAI's names")
    width, _, patch_size, _ = state["visual.conv1.weight"].shape
    vocab_size, text_width = state["token_embedding.weight"].shape
    text_heads = max(text_width // head_dim, 1) if text_heads is None else text_heads
    if width % head_dim:
        raise ConversionError(
            f"The image tower's width {width} must be a multiple of head_dim={head_dim}."
        )
    if text_width % text_heads:
        raise ConversionError(
            f"The text tower's width {text_width} must be a multiple of the {text_heads} heads."
        )
    image = {"patch_size": patch_size, "width": width, "heads": width // head_dim}
    image["layers"] = count_layers(state, "visual.transformer.resblocks")
    text = {"vocab_size": vocab_size, "width": text_width, "heads": text_heads}
    text["layers"] = count_layers(state, "transformer.resblocks")
    image["activation"] = text["activation"] = activation
    patches = state["visual.positional_embedding"].shape[0] - 1
    towers = {"image": image, "text": text, "embed_dim": state["text_projection"].shape[1]}
    return towers, math.isqrt(patches) * patch_size, state["positional_embedding"].shape[0]


def openai_clip(state: State, preprocess: Mapping) -> Dual:
    """OpenAI's ViTs: quick_gelu, heads of 64 dimensions, CLIP's images.

    Args:
      preprocess: what a caller knows otherwise of the record.
    """
    towers, size, length = open_clip_towers(state, activation="quick_gelu")
    record = {"tokenizer": "clip", "image_size": size, "context_length": length, **preprocess}
    return Dual(towers, False, Preprocess(**record))


def big_vision(
    state: State, tokenizer: str, interpolation: str, image_size: int | None = None
) -> Dual:
    """SigLIP's or SigLIP 2's .npz, which tells all but how images are resized.

    Args:
      image_size: pixels; by default what whole patches fill. (The So400m/14 of 384 pixels sees 378
        of these.)

    Raises:
      ConversionError: a tensor that tells the sizes is missing, or images of this size have other
        patches.
    """
    looped = is_looped(state)
    first = "encoderblock" if looped else "encoderblock_0"
    blocks = {_IMG: f"{_IMG}Transformer/{first}/", _TXT: f"{_TXT}Encoder_0/{first}/"}
    ranks = {
        f"{_IMG}embedding/kernel": 4, f"{_IMG}pos_embedding": 3, f"{_TXT}Embed_0/embedding": 2,
        f"{_TXT}pos_embedding": 3, f"{_TXT}head/kernel": 2,
    }  # fmt: skip
    for block in blocks.values():
        ranks |= {f"{block}{_MHA}": 3 + looped, f"{block}{_MLP}": 2 + looped}
    _check(state, ranks, "of SigLIP's two towers in big_vision's names")

    def tower(prefix):
        kernel = state[f"{blocks[prefix]}{_MHA}"].shape
        start = blocks[prefix].removesuffix("0/")
        numbers = {k.removeprefix(start).split("/")[0] for k in state if k.startswith(start)}
        return {
            "width": kernel[-3],
            "layers": kernel[0] if looped else len(numbers),
            "heads": kernel[-2],
            "mlp_dim": state[f"{blocks[prefix]}{_MLP}"].shape[-1],
            "activation": "gelu_tanh",
            "norm_epsilon": 1e-6,
        }

    side = state[f"{_IMG}embedding/kernel"].shape[0]
    image = {**tower(_IMG), "patch_size": side, "pool": "map"}
    text = {**tower(_TXT), "causal": False, "pool": "last"}
    text["vocab_size"] = state[f"{_TXT}Embed_0/embedding"].shape[0]
    grid = math.isqrt(state[f"{_IMG}pos_embedding"].shape[1])
    size = grid * side if image_size is None else image_size
    if size // side != grid:
        raise ConversionError(
            f"The model has {grid} x {grid} patches of {side} pixels: its images have "
            f"{grid * side} pixels, or up to {(grid + 1) * side - 1}, not {size}."
        )
    image["ignore_rest"] = size % side > 0
    towers = {"image": image, "text": text, "embed_dim": state[f"{_TXT}head/kernel"].shape[1]}
    length = state[f"{_TXT}pos_embedding"].shape[1]
    record = Preprocess(size, tokenizer, length, "squash", interpolation, _HALF, _HALF)
    return Dual(towers, True, record)


def is_looped(state: State) -> bool:
    """Whether big_vision's blocks are stacked, as training in a loop over them leaves them."""
    return any("/encoderblock/" in key for key in state)


def below_params(state: State) -> dict:
    """big_vision's state with "params/" in front of every key, which some files have."""
    if "t" in state or "b" in state:
        return {f"params/{key}": value for key, value in state.items()}
    return dict(state)


def _check(state: State, ranks: Mapping[str, int], what: str) -> None:
    problems = [f"missing: {key}" for key in ranks if key not in state]
    problems += [
        f"wrong shape: {key} is {tuple(state[key].shape)}, should have {rank} axes"
        for key, rank in ranks.items()
        if key in state and len(state[key].shape) != rank
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise ConversionError(f"Not the weights {what}:\n  {lines}\nFound {sorted(state)[:8]}.")
