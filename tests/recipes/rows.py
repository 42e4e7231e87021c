"""Tables of published numbers beside ours: rows, and how ours are read from the configs."""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from big_vlp.experiment import Experiment
from big_vlp.recipes import mean_batch
from big_vlp.run.optim import make_optimizer
from big_vlp.run.optim.schedules import SCHEDULES
from big_vlp.run.optim.updates import UPDATES
from input_pipeline.checks import parts
from input_pipeline.preprocess import Preprocess

# Reasons that several rows share.
CROPS = "a fifth of the cost of an exact filter, see Choices"
UNKNOWN = "not published"


class Row(NamedTuple):
    """One hyper-parameter.

    Attributes:
      name: for people.
      published: its value; None where there is none.
      ours: dotted path in the config, with defaults filled in, or a function of the config.
      why: the reason of a difference.
    """

    name: str
    published: Any
    ours: str | Callable[[Mapping], Any]
    why: str = ""


class Recipe(NamedTuple):
    """A table: one config string, and what was published of it.

    Attributes:
      title: heading.
      source: where the published values come from.
      config: file name without ending.
      arg: its options.
    """

    title: str
    source: str
    config: str
    arg: str
    rows: list[Row]


def adam(rate, final, warmup, decay, beta2, epsilon=1e-8, clip=None) -> list[Row]:
    """Rows of AdamW and its schedule."""
    return [
        Row("learning rate, peak", rate, "optim.learning_rate"),
        Row("learning rate, last (cosine)", final, "optim.final_learning_rate"),
        Row("warm-up steps", warmup, "optim.warmup_steps"),
        Row("weight decay", decay, "optim.weight_decay"),
        Row("Adam beta1", 0.9, "optim.beta1"),
        Row("Adam beta2", beta2, "optim.beta2"),
        Row("Adam epsilon", epsilon, "optim.epsilon"),
        Row("gradient norm clipped at", clip, "optim.clip_norm"),
    ]


def tower(path: str, **published) -> list[Row]:
    """Rows of a tower's sizes."""
    kind = path.split(".")[-1]
    names = {"model": "tower", "image": "image tower", "text": "text tower"}
    return [
        Row(f"{names[kind]}: {key.replace('_', ' ')}", value, f"{path}.{key}")
        for key, value in published.items()
    ]


CLIP_COLOURS = [
    Row("pixel mean", (0.48145466, 0.4578275, 0.40821073), "preprocess.mean"),
    Row("pixel deviation", (0.26862954, 0.26130258, 0.27577711), "preprocess.std"),
]


def epochs(pairs: int) -> Callable[[Mapping], int]:
    """Passes over so many examples, to the nearest whole one."""

    def count(config):
        per_step = mean_batch(
            config["plan"], config["preprocess"]["image_size"], config["global_batch"]
        )
        return round(config["total_steps"] * per_step / pairs)

    return count


def fixed(value) -> Callable[[Mapping], Any]:
    """What no config decides."""
    return lambda config: value


def load(name: str, arg: str) -> dict:
    """A config as nested dicts, with the defaults of what its sections build filled in."""
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    config = _plain(Experiment.from_config(config).as_json())
    method = parts.find("method", "big_vlp.methods", config["method"]["name"], "Method")
    views = parts.find("views", "input_pipeline.views", config["views"]["name"], "Views")
    for section, built in (
        ("optim", SCHEDULES[config["optim"].get("schedule", "cosine")]),
        ("optim", UPDATES[config["optim"].get("name", "adamw")]),
        ("optim", make_optimizer),
        ("preprocess", Preprocess),
        ("method", method),
        ("views", views),
    ):
        parameters = inspect.signature(built).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        config[section] = {**defaults, **config[section]}
    return config


def _plain(value):
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def value_of(config: Mapping, ours: str | Callable) -> Any:
    """Ours, of a row.

    Raises:
      ValueError: the config has no such key.
    """
    if callable(ours):
        return ours(config)
    value = config
    for key in ours.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"The config has no key {ours!r}.")
        value = value[key]
    return value


def same(a, b) -> bool:
    """Equal values, floats to what printing shows of them."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    numbers = (int, float)
    if isinstance(a, numbers) and isinstance(b, numbers):
        return math.isclose(a, b, rel_tol=1e-9)
    return a == b


def shown(value) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    return number(value) if isinstance(value, int | float) and value is not True else str(value)


def number(value) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.8g}"


def table(recipe: Recipe) -> list[str]:
    """Lines of Markdown.

    Raises:
      ValueError: a difference without a reason, or a reason without a difference.
    """
    config = load(recipe.config, recipe.arg)
    command = f"configs/{recipe.config}.py" + (f":{recipe.arg}" if recipe.arg else "")
    lines = [f"## {recipe.title}", "", f"`{command}`. Published: {recipe.source}.", ""]
    lines += ["| | published | here | why they differ |", "|---|---|---|---|"]
    for row in recipe.rows:
        ours = value_of(config, row.ours)
        if same(row.published, ours) == bool(row.why):
            raise ValueError(
                f"{recipe.title}, {row.name}: published {shown(row.published)}, here "
                f"{shown(ours)}; a row says why just where its values differ."
            )
        mark = "**" if row.why else ""
        lines.append(
            f"| {row.name} | {shown(row.published)} | {mark}{shown(ours)}{mark} | {row.why} |"
        )
    return [*lines, ""]
