"""Keys of configs that have another name now: told to whoever writes them, read where stored."""

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
    },
}


def refuse(config: Mapping[str, Any]) -> None:
    """Raises ValueError for the first key of a config that has another name now; says which."""
    for section, keys in RENAMED.items():
        given = _ours(config, section)
        for old, (new, value) in keys.items():
            if old in given:
                number = given[old]
                is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
                example = (
                    f": write {new}={value(number)!r} for {old}={number!r}" if is_number else ""
                )
                raise ValueError(f"config.{section}.{old} is called {new} now{example}.")


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
    return upgraded


def _ours(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """A section, or {} where it is not there, or describes a part from outside the package."""
    given = config.get(section)
    return given if isinstance(given, Mapping) and "." not in str(given.get("name")) else {}
