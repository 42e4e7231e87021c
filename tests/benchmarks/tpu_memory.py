"""Memory of the contrastive losses on each of 16 TPU devices, in their dense form and in ours.

Compiled, not run, for a v5e 4x4 slice: the loss and its gradients with respect to the student's
features, of 512 dimensions, split over all devices. The dense form is the formula as it is written
in the papers, left to the compiler; ours is what training uses. COSMOS has two global and six
local views and eight captions. Where a program does not fit, what it would need is shown.

Needs `libtpu`.
"""

import os
import re

import jax
import jax.numpy as jnp

from big_vlp import losses
from big_vlp.parallel import meshes

TOPOLOGY = "v5e:4x4"
WIDTH = 512


def measure(sigmoid_batch: int = 32_768, cosmos_batch: int = 16_384) -> list[dict]:
    """Args: global batches of the two losses."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # this is no TPU machine
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    mesh = meshes.make_mesh(devices=devices)
    cases = {
        ("sigmoid", sigmoid_batch): (
            sigmoid,
            {"dense": dense_sigmoid, "ours": losses.sigmoid_loss},
        ),
        ("cosmos", cosmos_batch): (cosmos, {"dense": dense_pairs, "ours": losses.info_nce_pairs}),
    }
    rows = []
    for (name, batch), (make, forms) in cases.items():
        for form, loss in forms.items():
            with jax.set_mesh(mesh):
                found = compiled_mib(*make(loss, batch, mesh))
            rows.append({"loss": name, "global_batch": batch, "form": form, "temporary_mib": found})
    return rows


def features(batch: int, views: int, mesh):
    shape = (batch, views, WIDTH)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=meshes.over_batch(mesh))


def scalar(mesh):
    return jax.ShapeDtypeStruct((), jnp.float32, sharding=meshes.replicated(mesh))


def sigmoid(loss, batch: int, mesh):
    def program(image, text, scale, bias):
        return loss(image[:, 0], text[:, 0], scale, bias)

    sides = features(batch, 1, mesh), features(batch, 1, mesh)
    return jax.grad(program, argnums=(0, 1, 2, 3)), (*sides, scalar(mesh), scalar(mesh))


def cosmos(pairs, batch: int, mesh):
    """COSMOS' 80 terms: 8 captions x 2 global images, 16 views and captions x 4 of the teacher."""

    def program(student, teacher, scale):
        image, text, crossed = student
        clip = pairs(text, image[:, :2], scale).mean()
        table = pairs(crossed, teacher, scale)
        return clip + sum(table[i : i + 8, j : j + 2].mean() for i in (0, 8) for j in (0, 2)) / 4

    student = tuple(features(batch, views, mesh) for views in (8, 8, 16))
    return jax.grad(program, argnums=(0, 2)), (student, features(batch, 4, mesh), scalar(mesh))


def dense_sigmoid(image, text, scale, bias):
    logits = scale * jnp.einsum("bd,cd->bc", image, text, precision="float32") + bias
    same = 2 * jnp.eye(len(image)) - 1
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(same * logits), axis=1))


def dense_pairs(x, y, scale):
    logits = scale * jnp.einsum("bvd,cwd->vwbc", x, y, precision="float32")
    positives = jnp.diagonal(logits, axis1=2, axis2=3)
    both = jax.nn.logsumexp(logits, axis=3) + jax.nn.logsumexp(logits, axis=2)
    return jnp.mean(both / 2 - positives, axis=-1)


def compiled_mib(program, arguments) -> float:
    """MiB of temporaries of a program on each device."""
    try:
        memory = jax.jit(program).lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(r"temporaries \(([\d.]+)G\)", str(error))
        if needed is None:
            raise
        return float(needed[1]) * 1024
    return memory.temp_size_in_bytes / 2**20
