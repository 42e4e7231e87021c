"""Gradient accumulation that is exact for losses over the whole batch."""

import jax
import jax.numpy as jnp


def over_micro_batches(fn, batch, steps: int):
    """`fn(batch)` in `steps` micro-batches, one after the other, each rematerialised.

    Every leaf of `batch` and of the result has a leading batch axis. Micro-batch i takes rows
    i, i + steps, ...: with the batch sharded in contiguous blocks every device works in each.
    A loss of the result has the exact gradient of the whole batch, at the memory of one part.

    Raises:
      ValueError: `steps` does not divide the batch.
    """
    if steps == 1:
        return fn(batch)
    size = jax.tree.leaves(batch)[0].shape[0]
    if steps < 1 or size % steps:
        raise ValueError(f"accumulate_steps={steps} does not divide the batch of {size}.")

    def split(x):
        return jnp.moveaxis(x.reshape(size // steps, steps, *x.shape[1:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(size, *x.shape[2:])

    # In a loop XLA cannot merge the recomputation away, so it needs no barrier.
    fn = jax.checkpoint(fn, prevent_cse=False)
    out = jax.lax.map(fn, jax.tree.map(split, batch))
    return jax.tree.map(join, out)
