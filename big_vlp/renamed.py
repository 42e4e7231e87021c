"""Keys of configs that have another name now: told to whoever writes them, read where stored."""

from collections.abc import Callable, Mapping
from typing import Any

# section: {old key: (new key, its value from the old one)}
RENAMED: dict[str, dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "method": {
        "momentum": ("ema_decay", lambda share: share),
        "momentum_steps": ("ema_decay_steps", lambda steps: steps),
        # It was the share of the new weights.
        "ema_momentum": ("ema_decay", lambda share: None if share is None else 1 - share),
    },
}


def refuse(config: Mapping[str, Any]) -> None:
    """Raises ValueError for the first key of a config that has another name now; says which."""
    for section, keys in RENAMED.items():
        given = config.get(section)
        for old, (new, value) in keys.items():
            if isinstance(given, Mapping) and old in given:
                raise ValueError(
                    f"config.{section}.{old} is called {new} now: write {new}={value(given[old])!r}"
                    f" for {old}={given[old]!r}."
                )


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as an earlier version stored it, with today's names."""
    upgraded = dict(config)
    for section, keys in RENAMED.items():
        given = config.get(section)
        if isinstance(given, Mapping):
            upgraded[section] = {
                keys[key][0] if key in keys else key: keys[key][1](value) if key in keys else value
                for key, value in given.items()
            }
    return upgraded
