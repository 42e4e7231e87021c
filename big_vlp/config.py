"""What recipes in configs/ share: mini-options, tower sizes, data sets, and the laptop version."""

import math

import ml_collections

# Width, layers and heads of the towers in the literature's standard sizes.
IMAGE_TOWERS = {
    "vitb32": {"patch_size": 32, "width": 768, "layers": 12, "heads": 12},
    "vitb16": {"patch_size": 16, "width": 768, "layers": 12, "heads": 12},
}
TEXT_TOWER = {"vocab_size": 49_408, "width": 512, "layers": 12, "heads": 8}

# Pairs in each pretraining set, as trained on by COSMOS (arXiv 2412.01814).
PRETRAINING_PAIRS = {
    "cc3m": 2_823_019,
    "cc12m": 10_010_225,
    "yfcc15m": 14_065_827,
    "merged30m": 26_899_071,
    "pixelprose": 15_037_386,
}


def parse_options(arg: str | None, **defaults) -> ml_collections.ConfigDict:
    """Reads "model=vitb32,runlocal" into the defaults; a name alone means True.

    Values take the type of their default.

    Raises:
      ValueError: an unknown option, or a value that does not fit.
    """
    options = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, has_value, value = item.partition("=")
        if name not in defaults:
            raise ValueError(f"Unknown config option {name!r}; this config has {list(defaults)}.")
        kind = type(defaults[name])
        if kind is bool:
            choices = {"": True, "true": True, "false": False}
            if value.lower() not in choices:
                raise ValueError(f"Config option {name} is a switch, not {value!r}.")
            options[name] = choices[value.lower()]
        elif not has_value:
            raise ValueError(f"Config option {name!r} needs a value: {name}=...")
        else:
            try:
                options[name] = kind(value)
            except ValueError:
                raise ValueError(
                    f"Config option {name} is of type {kind.__name__}, not {value!r}."
                ) from None
    return ml_collections.ConfigDict(options)


def prepared(name: str) -> dict:
    """The `data` section of a pretraining set in data/; merged30m is made of three others."""
    parts = {"merged30m": ("cc3m", "cc12m", "yfcc15m")}.get(name)
    if parts is None:
        return {"name": "prepared", "path": f"data/{name}"}
    return {"name": "mixture", "sources": tuple(prepared(part) for part in parts)}


def choose(what: str, table: dict, name: str):
    """table[name], or a ValueError that lists the choices."""
    if name not in table:
        raise ValueError(f"Unknown {what} {name!r}; choose one of {list(table)}.")
    return table[name]


def steps_of(pairs: int, global_batch: int, epochs: int) -> int:
    """Steps of a run; epochs are rounded up to 16 batches, as in the published runs."""
    return math.ceil(math.ceil(pairs / global_batch) / 16) * 16 * epochs


def run_local(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same recipe in a minute on a laptop: scenes, tiny towers, few steps, fp32."""
    config.total_steps = 30
    config.global_batch = 16
    config.log_every_steps = 5
    config.data = {"name": "scenes", "image_size": 48}
    config.preprocess.image_size = 32
    config.preprocess.context_length = 48
    if "local_size" in config.views:
        config.views.update(local_size=16, num_local=2, num_captions=4)
    config.views.caption_mode = "textcrop" if config.views.name == "cosmos" else "random"
    config.loader.num_workers = 0
    tiny = {"width": 64, "layers": 2, "heads": 2}
    config.method.model.image.update(patch_size=8, **tiny)
    config.method.model.text.update(**tiny)
    config.method.model.embed_dim = 64
    config.method.dtype = "float32"
    if "text_lengths" in config.method:
        config.method.text_lengths = (32,)
    config.optim.update(warmup_steps=5, learning_rate=1e-3)
    config.checkpoint.every_steps = 15
    data = {"name": "scenes", "split": "val", "size": 64, "image_size": 48}
    for evaluator in config.evals.values():
        evaluator.data = data
        evaluator.update(every_steps=15, batch_size=32)
        if "caption_field" in evaluator:
            evaluator.caption_field = "caption"
    return config
