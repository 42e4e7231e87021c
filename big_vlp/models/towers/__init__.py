"""Image towers: one module each, chosen by name."""

from collections.abc import Mapping
from typing import Any

from big_vlp.models.towers.shared.base import Tower
from input_pipeline.checks import arguments, parts


def make_tower(section: str, name: str, given: Mapping[str, Any], **fixed) -> Tower:
    """Builds the `Tower` of a module of this package, or of another: see `checks.parts`.

    Args:
      section: of the config that `given` is, for messages.
      given: arguments of the tower.
      fixed: what else decides; without an `image_size` where the tower has none.

    Raises:
      ValueError: no such tower.
      ArgumentError: the tower does not take one of the arguments, or lacks one.
    """
    kind = parts.find("tower", __name__, name, "Tower")
    if "image_size" not in kind.__dataclass_fields__:
        fixed.pop("image_size", None)
    return arguments.call(section, kind, given, **fixed)
