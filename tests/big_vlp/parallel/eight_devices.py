"""Losses, gradients and statistics of methods on meshes of eight devices; prints them as JSON.

    eight_devices.py clip,catlip 2,4,1 ...

A program of its own, since the number of devices is fixed when jax starts. For each method named:
the plain form on one device without a mesh, then scanned, rematerialised, accumulated, in row
blocks and with texts in groups, on each mesh named (data,fsdp,tensor, and slices).
"""

import dataclasses
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import losses, trees
from big_vlp.methods import make_method
from big_vlp.methods.shared import text_groups
from big_vlp.models.layers.attention import rows, written
from big_vlp.parallel import meshes, placing
from big_vlp.telemetry.hlo import Program
from input_pipeline.preprocess import Preprocess

BATCH = 16
PREPROCESS = Preprocess(image_size=16, tokenizer="clip", context_length=10)
MODEL = {
    "image": {"patch_size": 8, "width": 16, "layers": 2, "heads": 4},
    "text": {"vocab_size": 64, "width": 16, "layers": 2, "heads": 4},
    "embed_dim": 16,
}
# Of a device's captions; some devices have more long ones than that.
GROUPS = ((0.5, 4), (0.25, 6))
SIGLIP = {
    "image": {**MODEL["image"], "pool": "map"},
    "text": {**MODEL["text"], "causal": False, "pool": "last"},
    "embed_dim": 16,
}
METHODS = {
    "clip": dict(name="clip", model=MODEL),
    "siglip": dict(name="clip", model=SIGLIP, loss_type="sigmoid"),
    "cosmos": dict(name="cosmos", model={**MODEL, "pooler_heads": 4}, ema_decay=0.9),
    # BatchNorm over the global batch, and a classifier that "tensor" splits.
    "catlip": dict(
        name="catlip",
        model={"width": 16, "layers": 2, "heads": 4, "num_positions": 4},
        num_classes=24,
        augment={"total_steps": 10},
    ),
}


def make_batch(name):
    rng = np.random.default_rng(0)
    images = lambda *shape: rng.normal(size=(BATCH, *shape, 3)).astype(np.float32)  # noqa: E731
    tokens = rng.integers(1, 60, (BATCH, 4, 10)).astype(np.int32)
    lengths = rng.integers(2, 8, (BATCH, 4))  # the longest needs 8 of 10
    tokens[np.arange(10) >= lengths[..., None]] = 0
    np.put_along_axis(tokens, lengths[..., None], 63, axis=-1)
    if name == "catlip":
        labels = rng.integers(-1, 24, (BATCH, 5)).astype(np.int32)
        return {"image": rng.random((BATCH, 32, 32, 3)).astype(np.float32), "labels": labels}
    if name != "cosmos":
        return {"image": images(16, 16), "tokens": tokens[:, 0]}
    return {
        "global_images": images(2, 16, 16),
        "local_images": images(3, 8, 8),
        "tokens": tokens,
    }


def evaluate(method, params, batch, mesh=None):
    """Loss, gradients, and how many parameters were really split."""
    split = 0
    if mesh is not None:
        params = jax.device_put(params, placing.place(params, mesh, method.splits))
        batch = meshes.global_batch(batch, mesh, BATCH)
        split = sum(placing.bytes_per_device(x) < x.nbytes for x in jax.tree.leaves(params[0]))

    def loss(model, averaged, statistics, batch):
        rng = jax.random.key(1)
        value, (new, _) = method.loss(model, {}, averaged, statistics, batch, rng=rng, step=0)
        return value, new

    model, statistics = trees.split_statistics(params[0])
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, statistics), grads = step(model, params[1], statistics, batch)
    arrays = trees.flatten(trees.merge(grads, statistics))
    return {
        "loss": float(value),
        "arrays": {path: np.asarray(x).ravel().tolist() for path, x in arrays.items()},
        "split": split,
    }


def sent_by_groups():
    """What devices send each other to encode texts in groups: (kind, arrays) of the program."""
    mesh = meshes.make_mesh()
    tokens = meshes.global_batch({"tokens": make_batch("clip")["tokens"]}, mesh, BATCH)["tokens"]

    def fn(table, tokens):
        return table[tokens].sum(axis=1)

    def loss(table, tokens):
        return (text_groups.encode(fn, table, tokens, GROUPS) ** 2).sum()

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss)).lower(jnp.ones((64, 3)), tokens).compile()
    return [found[:2] for found in Program(step.as_text()).collectives()]


def attend(fn, **options):
    """Sum of squares and gradients of causal attention with dropout."""
    qkv = np.random.default_rng(0).normal(size=(3, 4, 20, 4, 8)).astype(np.float32)
    dropout = 0.25, jax.random.split(jax.random.key(5), 4)

    def loss(*arrays):
        return (fn(*arrays, causal=True, dropout=dropout, **options) ** 2).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*qkv)
    arrays = {str(i): np.asarray(x).ravel().tolist() for i, x in enumerate(gradients)}
    return {"loss": float(value), "arrays": arrays}


def attention_of_whole_rows():
    """By XLA on one device, and by the kernel on a mesh that splits rows and heads."""
    with jax.set_mesh(meshes.make_mesh(2, 2, 2)):
        kernel = attend(rows.attention, interpret=True)
    return {"plain": attend(written.whole), "kernel": kernel}


def main():
    jax.config.update("jax_default_matmul_precision", "highest")
    results = {}
    for name in sys.argv[1].split(","):
        arguments = METHODS[name]
        plain = make_method(preprocess=PREPROCESS, dtype="float32", unroll=True, **arguments)
        batch = make_batch(name)
        params = jax.jit(lambda key, method=plain: method.init(key))(jax.random.key(0))
        results[name] = {"plain": evaluate(plain, params, batch)}
        method = dataclasses.replace(plain, unroll=False, remat="full", accumulate_steps=2)
        if arguments["model"] is not SIGLIP and hasattr(plain, "text_groups"):
            method = dataclasses.replace(method, text_groups=GROUPS)
        placing.FSDP_MIN_BYTES, losses.BLOCK_LOGITS = 64, 64
        for sizes in sys.argv[2:]:
            numbers = [int(size) for size in sizes.split(",")]
            mesh = meshes.make_mesh(*numbers, devices=jax.devices()[: math.prod(numbers[:3])])
            with jax.set_mesh(mesh):
                results[name][sizes] = evaluate(method, params, batch, mesh)
    results["sent"] = sent_by_groups()
    results["rows"] = attention_of_whole_rows()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
