"""FLOPs of CogVLM-17B per sample, as XLA counts them, against the published counts.

The training steps of configs/cogvlm.py at 224 pixels (stage 1) and at 490 (stage 2), 64 text
tokens: frozen weights have no gradient, blocks are written out (XLA counts the body of a loop
once), nothing is recomputed and nothing runs; dropout, whose random bits count too, is off. The
published counts, 14.25 and 62.9 TFLOPs, take half of causal attention, which XLA does not: `halved`
is XLA's count without the other half, 2 T^2 D per layer forward and twice that backward.

Routing: the forward pass of the language model over a row with an image, by the static and by the
general layout, against the same row as plain text.
"""

import dataclasses

import jax
import jax.numpy as jnp

from big_vlp import trees
from big_vlp.experiment import Experiment
from big_vlp.telemetry.flops import flops_per_sample
from configs import cogvlm

PUBLISHED = {"1": 14.25, "2": 62.9}  # TFLOPs per sample, causal attention halved
ROUTING_TARGET = 1.02


def measure() -> list[dict]:
    """No arguments."""
    return [step_flops(stage) for stage in PUBLISHED] + routing_flops()


def step_flops(stage: str) -> dict:
    """A training step, per sample."""
    experiment = make_experiment(stage)
    found = flops_per_sample(experiment) / 1e12
    text = experiment.method["model"]["text"]
    spec = experiment.make_views(experiment.preprocess["image_size"]).spec()
    length = spec["tokens"][0][0]
    halved = found - 3 * 2 * length**2 * text["width"] * text["layers"] / 1e12
    return {
        "case": f"step of stage {stage}, {experiment.preprocess['image_size']} pixels",
        "tokens": length,
        "tflops": found,
        "halved": halved,
        "published": PUBLISHED[stage],
        "ratio": halved / PUBLISHED[stage],
    }


def routing_flops() -> list[dict]:
    """The language model's forward pass over a row with an image of 224 pixels and 64 tokens."""
    experiment = make_experiment("1")
    method = dataclasses.replace(experiment.make_method(), unroll=True, remat=None)
    model = method.shapes[0]
    slots = (224 // 14) ** 2 + 2
    rows = jax.ShapeDtypeStruct((1, 1 + slots + 64), jnp.int32)
    features = jax.ShapeDtypeStruct((1, 1, slots, method.model["text"]["width"]), jnp.bfloat16)

    def count(features, layout):
        def forward(model, tokens, types, features):
            def run(module):
                return module.logits(module.hidden(tokens, types, features, layout)[0])

            return method.network.apply(trees.variables(model), method=run)

        lowered = jax.jit(forward).lower(model, rows, rows, features)
        return lowered.cost_analysis()["flops"] / 1e12

    plain = count(None, "any")
    found = {
        "text only": plain,
        "static layout": count(features, "static"),
        "general layout": count(features, "general"),
    }
    return [
        {
            "case": f"forward, {name}",
            "tokens": rows.shape[1],
            "tflops": flops,
            "ratio": flops / plain,
            "target": None if name == "text only" else ROUTING_TARGET,
        }
        for name, flops in found.items()
    ]


def make_experiment(stage: str) -> Experiment:
    """A stage of the recipe without dropout, with a tokenizer that needs no file."""
    config = cogvlm.get_config(f"stage={stage}")
    config.preprocess.tokenizer = "llama:scenes"
    config.method.model.text.dropout = 0.0
    return Experiment.from_config(config)
