"""CogVLM's loss and gradients of packed rows on meshes of eight devices; prints them as JSON.

A program of its own, since the number of devices is fixed when jax starts.
"""

import json

import jax
import numpy as np

from big_vlp import trees
from big_vlp.parallel import meshes, placing
from big_vlp.telemetry.hlo import Program
from tests.big_vlp.methods.test_cogvlm_rows import EACH, pack
from tests.big_vlp.methods.toy_cogvlm_method import make, make_batch, make_model

MESHES = ("8,1,1", "2,2,2")


def packed():
    rows = [[EACH[0], EACH[1]], [EACH[2]], [EACH[3], EACH[4]], [EACH[4]]]
    return pack([*rows, *rows[::-1]])


def static():
    return {name: np.concatenate([x, x[::-1]]) for name, x in make_batch().items()}


def run(method, model, batch, mesh):
    """{"loss", "gradients", "moved"}: kind and arrays of what devices send each other."""
    if mesh is not None:
        model = jax.device_put(model, placing.place(model, mesh, method.splits))
        batch = meshes.global_batch(batch, mesh, len(batch["tokens"]))

    def loss(model, batch):
        return method.loss(model, {}, {}, {}, batch, rng=jax.random.key(0), step=0)[0]

    step = jax.jit(jax.value_and_grad(loss)).lower(model, batch).compile()
    value, gradients = step(model, batch)
    return {
        "loss": float(value),
        "gradients": {
            k: np.asarray(x).ravel().tolist() for k, x in trees.flatten(gradients).items()
        },
        "moved": [found[:2] for found in Program(step.as_text()).collectives()],
    }


def main():
    jax.config.update("jax_default_matmul_precision", "highest")
    placing.FSDP_MIN_BYTES = 64
    results = {}
    for layout, batch in (("general", packed()), ("static", static())):
        method = make(layout=layout, remat="full")
        model = make_model(method)
        results[layout] = {"none": run(method, model, batch, None)}
        for sizes in MESHES:
            mesh = meshes.make_mesh(*map(int, sizes.split(",")))
            with jax.set_mesh(mesh):
                results[layout][sizes] = run(method, model, batch, mesh)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
