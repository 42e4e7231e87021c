"""What two models' towers compute otherwise, though weights do not tell: a start from others' asks.

Their arguments and records are compared, and no parameter is read.
"""

from collections.abc import Iterator, Mapping

# Shapes tell these, or they are a new task's choice.
_NOT_COMPARED = {
    "patch_size", "width", "layers", "heads", "mlp_dim", "vocab_size", "num_positions",
    "class_token", "norm_pre", "final_norm", "proj_bias", "ignore_rest", "output_stride",
}  # fmt: skip
_OF_IMAGES = ("resize", "interpolation")

Parts = Mapping[str, str | None]


def towers_of(method, parts: Parts) -> set[str]:
    """Paths of the towers that are taken, by their blocks, from another model's; `parts` as of
    `WarmStart`."""
    return {
        path
        for path in method.towers()
        for part, source in parts.items()
        if source is not None and _is_of(path, part)
    }


def differences(method, other, parts: Parts) -> list[str]:
    """One line for each argument in which a tower differs from that which it is taken from."""
    lines = []
    for path, wanted, source, found in _pairs(method, other, parts):
        lines += [
            f"{path}: {key}={value!r}, and {found[key]!r} in the old one's {source}"
            for key, value in wanted.items()
            if key in found and key not in _NOT_COMPARED and None not in (value, found[key])
            if value != found[key]
        ]
    return lines


def note(method, other, parts: Parts) -> str:
    """Words about images that are cut out in another way than the old model's were."""
    if not any("mean" in wanted for _, wanted, _, _ in _pairs(method, other, parts)):
        return ""
    new, old = method.preprocess, other.preprocess
    changed = [key for key in _OF_IMAGES if getattr(new, key) != getattr(old, key)]
    words = [f"{key}={getattr(new, key)!r}, not {getattr(old, key)!r}" for key in changed]
    return f"; images have {' and '.join(words)} as there" if words else ""


def _pairs(method, other, parts: Parts) -> Iterator[tuple[str, dict, str, dict]]:
    for path, wanted in method.towers().items():
        for source, found in other.towers().items():
            if any(
                old is not None and _is_of(path, part) and _is_of(source, old)
                for part, old in parts.items()
            ):
                yield path, wanted, source, found


def _is_of(tower: str, part: str) -> bool:
    """Whether a part holds the blocks of a tower."""
    return f"{tower}/transformer/".startswith(f"{part}/") or part.startswith(
        f"{tower}/transformer/"
    )
