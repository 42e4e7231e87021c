"""One training step and the state it works on, as pure functions."""

import jax
import jax.numpy as jnp
import optax

from big_vlp import trees


def make_init(method, optimizer):
    """A pure function key -> the state of step 0.

    The state is {"model", "averaged", "opt", "frozen"}, nested dicts of arrays: trainable
    parameters, their average (or {}), everything only training needs, frozen parameters (or {}).
    """

    def init(key):
        model, averaged, method_state = method.init(key)
        is_trainable = optimizer.is_trainable(model)
        trainable, frozen = trees.split(model, is_trainable)
        averaged, _ = trees.split(averaged, is_trainable)
        opt = {
            "moments": optimizer.init(trainable),
            "method": method_state,
            "bad_steps": {"count": jnp.int32(0), "first": jnp.int32(-1)},
        }
        return {"model": trainable, "averaged": averaged, "opt": opt, "frozen": frozen}

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
    gradient is not finite, the update is refused: parameters, averages and moments stay as they
    were, and `opt/bad_steps` counts it, on the device, so that the loop need not look each step.
    Metrics are fp32 scalars, but for the count `bad_steps`.
    """

    def train_step(state, batch, step, key):
        old, averaged, opt, frozen = (state[k] for k in ("model", "averaged", "opt", "frozen"))

        def loss_fn(trainable):
            return method.loss(
                trainable,
                frozen,
                averaged,
                opt["method"],
                batch,
                rng=jax.random.fold_in(key, step),
                step=step,
            )

        (loss, (method_state, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(old)
        grad_norm = optax.tree.norm(grads)
        new, moments = optimizer.update(grads, opt["moments"], old, step)
        new, new_averaged = method.after_update(old, new, averaged, step)

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        accepted = (new, new_averaged, moments, method_state)
        refused = (old, averaged, opt["moments"], opt["method"])
        new, new_averaged, moments, method_state = jax.tree.map(
            lambda a, r: jnp.where(finite, a, r), accepted, refused
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
        opt = {"moments": moments, "method": method_state, "bad_steps": bad}
        return {"model": new, "averaged": new_averaged, "opt": opt, "frozen": frozen}, metrics

    return train_step
