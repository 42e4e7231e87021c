"""Keys of configs that have another name or place now: told to whoever writes them, read where
stored."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any

# section: {old key: (new key, its value from the old one)}
RENAMED: dict[str, dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "method": {
        "momentum": ("ema_decay", lambda old: old),
        "momentum_steps": ("ema_decay_steps", lambda steps: steps),
        # It was the share of the new weights.
        "ema_momentum": (
            "ema_decay",
            lambda share: None if share is None else round(1 - share, 12),
        ),
        # They say nothing of the shares.
        "text_lengths": ("text_groups", lambda lengths: ()),
    },
}


# How a new key is written whose value does not follow from the old one.
FORMS = {"text_groups": "((0.5, 16), (0.3, 32)), (share of the texts, length) of each group"}

# What `preprocess.activation` said is said by each tower that has one, in config.method.
ACTIVATION = "activation"
TWO_TOWERS = (("model", "image"), ("model", "text"))


def refuse(config: Mapping[str, Any]) -> None:
    """Raises ValueError for the first key of a config that has another name now; says which."""
    for section, keys in RENAMED.items():
        given = _ours(config, section)
        for old, (new, value) in keys.items():
            if old in given:
                number = given[old]
                is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
                example = f": write {new}={FORMS[new]}" if new in FORMS else ""
                if is_number and not example:
                    example = f": write {new}={value(number)!r} for {old}={number!r}"
                raise ValueError(f"config.{section}.{old} is called {new} now{example}.")
    given = _ours(config, "preprocess")
    if ACTIVATION in given:
        paths = [".".join(("config.method", *path, ACTIVATION)) for path in _towers(config)]
        written = " and ".join(f"{path}={given[ACTIVATION]!r}" for path in paths)
        advice = f"write {written}" if paths else "this method's towers have none, leave it out"
        raise ValueError(f"config.preprocess.activation is a key of the towers now: {advice}.")


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as an earlier version stored it, with today's names."""
    upgraded = dict(config)
    for section, keys in RENAMED.items():
        given = _ours(config, section)
        if keys.keys() & given.keys():
            upgraded[section] = {
                keys[key][0] if key in keys else key: keys[key][1](value) if key in keys else value
                for key, value in given.items()
            }
    given = _ours(config, "preprocess")
    if ACTIVATION in given:
        upgraded["preprocess"] = {k: v for k, v in given.items() if k != ACTIVATION}
        for path in _towers(config):
            path = ("method", *path, ACTIVATION)
            upgraded = _with(upgraded, path, given[ACTIVATION])
    return upgraded


def _towers(config: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Where in the section `method` the towers are described that took the record's activation."""
    method = _ours(config, "method")
    if method.get("name") in ("clip", "cosmos"):
        return TWO_TOWERS
    of_vit = method.get("name") == "transfer" and method.get("tower") == "vit"
    return (("model",),) if of_vit else ()


def _with(tree: Mapping[str, Any], path: tuple[str, ...], value) -> dict[str, Any]:
    """A copy of nested dicts with another value at a path."""
    name, *below = path
    return {**tree, name: _with(tree.get(name) or {}, tuple(below), value) if below else value}


def _ours(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """A section, or {} where it is not there, or describes a part from outside the package."""
    given = config.get(section)
    return given if isinstance(given, Mapping) and "." not in str(given.get("name")) else {}
