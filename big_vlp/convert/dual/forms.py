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
    as_tuple,
    check,
    listed,
    parts_to_state,
    prefixed,
    to_lazy_model,
    to_lazy_state,
)
from big_vlp.convert.dual import names
from big_vlp.methods.clip import Method
from big_vlp.models.two_towers import completed
from input_pipeline.preprocess import Preprocess

# What state dicts hold besides weights: buffers, and numbers that the shapes tell too.
_LEFT_OUT = re.compile(
    r"(.*\.)?(position_ids|attn_mask)|input_resolution|context_length|vocab_size"
)


@dataclasses.dataclass(frozen=True)
class Dual:
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
    def loss(self) -> str:
        """Argument `loss_type` of `methods.clip.Method`."""
        return "sigmoid" if self.sigmoid else "softmax"

    @property
    def section(self) -> dict:
        """The section `method` of a config."""
        return {"name": "clip", "model": self.model, "loss_type": self.loss}

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

    def parts(self, dual: Dual) -> dict[str, names.Part]:
        image, text = dual.model["image"], dual.model["text"]
        beside = [("logit_scale", self.scale, self.scalar)]
        beside += [("logit_bias", self.bias, self.scalar)] if dual.sigmoid else []
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
LOOPED_BIG_VISION = dataclasses.replace(
    BIG_VISION,
    image=functools.partial(names.big_vision_image, looped=True),
    text=functools.partial(names.big_vision_text, looped=True),
)


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


def from_state(form: Form, state: State, dual: Dual) -> dict:
    """The parameters in fp32, a nested dict of `Tensor`s.

    Raises:
      ConversionError: a key is missing or unknown, or of another shape than the model's.
    """
    parts = _parts(
        form, dual, "The weights have the names of another model than that which is described"
    )
    expected = jax.eval_shape(lambda x: parts_to_state(x, parts), dual.shapes)
    check(expected, state)
    found = [to_lazy_model(state, *part) for part in parts]
    return jax.tree.map(in_fp32, functools.reduce(trees.merge, found))


def to_form(form: Form, params: dict, dual: Dual) -> dict[str, Tensor]:
    """The inverse of `from_state`, of a nested dict of arrays or `Tensor`s.

    Raises:
      ConversionError: the family has no place for this model.
    """
    state = {}
    for rules, layers, _ in _parts(form, dual, "This format has no place for this model"):
        state |= to_lazy_state(params, rules, layers)
    return state


def _parts(form: Form, dual: Dual, problem: str) -> list[names.Part]:
    """Those of a family, which must have names for all parameters and no others."""
    parts, own = [*form.parts(dual).values()], trees.flatten(dual.shapes).keys()
    paths = {path for rules, _, _ in parts for rule in rules for path in as_tuple(rule[0])}
    lines = [f"no name for {path}" for path in own - paths]
    lines += [f"the model lacks {path}" for path in paths - own]
    if lines:
        raise ConversionError(f"{problem}:\n  " + listed(sorted(lines), 20))
    return parts


def compare(problem: str, name: str, found: Dual, expected: Dual) -> None:
    """Raises ConversionError, which says `problem`, where a model is not the one of a name."""

    def values(dual):
        towers = {
            f"{tower}.{key}": value
            for tower in ("image", "text")
            for key, value in dual.model[tower].items()
        }
        loss = {"embed_dim": dual.model["embed_dim"], "loss": dual.loss}
        return {**towers, **loss, **dataclasses.asdict(dual.preprocess)}

    found, expected = values(found), values(expected)
    lines = [
        f"{key} is {found[key]}, that of {name} {expected[key]}"
        for key in expected
        if found.get(key) != expected[key]
    ]
    if lines:
        raise ConversionError(f"{problem}:\n  " + "\n  ".join(lines))


def in_fp32(tensor: Tensor) -> Tensor:
    """The same tensor, cast when it is read."""
    fp32 = np.dtype(np.float32)
    if tensor.dtype == fp32:
        return tensor
    return Tensor(tensor.shape, fp32, lambda: np.asarray(tensor).astype(fp32))


def table(
    dual: Dual, left_out: list[str], numbers: Mapping | None = None, shapes: Mapping | None = None
) -> str:
    """What was read, for people.

    Args:
      left_out: keys, or paths, of what was not.
      numbers: what is published of it, see `published.numbers`.
      shapes: of all parameters, where there are others than the towers'.
    """
    flat, pre = trees.flatten(dual.shapes if shapes is None else shapes), dual.preprocess
    sizes = dict.fromkeys(("image_tower", "text_tower", ""), 0)
    for path, value in flat.items():
        first = path.split("/")[0]
        sizes[first if first in sizes else ""] += int(np.prod(value.shape))
    lines = []
    for part, size in sizes.items():
        model = dual.model.get(part.removesuffix("_tower"), {})
        words = [
            f"{k}={model[k]}" for k in ("width", "layers", "heads", "activation") if k in model
        ]
        name = part.replace("_", " ") or "others"
        lines.append(f"{name:12} {size:13,} parameters  {' '.join(words)}".rstrip())
    size = pre.image_size if pre.resize_size is None else f"{pre.resize_size} > {pre.image_size}"
    values = lambda x: "/".join(f"{value:.4g}" for value in x)  # noqa: E731
    lines.append(
        f"{'images':12} {size} pixels, {pre.resize}, {pre.interpolation}, mean "
        f"{values(pre.mean)}, std {values(pre.std)}"
    )
    kind, _, path = pre.tokenizer.partition(":")
    words = f"{kind}, {path.rpartition('/')[2]}" if path else kind
    lines.append(f"{'texts':12} {pre.context_length} tokens of {words}")
    lines.append(f"{'left out':12} {', '.join(left_out) or 'nothing'}")
    lines += [
        f"{'published':12} {section} {metric} {value:.1%}"
        for section, metrics in (numbers or {}).items()
        for metric, value in metrics.items()
    ]
    return "\n".join(lines)
