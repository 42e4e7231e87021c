"""Model FLOPs of a training step per sample, as XLA counts them on lowered programs.

Counted by `big_vlp.compile.flops_per_sample`: nothing recomputed, no micro-batches, blocks written
out, elementwise work included; and without augmentation or dropout, whose random bits count too. A
tower's cost is linear in its layers, so towers of one and two layers tell it for any number. To be
called where jax has the CPU only: of a GPU's fused attention XLA counts nothing.
"""

from tests.benchmarks.accelerator.models import make_config, towers

# In the program: so many that the optimizer's share of a sample, and so few that the share of a
# contrastive loss, which grows with the batch, are below 0.1 %.
SAMPLES = 256


def count(model: str, tiny: bool, folder: str) -> dict:
    """{"base": FLOPs per sample with one layer a tower, "layers": {tower: of each further one}}."""
    names = tuple(towers(make_config(model, folder, tiny)))
    ones = dict.fromkeys(names, 1)
    base = flops(model, tiny, folder, ones)
    more = {name: flops(model, tiny, folder, {**ones, name: 2}) - base for name in names}
    return {"base": base, "layers": more}


def total(counted: dict, layers: dict[str, int]) -> float:
    """FLOPs per sample of a model with so many layers, from its `count`."""
    return counted["base"] + sum(
        (layers[name] - 1) * each for name, each in counted["layers"].items()
    )


def flops(model: str, tiny: bool, folder: str, layers: dict[str, int]) -> float:
    from big_vlp.experiment import Experiment
    from big_vlp.telemetry.flops import flops_per_sample

    config = make_config(model, folder, tiny, layers=layers)
    config.global_batch = SAMPLES
    for augmentation in ("photometric", "augment"):
        if augmentation in config.method:
            config.method[augmentation] = None
    if config.method.model.get("text", {}).get("dropout"):
        config.method.model.text.dropout = 0.0
    if "rules" in config.optim:
        config.optim.rules = tuple(r for r in config.optim.rules if not r[0].startswith("augment"))
    return flops_per_sample(Experiment.from_config(config))
