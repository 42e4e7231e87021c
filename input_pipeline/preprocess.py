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
      tokenizer: name for `text.tokenizers.make_tokenizer`; None where the model takes no text.
      context_length: tokens per caption; 0 without text.
      resize: "shortest" (shortest side to `resize_size`, then centre crop) or "squash".
      resize_size: pixels, for "shortest" only; None is `image_size`.
      crop_rounding: of the centre crop's offsets where they end in a half: "even" (torchvision's)
        or "down" (that of CatLIP's code, arXiv 2404.15653).
      interpolation: "bicubic" or "bilinear" (PIL's, with antialiasing).
      mean, std: per-channel, for pixels in 0..1.
      image_token_size: side of the square behind one image token of CogVLM, in pixels; None where
        no text is written about images.

    Raises:
      ValueError: an unknown rule, or values that contradict each other.
    """

    image_size: int
    tokenizer: str | None = None
    context_length: int = 0
    resize: str = "shortest"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resize_size: int | None = None
    crop_rounding: str = "even"
    image_token_size: int | None = None

    def __post_init__(self):
        for name, known in (
            ("resize", ("shortest", "squash")),
            ("interpolation", ("bicubic", "bilinear")),
            ("crop_rounding", ("even", "down")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; choose one of {known}.")
        if (self.tokenizer is None) != (self.context_length == 0):
            raise ValueError(
                f"tokenizer={self.tokenizer!r} with context_length={self.context_length}: set "
                "both, or neither where the model takes no text."
            )
        if self.resize_size is not None and (
            self.resize != "shortest" or self.resize_size < self.image_size
        ):
            raise ValueError(
                f"resize_size={self.resize_size} is for resize='shortest' and at least image_size; "
                f"got resize={self.resize!r}, image_size={self.image_size}."
            )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Preprocess":
        fields = json.loads(text)
        for name in ("mean", "std"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
