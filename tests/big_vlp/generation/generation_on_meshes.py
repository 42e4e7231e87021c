"""What a small model writes on meshes of up to eight devices; prints it as JSON.

A program of its own, since the number of devices is fixed when jax starts.
"""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp.generation.beams import Beams
from big_vlp.generation.cache import Settings, hashable, make_prompts, prefill
from big_vlp.generation.sampling import Sampling, _first, _next, generate
from big_vlp.models.cogvlm import CogVLM
from big_vlp.models.layers import axes
from big_vlp.parallel import meshes, placing
from big_vlp.telemetry.hlo import Program

MESHES = {"2,2,2": 8, "1,1,2": 2}
IMAGE = {"image_size": 28, "patch_size": 14, "width": 16, "layers": 1, "heads": 2, "mlp_dim": 16}
TEXT = {"vocab_size": 24, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_dim": 128}
BATCH, NEW = 8, 5
SHAPE = re.compile(r"\[([\d,]*)\]")


def elements(moved):
    """Of the largest array that devices send each other in a program."""
    shapes = [shape.split(",") for found in moved for shape in SHAPE.findall(found.arrays)]
    return max((math.prod(int(n) for n in shape if n) for shape in shapes), default=0)


def main():
    jax.config.update("jax_default_matmul_precision", "highest")
    model = CogVLM(image=IMAGE, text=TEXT, adapter_mlp_dim=16)
    row = jnp.zeros((1, 1), jnp.int32)
    images = jax.random.normal(jax.random.key(1), (BATCH, 1, 28, 28, 3))
    params = jax.jit(model.init)(jax.random.key(0), images[:1], row, row)["params"]
    params = jax.tree.map(lambda a: 6 * np.asarray(a) if a.ndim > 2 else np.asarray(a), params)
    splits = axes.traced(model.init, jax.random.key(0), images[:1], row, row)[1].splits
    tokens = np.random.default_rng(0).integers(3, 24, (BATCH, 11)).astype(np.int32)
    types = np.zeros((BATCH, 11), np.int32)
    types[:, 1:7] = 1
    types[np.arange(11) >= 7 + np.arange(BATCH)[:, None] % 5] = -1
    placing.FSDP_MIN_BYTES = 64

    def run(mesh):
        own = params
        if mesh is not None:
            own = jax.device_put(params, placing.place(params, mesh, splits))
        features = jax.jit(
            lambda params: model.apply({"params": params}, images, method="encode_images")
        )(own)
        ids = []
        # One row cannot be divided.
        for count, strategy in [
            (BATCH, None),
            (BATCH, Sampling(2.0)),
            (BATCH, Beams(2)),
            (1, None),
        ]:
            arguments = model, own, tokens[:count], types[:count], features[:count]
            options = dict(max_new_tokens=NEW, eos_id=2, layout="static")
            key = jax.random.key(5)
            ids.append(generate(*arguments, strategy=strategy, key=key, **options))
        settings = Settings(hashable(model), "static", NEW, 2, 0)
        prompts = make_prompts(tokens, types, features, "static", 1)
        cache = jax.jit(prefill, static_argnums=0)(settings, own, prompts, features)[2]
        leaves = jax.tree.leaves(own)
        cache, state = _first(settings, own, prompts, features, None, None)
        step = _next.lower(settings, own, cache, prompts.lengths, state, 1, None, None)
        moved = Program(step.compile().as_text()).collectives()
        return {
            "ids": [np.asarray(x).tolist() for x in ids],
            "cache": cache["key"].sharding.shard_shape(cache["key"].shape)[1:4:2],
            "moved": elements(moved),
            "split": mesh and sum(placing.bytes_per_device(x) < x.nbytes for x in leaves),
        }

    results = {"none": run(None)}
    for sizes, devices in MESHES.items():
        mesh = meshes.make_mesh(*map(int, sizes.split(",")), devices=jax.devices()[:devices])
        with jax.set_mesh(mesh):
            results[sizes] = run(mesh)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
