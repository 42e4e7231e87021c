"""dtype="float32" means products in fp32 on every device, in training, evaluation and generation.

Programs are lowered, not run: on a CPU all products are exact, and nothing could be seen.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from big_vlp import trees
from big_vlp.experiment import Experiment
from big_vlp.methods import make_method
from big_vlp.run import step
from big_vlp.telemetry.flops import abstract_batch
from input_pipeline.preprocess import Preprocess
from tests.tiny_config import get_config

KEY = jax.eval_shape(lambda: jax.random.key(0))
PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution)\b.*")
OPERANDS = re.compile(r": \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)")


def products(function, *args):
    """(dtypes of the two operands, whether it is exact) of each product in a program."""
    text = jax.jit(function).lower(*args).as_text()
    found = [
        (OPERANDS.search(line).groups(), line.count("HIGHEST") == 2)
        for line in PRODUCT.findall(text)
    ]
    assert found
    return found


def check(dtype, function, *args):
    found = products(function, *args)
    if dtype == "float32":
        assert all(exact for _, exact in found)
    else:
        half = [exact for operands, exact in found if operands == ("bf16", "bf16")]
        assert half and not any(half)


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("clip", "float32"),
        pytest.param("cosmos", "float32", marks=pytest.mark.slow),
        ("catlip", "float32"),
        ("cogvlm", "float32"),
        ("clip", "bfloat16"),
    ],
)
def test_every_product_of_a_method(name, dtype):
    experiment = Experiment.from_config(get_config(f"method={name},dtype={dtype}"))
    method = experiment.make_method()
    optimizer = experiment.make_optimizer(method)
    state = jax.eval_shape(step.make_init(method, optimizer), KEY)
    size = experiment.preprocess_record.image_size
    batch = abstract_batch(experiment, size, experiment.global_batch)
    check(dtype, step.make_train_step(method, optimizer), state, batch, 0, KEY)
    model = trees.merge(state["model"], state["frozen"])
    rows = {**batch, "image": jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8)}
    if "tokens" in batch:
        rows["tokens"] = jax.ShapeDtypeStruct((2, batch["tokens"].shape[-1]), jnp.int32)
    if name == "cogvlm":
        rows = batch
    for function in method.predict_fns().values():
        check(dtype, function, model, rows)


def test_every_product_of_dense_methods():
    model = dict(width=16, layers=1, heads=2, num_positions=4)
    common = dict(preprocess=Preprocess(32, resize="squash"), num_classes=3, dtype="float32")
    methods = [
        make_method("segmentation", model={**model, "class_token": False}, **common),
        make_method("transfer", tower="catlip_vit", model=model, **common),
    ]
    rows = {"image": jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)}
    labels = {"label": (2,), "mask": (2, 32, 32)}
    batch = rows | {k: jax.ShapeDtypeStruct(shape, jnp.int32) for k, shape in labels.items()}
    for method in methods:
        whole = jax.eval_shape(method.init, KEY)[0]
        parameters, statistics = trees.split_statistics(whole)

        def gradients(parameters, statistics, batch, key, method=method):
            def loss(parameters):
                return method.loss(parameters, {}, {}, statistics, batch, rng=key, step=0)[0]

            return jax.grad(loss)(parameters)

        check("float32", gradients, parameters, statistics, batch, KEY)
        for function in method.predict_fns().values():
            check("float32", function, whole, rows)
