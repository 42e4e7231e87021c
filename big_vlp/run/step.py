"""One training step and the state it works on, as pure functions."""

import jax
import jax.numpy as jnp

from big_vlp import trees
from big_vlp.methods.shared.base import in_compute_dtype
from big_vlp.parallel import meshes


def make_init(method, optimizer):
    """A pure function key -> the state of step 0.

    The state is {"model", "averaged", "opt", "frozen"}, nested dicts of arrays: what changes in
    training (trainable parameters and running statistics), its average (or {}), everything only
    training needs, frozen parameters (or {}), their kernels and token tables in the compute dtype.
    """

    def init(key):
        model, averaged = method.init(key)
        parameters, statistics = trees.split_statistics(model)
        is_trainable = optimizer.is_trainable(parameters)
        trainable, frozen = trees.split(parameters, is_trainable)
        averaged, averaged_statistics = trees.split_statistics(averaged)
        frozen = in_compute_dtype(frozen, method.dtype, ("kernel", "embedding"))
        averaged, _ = trees.split(averaged, is_trainable)
        opt = {
            "moments": optimizer.init(trainable),
            "bad_steps": {"count": jnp.int32(0), "first": jnp.int32(-1)},
        }
        return {
            "model": trees.merge(trainable, statistics),
            "averaged": trees.merge(averaged, averaged_statistics),
            "opt": opt,
            "frozen": frozen,
        }

    return init


def abstract(shapes, placement):
    """Shapes and where they live, as one tree of jax.ShapeDtypeStruct."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        placement,
    )


def make_train_step(method, optimizer):
    """A pure function (state, batch, step, key) -> (state, metrics).

    `step` is the 0-based number of this update and `key` the run's key. Where the loss or a
    gradient is not finite, the update is refused: parameters, statistics, averages and moments
    stay as they were, and `opt/bad_steps` counts it, on the device, so that the loop need not look
    each step. Metrics are fp32 scalars, but for the count `bad_steps`.
    """

    def train_step(state, batch, step, key):
        old, averaged, opt, frozen = (state[k] for k in ("model", "averaged", "opt", "frozen"))
        trainable, statistics = trees.split_statistics(old)

        def loss_fn(trainable):
            return method.loss(
                trainable,
                frozen,
                averaged,
                statistics,
                batch,
                rng=jax.random.fold_in(key, step),
                step=step,
            )

        (loss, (statistics, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        grad_norm = optimizer.grad_norm(grads)
        new, moments = optimizer.update(grads, opt["moments"], trainable, step)
        new = trees.merge(new, statistics)
        new, new_averaged = method.after_update(old, new, averaged, step)

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new, new_averaged, moments = jax.tree.map(
            lambda accepted, refused: jnp.where(finite, accepted, refused),
            (new, new_averaged, moments),
            (old, averaged, opt["moments"]),
        )
        bad = opt["bad_steps"]
        bad = {
            "count": bad["count"] + jnp.where(finite, 0, 1),
            "first": jnp.where(finite | (bad["count"] > 0), bad["first"], step),
        }
        metrics = {
            "loss": loss,
            **metrics,
            "grad_norm": grad_norm,
            "learning_rate": optimizer.schedule(step),
            "bad_steps": bad["count"],
        }
        opt = {"moments": moments, "bad_steps": bad}
        return {"model": new, "averaged": new_averaged, "opt": opt, "frozen": frozen}, metrics

    return train_step


def compiled_step(method, optimizer, placement, mesh):
    """The training step as runs execute it: jitted, its state donated and kept where it lives.

    Args:
      placement: of the state, see `parallel.placing.place`.
    """
    return jax.jit(
        make_train_step(method, optimizer),
        donate_argnums=0,
        out_shardings=(placement, meshes.replicated(mesh)),
    )
