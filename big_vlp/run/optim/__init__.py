"""Optimizers: an update and a schedule by name, and the rules that hold for all of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from big_vlp.models.layers.axes import Declared
from big_vlp.run.optim.rules import DEFAULT_RULES, Optimizer
from big_vlp.run.optim.schedules import SCHEDULES
from big_vlp.run.optim.updates import UPDATES
from input_pipeline.checks import arguments


def make_optimizer(
    name: str = "adamw",
    schedule: str = "cosine",
    *,
    total_steps: int,
    weight_decay: float,
    clip_norm: float | None = None,
    rules: tuple = DEFAULT_RULES,
    dead: Mapping[str, tuple] | None = None,
    declared: Declared | None = None,
    **keys: Any,
) -> Optimizer:
    """The optimizer of a config.

    Args:
      name: of UPDATES.
      schedule: of SCHEDULES.
      total_steps: length of the run.
      weight_decay, clip_norm, rules, dead, declared: see `Optimizer`.
      keys: the fields of that update and that schedule.

    Raises:
      ValueError: there is no such name, or numbers of steps do not fit together.
      ArgumentError: a key is none of theirs, is missing, or its value is of the wrong type.
    """
    made = []
    for what, table, chosen in (("schedule", SCHEDULES, schedule), ("optimizer", UPDATES, name)):
        if chosen not in table:
            raise ValueError(arguments.unknown(what, chosen, table))
        made.append(table[chosen])
    own = [{field.name for field in dataclasses.fields(part)} for part in made]
    for key in keys.keys() - set.union(*own):
        raise arguments.ArgumentError(_not_theirs(key, schedule, name, set.union(*own)))
    sections = [{k: v for k, v in keys.items() if k in names} for names in own]
    return Optimizer(
        schedule=arguments.call("", made[0], sections[0], total_steps=total_steps),
        algorithm=arguments.call("", made[1], sections[1]),
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        rules=rules,
        dead=dead or {},
        declared=declared or Declared(),
    )


def _not_theirs(key: str, schedule: str, name: str, known: set[str]) -> str:
    """The message for a key that neither has."""
    tables = (("schedule", SCHEDULES), ("optimizer", UPDATES))
    owners = [
        f"{what} {chosen!r}"
        for what, table in tables
        for chosen, part in table.items()
        if key in {field.name for field in dataclasses.fields(part)}
    ]
    if owners:
        return f"{key} is a key of {', '.join(owners)}; not of {schedule!r} and {name!r}."
    common = {"name", "schedule", "weight_decay", "clip_norm", "rules"}
    known = sorted(known - {"total_steps"} | common)
    return f"got an unexpected keyword argument {key!r}{arguments.nearest(key, known)}"
