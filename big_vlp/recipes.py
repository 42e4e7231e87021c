"""What recipes in configs/ share: mini-options, tower sizes, data sets, and the laptop version."""

import math
from pathlib import Path

import ml_collections

import input_pipeline
from evaluators.datasets import tasks
from evaluators.datasets.suites import suite
from input_pipeline.checks.arguments import unknown
from input_pipeline.plans import make_plan

# The vocabulary of the scenes' captions, and how many shapes they have.
SCENES_VOCABULARY = str(Path(input_pipeline.__file__).parent / "data" / "scenes_vocabulary.tsv")
NUM_SHAPES = 8

# Width, layers and heads of the towers in the literature's standard sizes.
IMAGE_TOWERS = {
    "vitb32": {"patch_size": 32, "width": 768, "layers": 12, "heads": 12},
    "vitb16": {"patch_size": 16, "width": 768, "layers": 12, "heads": 12},
}
CATLIP_TOWERS = {
    "b16": {"width": 768, "layers": 12, "heads": 12},
    "l16": {"width": 1024, "layers": 24, "heads": 16},
    "h16": {"width": 1280, "layers": 32, "heads": 20},
}
DEMO_TOWER = {"width": 128, "layers": 3, "heads": 4, "num_positions": 16}
# CogVLM's smaller image tower, which is EVA02-CLIP-L without its last block.
EVA2_L = {"patch_size": 14, "width": 1024, "layers": 23, "heads": 16, "mlp_dim": 2730}
VICUNA_7B = {
    "vocab_size": 32_000, "width": 4096, "layers": 32, "heads": 32, "mlp_dim": 11_008,
}  # fmt: skip
TEXT_TOWER = {"vocab_size": 49_408, "width": 512, "layers": 12, "heads": 8}

# Optimizer rules of CatLIP (arXiv 2404.15653). The published recipe spares vectors from decay, but
# its class token is stored as a matrix and decays, as the augmentation's scalars do.
CATLIP_RULES = (
    ("(tower|classifier)/.*(kernel|position_embedding|class_token)", 1.0, 1.0),
    ("(tower|classifier)/.*(bias|scale)", 1.0, 0.0),
    ("augment/.*", 1.0, 1.0),
)

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
            raise ValueError(unknown("config option", name, defaults))
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


def caption_mode(captions: str, data: str) -> str:
    """Which text a contrastive recipe draws: "raw" captions of people, or "random" sentences."""
    choose("captions", dict.fromkeys(("raw", "random")), captions)
    return f"{captions}_pixelprose" if data == "pixelprose" else captions


def suites_in_data(total_steps: int, **settings) -> dict[str, dict]:
    """Sections of `evals` for what is in data/ (`python -m evaluators.datasets check` says what
    there could be): the suite "cosmos" after the last step, those of "quick" every 2,500.

    Args:
      settings: `weights` and `paper` of `suite`.
    """
    sections = suite("cosmos", every_steps=total_steps, **settings)
    often = {f"cosmos/{task.section}" for task in tasks.suite("quick")}
    for section in sections.values():
        if section["task"] in often:
            section["every_steps"] = 2500
    return sections


def suite_prepared(name: str, **schedule) -> dict[str, dict]:
    """Sections of `evals` for all tasks of a suite of models that write that can be scored, from
    prepared shards in data/, which must be there.

    Args:
      schedule: `every_steps`, `weights`, `batch_size` of each, and `paper`, see `suite`.
    """
    return {
        task.section: {
            **task.settings,
            "data": prepared(task.folder),
            "task": task.id,
            **schedule,
        }
        for task in tasks.suite(name)
        if not task.secret
    }


def choose(what: str, table: dict, name: str):
    """table[name], or a ValueError that lists the choices."""
    if name not in table:
        raise ValueError(unknown(what, name, table))
    return table[name]


def steps_of(pairs: int, global_batch: int, epochs: int) -> int:
    """Steps of a run; epochs are rounded up to 16 batches, as in the published runs."""
    return math.ceil(math.ceil(pairs / global_batch) / 16) * 16 * epochs


def mean_batch(plan: dict, image_size: int, global_batch: int) -> float:
    """Examples of a step on average over a plan's sizes, which are drawn alike."""
    made = make_plan(
        **plan, image_size=image_size, global_batch=global_batch, total_steps=0, seed=0
    )
    return sum(batch for _, batch in made.shapes) / len(made.shapes)


def layerwise_rules(layers: int, decay: float) -> tuple:
    """Optimizer rules of fine-tuning with learning rates that fall towards the first layer.

    Block k of L learns at decay^(L - k), what is before the blocks at decay^(L + 1), the final norm
    at decay; the classifier at 1 and without weight decay, as in the reference.

    Args:
      layers: L, blocks of the image tower.
    """
    blocks = tuple(round(decay ** (layers - k), 5) for k in range(layers))
    first = round(decay ** (layers + 1), 5)
    matrices, vectors = ".*(kernel|position_embedding|class_token)", ".*(bias|scale)"
    rules = []
    for part, rate in (
        ("tower/transformer/blocks/", blocks),
        ("tower/(?!transformer|norm_post)", first),
        ("tower/norm_post/", decay),
    ):
        rules += [(part + vectors, rate, 0.0)]
        if part != "tower/norm_post/":
            rules += [(part + matrices, rate, 1.0)]
    return (*rules, ("classifier/.*", 1.0, 0.0), ("augment/.*", first, 1.0))


def run_local(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same recipe in a minute on a laptop: scenes, tiny towers, few steps, fp32."""
    config.total_steps = 30
    config.global_batch = 16
    config.log_every_steps = 5
    config.data = {"name": "scenes", "image_size": 48}
    config.preprocess.image_size = 32
    config.loader.num_workers = 0
    config.method.dtype = "float32"
    config.optim.update(warmup_steps=5, learning_rate=1e-3)
    if "hold_steps" in config.optim:
        config.optim.hold_steps = 0
    config.checkpoint.every_steps = 15
    data = {"name": "scenes", "split": "val", "size": 64, "image_size": 48}
    for evaluator in config.get("evals", {}).values():
        evaluator.data = data
        evaluator.update(every_steps=15, batch_size=32)
        if "caption_field" in evaluator:
            evaluator.caption_field = "caption"
        for key in ("task", "paper"):  # other data, other numbers
            if key in evaluator:
                del evaluator[key]
    tiny = {"width": 64, "layers": 2, "heads": 2}
    if config.method.name == "cogvlm":
        return _run_cogvlm_local(config, tiny)
    if "tokenizer" not in config.preprocess:
        return _run_classifier_local(config, tiny)
    config.preprocess.context_length = 48
    if "local_size" in config.views:
        config.views.update(local_size=16, num_local=2, num_captions=4)
    config.views.caption_mode = "textcrop" if config.views.name == "cosmos" else "random"
    config.method.model.image.update(patch_size=8, **tiny)
    config.method.model.text.update(**tiny)
    config.method.model.embed_dim = 64
    if "text_groups" in config.method:
        config.method.text_groups = ((0.5, 32),)
    return config


def _plan(config) -> str | None:
    """The name of the config's plan; None where that is the default."""
    return config.plan.name if "plan" in config else None


def _run_cogvlm_local(config, tower):
    config.init = {}
    token_size, image = config.preprocess.image_token_size, config.method.model.image
    side = 28 if 28 % token_size == 0 else 2 * token_size
    config.preprocess.update(image_size=2 * side, tokenizer="llama:scenes", context_length=64)
    if _plan(config) == "switch":
        config.plan.update(first_size=side, at_step=config.total_steps // 2)
    image.update(mlp_dim=128, **tower)
    if "image_size" in image:
        image.image_size = side
    config.method.model.text.update(vocab_size=640, mlp_dim=128, **tower)
    config.method.model.adapter_mlp_dim = 128
    if "expert_every" in config.method.model:
        config.method.model.expert_every = 2
    # What is trained of some blocks is trained of all.
    config.optim.rules = tuple(
        (pattern, 1.0 if isinstance(rate, tuple) else rate, decay)
        for pattern, rate, decay in config.optim.rules
    )
    if config.method.model.text.get("kv_heads"):
        config.method.model.text.kv_heads = 1
    return config


def _run_classifier_local(config, tower):
    config.preprocess.resize_size = None
    if _plan(config) == "variable":
        config.plan.update(sizes=(16, 32, 48), batch_multiple=8)
    if config.method.augment is not None:
        config.method.augment.total_steps = config.total_steps
    epochs = [config.optim, config.method.augment or {}]
    for section in (section for section in epochs if "epoch_steps" in section):
        section.epoch_steps = config.total_steps // 10
    if "vocabulary" in config.views:
        config.views.update(vocabulary=SCENES_VOCABULARY, caption_fields=None, stored=False)
    if "num_classes" in config.views:
        config.views.num_classes = NUM_SHAPES
    if "init" in config:
        config.init = {}
    config.method.model.update(**tower)
    rules = config.optim.rules
    if any(isinstance(rate, tuple) for _, rate, _ in rules):  # of full-size towers
        decay = next(rate for pattern, rate, _ in rules if "norm_post" in pattern)
        config.optim.rules = layerwise_rules(tower["layers"], decay)
    return config
