"""FLOPs of COSMOS' towers per sample, as XLA counts them, against the count of the published step.

The step of configs/cosmos.py as it stands: ViT-B/16 (or 32), two global and six local crops, eight
captions of 77 tokens, the student forward and backward, the teacher forward over two crops and two
captions. Blocks are written out (XLA counts the body of a loop once) and nothing is recomputed.
The loss, whose cost per sample grows with the batch, is left out: the backward pass starts from
given gradients of `Method.features`. So are augmentation, optimizer and teacher update. The count
is that of the lowered program before any optimisation, elementwise work included; nothing runs.

552.3 GFLOPs is the count of the same passes with each pooler's keys and values computed once
for all its queries; once per query costs 560.
"""

import dataclasses

import jax
import jax.numpy as jnp

from big_vlp.experiment import Experiment
from configs import cosmos

PUBLISHED = {"vitb16": 552.3}  # GFLOPs per sample
TARGET = 1.03


def measure(model: str = "vitb16", batch: int = 2, dtype: str = "both") -> list[dict]:
    """Args: model=vitb16|vitb32; samples in the program; dtype=both|float32|bfloat16."""
    rows = []
    for kind in ("float32", "bfloat16") if dtype == "both" else (dtype,):
        found = flops(model, batch, kind) / batch / 1e9
        published = PUBLISHED.get(model)
        rows.append(
            {
                "case": f"{model}, {kind}",
                "gflops_per_sample": found,
                "published": published,
                "ratio": published and found / published,
                "target": published and TARGET,
            }
        )
    return rows


def flops(model: str, batch: int, dtype: str) -> float:
    """FLOPs of one forward and backward pass over `batch` samples."""
    config = cosmos.get_config(f"model={model}")
    experiment = Experiment.from_config(config)
    method = dataclasses.replace(
        experiment.make_method(),
        dtype=dtype,
        unroll=True,
        remat=None,
        photometric=None,
        text_groups=(),
    )
    student, teacher = method.shapes
    samples = {
        # Floats pass as already normalised.
        name: jax.ShapeDtypeStruct((batch, *shape), jnp.int32 if name == "tokens" else jnp.float32)
        for name, (shape, _) in experiment.make_views(config.preprocess.image_size).spec().items()
    }

    def features(student, teacher, samples):
        return method.features(student, teacher, samples, jax.random.key(0))

    gradients, _ = jax.eval_shape(features, student, teacher, samples)

    def forward_and_backward(student, teacher, samples, gradients):
        found, backward, of_teacher = jax.vjp(
            lambda student: features(student, teacher, samples), student, has_aux=True
        )
        return found, of_teacher, backward(gradients)

    lowered = jax.jit(forward_and_backward).lower(student, teacher, samples, gradients)
    return lowered.cost_analysis()["flops"]
