"""What is counted, and that accumulation computes nothing that rematerialisation does not."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from big_vlp.experiment import Experiment
from big_vlp.recipes import SCENES_VOCABULARY
from big_vlp.telemetry import products
from big_vlp.telemetry.flops import products_per_sample
from configs import catlip, cogvlm, transfer

X, W = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16), jnp.float32)
PRODUCT = 2 * 8 * 16 * 16


def test_products_are_counted():
    assert products.flops(jnp.matmul, X, W) == PRODUCT
    gradient = jax.grad(lambda x, w: jnp.tanh(x @ w).sum(), argnums=(0, 1))
    assert products.flops(jax.jit(gradient), X, W) == 3 * PRODUCT
    heads = jax.ShapeDtypeStruct((2, 5, 3, 4), jnp.float32)
    scores = products.flops(lambda q, k: jnp.einsum("bthd,bshd->bhts", q, k), heads, heads)
    assert scores == 2 * 2 * 3 * 5 * 5 * 4


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=5)[0]

    assert products.flops(loop, X, W) == 5 * PRODUCT
    # Once forward, once again, and twice backward.
    again = jax.grad(lambda x, w: jax.checkpoint(loop)(x, w).sum(), argnums=(0, 1))
    assert products.flops(again, X, W) == (2 + 2) * 5 * PRODUCT


def test_what_is_written_for_one_device_counts_for_all():
    mesh = AbstractMesh((4,), ("rows",), axis_types=(AxisType.Auto,))
    rows, whole = PartitionSpec("rows"), PartitionSpec()
    split = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows)
    assert products.flops(split, X, W) == PRODUCT


def test_the_costliest_branch_counts():
    def either(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x, lambda: x @ w @ w)

    assert products.flops(either, X, W) == 2 * PRODUCT


@pytest.mark.parametrize("stride, side", [(4, 8), (2, 15)])
def test_convolutions_forward_and_backward(stride, side):
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((4, 4, 3, 16), jnp.float32)

    def convolve(image, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(image, kernel, strides, "VALID", None, None, layout)

    forward = 2 * 2 * side**2 * 16 * 4 * 4 * 3
    assert products.flops(convolve, image, kernel) == forward
    of_kernel = jax.grad(lambda kernel, image: convolve(image, kernel).sum())
    assert products.flops(of_kernel, kernel, image) == 2 * forward


CASES = {
    "cogvlm": (cogvlm, "stage=1", 1.25),
    "catlip": (catlip, "", 1.24),
    "transfer": (transfer, "mode=finetune", 1.24),
}


@pytest.mark.parametrize("name", CASES)
def test_accumulation_costs_no_products(name):
    """The recipe, traced at its real size, rematerialised in whole and in micro-batches."""
    recipe, options, most = CASES[name]
    config = recipe.get_config(options)
    if name == "cogvlm":  # without the files that it names
        config.preprocess.tokenizer = "llama:scenes"
    if name == "catlip":
        config.views.vocabulary = SCENES_VOCABULARY
    experiment = Experiment.from_config(config)
    plain = dataclasses.replace(experiment.make_method(), remat=None)
    remat, both = (
        products_per_sample(
            experiment, dataclasses.replace(plain, remat="full", accumulate_steps=n)
        )
        for n in (1, 8)
    )
    assert both == remat < most * products_per_sample(experiment, plain)
