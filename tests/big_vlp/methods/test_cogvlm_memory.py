"""What CogVLM's step never holds: all weights of long rows, all logits of a large vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import losses
from big_vlp.models.layers import attention
from tests.big_vlp.methods.toy_cogvlm_method import MODEL, TEXT, make, make_batch, make_model


def shapes(jaxpr) -> set:
    """Of all arrays that a program makes, those inside its loops too."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {variable.aval.shape for variable in equation.outvars}
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            found |= shapes(inner) if hasattr(inner, "eqns") else set()
    return found


def test_long_rows_have_no_array_of_weights(monkeypatch):
    monkeypatch.setattr(attention, "LONG", 8)
    monkeypatch.setattr(attention.written, "QUERIES", 4)
    batch, model = make_batch(), make_model(make())
    length = batch["tokens"].shape[1]

    def of_pairs(**changes):
        model_options = {**MODEL, "text": {**TEXT, "dropout": 0.3}}
        method = make(model=model_options, remat="full", **changes)

        def loss(model):
            return method.loss(model, {}, {}, {}, batch, rng=jax.random.key(0), step=0)[0]

        made = shapes(jax.make_jaxpr(jax.grad(loss))(model))
        return [shape for shape in made if shape.count(length) > 1]

    assert not of_pairs()
    assert of_pairs(attention="xla")


def test_a_loss_by_blocks_is_that_of_the_whole(monkeypatch):
    rng = np.random.default_rng(3)
    hidden, kernel = (jnp.float32(rng.normal(size=size)) for size in ((2, 7, 4), (4, 50)))
    tokens, mask = rng.integers(0, 50, (2, 7)), rng.random((2, 7)) < 0.7

    def run(row_logits):
        monkeypatch.setattr(losses, "ROW_LOGITS", row_logits)

        def loss(hidden, kernel):
            sums, counts = losses.next_tokens(
                hidden, lambda kernel, x: x @ kernel, kernel, tokens, mask
            )
            return (sums * jnp.arange(1, 3)).sum(), (sums, counts)

        gradients = jax.grad(loss, (0, 1), has_aux=True)
        made = shapes(jax.make_jaxpr(gradients)(hidden, kernel))
        return max(np.prod(shape) for shape in made if shape[-1:] == (50,)), jax.jit(gradients)(
            hidden, kernel
        )

    largest, expected = run(7 * 50)
    assert largest == 2 * 7 * 50
    largest, found = run(3 * 50)
    assert largest <= 2 * 3 * 50
    for array, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(array, other, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_a_head_adds_up_in_fp32_over_blocks(monkeypatch):
    """In bf16 a sum of many blocks would stand still."""
    length = 1024
    hidden, tokens = jnp.ones((1, length, 1), jnp.bfloat16), jnp.zeros((1, length), jnp.int32)
    monkeypatch.setattr(losses, "ROW_LOGITS", 2)

    def head(kernel, x):
        return x @ kernel

    def loss(kernel):
        return losses.next_tokens(hidden, head, kernel, tokens, tokens == 0)[0].sum()

    found = jax.jit(jax.grad(loss))(jnp.zeros((1, 2), jnp.bfloat16))
    np.testing.assert_allclose(np.float32(found), [[-length / 2, length / 2]], rtol=1e-2)
