"""A batch in micro-batches: the loss and the gradient of the whole, at the memory of a part.

Micro-batch i takes rows i, i + steps, ...: with the batch sharded in contiguous blocks every device
works in each.
"""

import jax
import jax.numpy as jnp

from big_vlp.methods.shared.base import in_compute_dtype


def sum_over_micro_batches(fn, params, batch, steps: int, dtype: str):
    """The sum of `fn(params, rows)` over `steps` micro-batches, for a loss that is a sum over rows.

    Where it is differentiated, a micro-batch gives its gradient together with its value: nothing is
    computed twice, and what is not differentiated, such as frozen parameters, has no backward pass.
    The gradients of `params` add up in fp32; the kernels among them are cast once for all.

    Args:
      fn: (params, rows) -> (f32[], tree of arrays): a part of the loss, and other sums, which have
        no gradient. Nor has what it closes over.
      params: a nested dict of arrays.
      batch: a tree of arrays with a leading batch axis. It is differentiated like `params`.
      dtype: of the computation.

    Returns:
      What `fn` returns, of the whole batch.

    Raises:
      ValueError: `steps` does not divide the batch.
    """
    if steps == 1:
        loss, sums = fn(params, batch)
        return loss, jax.lax.stop_gradient(sums)

    def added_up(values):
        return jax.tree.map(lambda x: x.sum(axis=0), values)

    @jax.custom_vjp
    def total(params, rows):
        params = in_compute_dtype(params, dtype)
        return added_up(jax.lax.map(lambda rows: fn(params, rows), rows))

    def forward(params, rows):
        values, row_values = jax.tree.map(lambda primal: primal.value, (params, rows))
        moved, fixed = _divide(in_compute_dtype(values, dtype), params)
        moved_rows, fixed_rows = _divide(row_values, rows)

        def part(moved, moved_rows, rows):
            return fn(_join(moved, fixed), _join(moved_rows, rows))

        def body(gradient, rows):
            of_part = jax.value_and_grad(part, argnums=(0, 1), has_aux=True)
            value, (more, of_rows) = of_part(moved, *rows)
            return jax.tree.map(jnp.add, gradient, more), (value, of_rows)

        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), moved
        )
        gradient, (values, of_rows) = jax.lax.scan(body, zeros, (moved_rows, fixed_rows))
        return added_up(values), (gradient, of_rows)

    def backward(gradients, of_values):
        of_loss, _ = of_values
        return jax.tree.map(lambda x: (of_loss * x).astype(x.dtype), gradients)

    total.defvjp(forward, backward, symbolic_zeros=True)
    loss, sums = total(params, jax.tree.map(lambda x: split(x, steps), batch))
    return loss, jax.lax.stop_gradient(sums)


def over_micro_batches(fn, batch, steps: int):
    """`fn(batch)` in `steps` micro-batches, each rematerialised, for a loss that needs all rows at
    once, such as a contrastive one.

    Every leaf of `batch` and of the result has a leading batch axis. A loss of the result has the
    exact gradient of the whole batch. All is computed twice: a loss that is a sum over rows is
    better off with `sum_over_micro_batches`.

    Raises:
      ValueError: `steps` does not divide the batch.
    """
    if steps == 1:
        return fn(batch)
    # In a loop XLA cannot merge the recomputation away, so it needs no barrier.
    fn = jax.checkpoint(fn, prevent_cse=False)
    out = jax.lax.map(fn, jax.tree.map(lambda x: split(x, steps), batch))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), out)


def split(x, steps: int):
    """The rows of each micro-batch: [B, ...] -> [steps, B / steps, ...].

    Raises:
      ValueError: `steps` does not divide the batch.
    """
    size = x.shape[0]
    if steps < 1 or size % steps:
        raise ValueError(f"accumulate_steps={steps} does not divide the batch of {size}.")
    return jnp.moveaxis(x.reshape(size // steps, steps, *x.shape[1:]), 1, 0)


def _divide(values, primals):
    """Values that are differentiated, and those that are not: two trees, with None for the others.

    Args:
      primals: what tells, as a rule with symbolic zeros gets it.
    """
    moved = jax.tree.map(lambda x, primal: x if primal.perturbed else None, values, primals)
    return moved, jax.tree.map(lambda x, primal: None if primal.perturbed else x, values, primals)


def _join(moved, others):
    """The inverse of `_divide`."""
    return jax.tree.map(
        lambda m, other: other if m is None else m, moved, others, is_leaf=lambda x: x is None
    )
