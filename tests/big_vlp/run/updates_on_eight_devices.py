"""Three steps of each optimizer on one device and on eight; prints as JSON {name: [the largest
difference of the parameters, {path: [the parameter's split, those of what is remembered of it]}]}.

A program of its own, since the number of devices is fixed when jax starts.
"""

import json

import jax
import numpy as np

from big_vlp import trees
from big_vlp.parallel import meshes, placing
from big_vlp.run.optim.updates import UPDATES
from tests.big_vlp.run.test_updates import HIDDEN, SHAPES, arrays, optimizer


def compared(name, mesh):
    made, params = optimizer(name, clip_norm=1.0), arrays(0)
    moments = made.init(params)
    splits = {"tower/blocks/attn/qkv/kernel": placing.Split(-2)}
    place = placing.place({"params": params, "moments": moments}, mesh, splits)
    place, remembered = place["params"], place["moments"]
    here, there = (params, moments), jax.device_put((params, moments), (place, remembered))
    update = jax.jit(made.update)
    split = jax.jit(made.update, out_shardings=(place, remembered))
    for step in range(3):
        gradient = arrays(5 + step)
        here = update(gradient, here[1], here[0], step)
        there = split(jax.device_put(gradient, place), there[1], there[0], step)
    pairs = zip(*(trees.flatten(params).values() for params in (here[0], there[0])))
    own, flat = trees.flatten(there[0]), trees.flatten(there[1])
    found = {
        path: [
            placing.split_of(own[path]),
            [placing.split_of(x) for p, x in flat.items()
             if p.endswith(path) and x.shape == SHAPES[path]],
        ]
        for path in HIDDEN
    }  # fmt: skip
    return max(float(np.abs(a - np.asarray(b)).max()) for a, b in pairs), found


if __name__ == "__main__":
    placing.FSDP_MIN_BYTES = 1024
    mesh = meshes.make_mesh(data=1, fsdp=4, tensor=2)
    print(json.dumps({name: compared(name, mesh) for name in UPDATES}))
