"""Recipes in their laptop version, from the first step to an evaluation, by the training loop."""

import importlib
import shutil
import tempfile
from pathlib import Path

from absl import flags

from tests.benchmarks.accelerator.child import ROOT

STEPS = 3
# How a recipe's laptop version is asked for; some are small as they stand.
LAPTOP = ("runlocal", "data=scenes", "")
# What changes a recipe's program: (options, values of the config).
VARIATIONS = {
    "cogvlm": (
        ("ablation=full_mask", {}),
        ("", {"method.layout": "general"}),
        ("size=19b", {}),
        ("stage=2", {}),
        ("stage=lora", {}),
    ),
    "transfer": (("mode=finetune", {}),),
}


def cases() -> list[dict]:
    """Arguments of `run`: every recipe of configs/ that needs no files, then the variations."""
    found = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        for options in LAPTOP:
            try:
                config = importlib.import_module(f"configs.{path.stem}").get_config(options)
            except ValueError:  # it knows no such option
                continue
            if config.data.name == "scenes" and not config.get("init"):
                found[path.stem] = options
                break
    plain = [{"recipe": name, "options": options, "values": {}} for name, options in found.items()]
    varied = [
        {"recipe": name, "options": f"{options},{found[name]}".strip(","), "values": values}
        for name, changes in VARIATIONS.items()
        for options, values in changes
    ]
    # Those made for a laptop from the start are like others.
    return sorted(plain, key=lambda case: not case["options"]) + varied


def make_config(recipe: str, options: str, values: dict, dtype: str):
    """Three steps of a recipe and its evaluations; a generation where the model can write."""
    config = importlib.import_module(f"configs.{recipe}").get_config(options)
    config.total_steps, config.log_every_steps = STEPS, 1
    config.method.dtype = dtype
    with config.unlocked():
        config.update_from_flattened_dict(values)
        if config.method.name == "cogvlm" and config.preprocess.get("image_token_size"):
            config.evals.written = {
                "evaluator": "vqa",
                "data": {"name": "scenes", "split": "val", "size": 8, "image_size": 48},
                "weights": "model",
                "every_steps": STEPS,
                "batch_size": 8,
            }
    config.optim.warmup_steps = 1
    return config


def run(recipe: str, options: str, values: dict, dtype: str, folder: str) -> dict:
    """{"losses": of each step, "evaluations": {name: value}} of a run of three steps."""
    from big_vlp.run.log import TRAIN, read_log
    from big_vlp.train import train

    if not flags.FLAGS.is_parsed():  # Grain asks for it
        flags.FLAGS.mark_as_parsed()
    workdir = Path(tempfile.mkdtemp(dir=folder))
    train(make_config(recipe, options, values, dtype), workdir)
    lines = read_log(workdir)
    shutil.rmtree(workdir)
    return {
        "losses": [line["values"]["loss"] for line in lines if line["split"] == TRAIN],
        "evaluations": {
            f"{line['split']}/{name}": value
            for line in lines
            if line["split"] != TRAIN
            for name, value in line["values"].items()
        },
    }
