"""Two towers in a family of files <-> parameters: strict, exact, and a table of what was read."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np

from big_vlp import trees
from big_vlp.convert.common import (
    ConversionError,
    Rules,
    State,
    Tensor,
    check,
    prefixed,
    to_lazy_model,
    to_lazy_state,
    to_state,
)
from big_vlp.convert.pairs import names
from big_vlp.methods.clip import Method
from big_vlp.models.two_towers import completed
from input_pipeline.preprocess import Preprocess

# What state dicts hold besides weights: buffers, and numbers that the shapes tell too.
_LEFT_OUT = re.compile(
    r"(.*\.)?(position_ids|attn_mask)|input_resolution|context_length|vocab_size"
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model of two towers, without its weights.

    Attributes:
      model: argument `model` of `methods.clip.Method`, `two_towers.completed`.
      sigmoid: whether the loss is SigLIP's, and so there is a bias of the logits.
      preprocess: its record.
    """

    model: dict
    sigmoid: bool
    preprocess: Preprocess

    def __post_init__(self):
        object.__setattr__(self, "model", completed(self.model))

    @property
    def section(self) -> dict:
        """The section `method` of a config."""
        loss_type = "sigmoid" if self.sigmoid else "softmax"
        return {"name": "clip", "model": self.model, "loss_type": loss_type}

    @functools.cached_property
    def shapes(self) -> dict:
        """Shapes of the parameters.

        Raises:
          ConversionError: there is no such model.
        """
        arguments = {k: v for k, v in self.section.items() if k != "name"}
        try:
            return Method(preprocess=self.preprocess, **arguments).shapes[0]
        except ValueError as error:
            raise ConversionError(f"No such model can be made: {error}") from error


@dataclasses.dataclass(frozen=True)
class Form:
    """A family of files.

    Attributes:
      image, text: the rules of a tower by its arguments, see `names`.
      scale, bias: keys of the logits' scale and bias.
      scalar: kind of these two, see `convert.common`.
    """

    image: Callable[[Mapping], Rules]
    text: Callable[[Mapping], Rules]
    scale: str = "logit_scale"
    bias: str = "logit_bias"
    scalar: str = "same"

    def parts(self, pair: Pair) -> dict[str, names.Part]:
        image, text = pair.model["image"], pair.model["text"]
        beside = [("logit_scale", self.scale, self.scalar)]
        beside += [("logit_bias", self.bias, self.scalar)] if pair.sigmoid else []
        return {
            "image tower": (
                prefixed(self.image(image), "image_tower/"),
                image["layers"],
                image["heads"],
            ),
            "text tower": (prefixed(self.text(text), "text_tower/"), text["layers"], text["heads"]),
            "temperature": (beside, 0, 1),
        }


def _custom_text(text: Mapping) -> Rules:
    return names.open_clip_text(text, "text.")


OPENAI = Form(names.open_clip_image, names.open_clip_text)
CUSTOM_TEXT = Form(names.open_clip_image, _custom_text)
TIMM = Form(names.timm_image, _custom_text)
CLIP_HF = Form(names.clip_hf_image, names.hugging_face_text)
SIGLIP_HF = Form(names.siglip_hf_image, names.hugging_face_text, scalar="row1")
SIGLIP2_HF = dataclasses.replace(
    SIGLIP_HF, image=functools.partial(names.siglip_hf_image, patch="patches")
)
BIG_VISION = Form(names.big_vision_image, names.big_vision_text, "params/t", "params/b", "row1")


def open_clip_form(state: Mapping) -> Form:
    """Which of open_clip's families a state dict is of."""
    if any(key.startswith("visual.trunk.") for key in state):
        return TIMM
    return CUSTOM_TEXT if any(key.startswith("text.") for key in state) else OPENAI


def split(state: State) -> tuple[dict, list[str]]:
    """(weights, keys of what is none), without the prefix that distributed training leaves.

    Raises:
      ConversionError: these are two models.
    """
    if any(key.startswith(("student.", "teacher.")) for key in state):
        raise ConversionError("These are a student and a teacher: import them as cosmos.")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    left_out = [key for key in state if _LEFT_OUT.fullmatch(key)]
    return {key: value for key, value in state.items() if key not in left_out}, left_out


def from_state(form: Form, state: State, pair: Pair) -> dict:
    """The parameters in fp32, a nested dict of `Tensor`s.

    Raises:
      ConversionError: a key is missing or unknown, or of another shape than the model's.
    """
    parts = form.parts(pair).values()
    expected = jax.eval_shape(lambda x: _to_state(x, parts), pair.shapes)
    check(expected, state)
    found = [to_lazy_model(state, *part) for part in parts]
    return jax.tree.map(in_fp32, functools.reduce(trees.merge, found))


def to_form(form: Form, params: dict, pair: Pair) -> dict[str, Tensor]:
    """The inverse of `from_state`, of a nested dict of arrays or `Tensor`s.

    Raises:
      ConversionError: the family has no place for this model.
    """
    state, parts = {}, form.parts(pair).values()
    paths = {p for rules, _, _ in parts for rule in rules for p in _as_tuple(rule[0])}
    lines = [f"no name for {path}" for path in trees.flatten(pair.shapes) if path not in paths]
    lines += [f"the model lacks {p}" for p in sorted(paths - trees.flatten(pair.shapes).keys())]
    if lines:
        raise ConversionError(
            "This format has no place for this model:\n  " + "\n  ".join(sorted(lines)[:20])
        )
    for rules, layers, _ in parts:
        state |= to_lazy_state(params, rules, layers)
    return state


def _to_state(params: dict, parts) -> dict:
    state = {}
    for rules, layers, _ in parts:
        state |= to_state(params, rules, layers)
    return state


def _as_tuple(paths) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else paths


def in_fp32(tensor: Tensor) -> Tensor:
    """The same tensor, cast when it is read."""
    fp32 = np.dtype(np.float32)
    if tensor.dtype == fp32:
        return tensor
    return Tensor(tensor.shape, fp32, lambda: np.asarray(tensor).astype(fp32))


def table(pair: Pair, left_out: list[str]) -> str:
    """What was read, for people."""
    flat, pre = trees.flatten(pair.shapes), pair.preprocess
    parts = {"image tower": "image_tower/", "text tower": "text_tower/", "others": "logit_"}
    lines = []
    for name, start in parts.items():
        sizes = [int(np.prod(x.shape)) for path, x in flat.items() if path.startswith(start)]
        model = pair.model.get(start.removesuffix("_tower/"), {})
        words = [
            f"{k}={model[k]}" for k in ("width", "layers", "heads", "activation") if k in model
        ]
        lines.append(f"{name:12} {sum(sizes):13,} parameters  {' '.join(words)}".rstrip())
    size = pre.image_size if pre.resize_size is None else f"{pre.resize_size} > {pre.image_size}"
    numbers = lambda values: "/".join(f"{x:.4g}" for x in values)  # noqa: E731
    lines.append(
        f"{'images':12} {size} pixels, {pre.resize}, {pre.interpolation}, mean "
        f"{numbers(pre.mean)}, std {numbers(pre.std)}"
    )
    lines.append(f"{'texts':12} {pre.context_length} tokens of {pre.tokenizer}")
    lines.append(f"{'left out':12} {', '.join(left_out) or 'nothing'}")
    return "\n".join(lines)
