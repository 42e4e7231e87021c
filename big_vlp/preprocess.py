"""The preprocess record: everything that decides how pixels and text become model input."""

import dataclasses
import json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Saved in every model directory; evaluators, converters and the API read it and nothing else.

    Attributes:
      image_size: side of the square input, in pixels.
      resize: "shortest" (shortest side to `image_size`, then centre crop) or "squash".
      interpolation: "bicubic" (PIL's, with antialiasing).
      mean, std: per-channel, for pixels in 0..1.
      activation: the MLP non-linearity the weights were trained with.
      tokenizer: name for `input_pipeline.tokenizers.make_tokenizer`.
      context_length: tokens per caption.
    """

    image_size: int
    tokenizer: str
    context_length: int
    resize: str = "shortest"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    activation: str = "gelu"

    def __post_init__(self):
        for name, known in (("resize", ("shortest", "squash")), ("interpolation", ("bicubic",))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; choose one of {known}.")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Preprocess":
        fields = json.loads(text)
        for name in ("mean", "std"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
