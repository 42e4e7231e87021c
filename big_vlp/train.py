"""Trains what a config describes: python -m big_vlp.train --config FILE[:ARGS] --workdir DIR

Read from top to bottom: the step, then the loop. The loop's order is
save if due -> evaluate if due -> batch of this step -> train step -> log,
and everything a step does is a function of (config, step, state), so a run that was killed and
started again with the same command goes on exactly where its last checkpoint is.
"""

import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from big_vlp import sharding, telemetry, trees
from big_vlp.checkpoint import Checkpoints, abstract, jsonable, restore_frozen, save_frozen
from big_vlp.experiment import Experiment

SIGTERM_EXIT = 128 + signal.SIGTERM


def make_train_step(method, optimizer):
    """The update of one step as a pure function.

    Returns:
      step_fn(state, batch, step, key) -> (state, metrics). `state` is what `Experiment.init_fn`
      gives; `step` is the 0-based number of this update; `key` is the run's key. Where loss or
      gradient is not finite the state stays as it was and `metrics["finite"]` is 0.
    """

    def step_fn(state, batch, step, key):
        old, opt = state["model"], state["opt"]

        def loss_fn(trainable):
            return method.loss(
                trainable,
                state["frozen"],
                state["averaged"],
                opt["state"],
                batch,
                rng=jax.random.fold_in(key, step),
                step=step,
            )

        (loss, (method_state, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(old)
        grad_norm = optimizer.norm(grads)
        new, moments = optimizer.update(grads, opt["moments"], old, step)
        new, averaged = method.after_update(old, new, state["averaged"], step)

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        changed = {
            "model": new,
            "averaged": averaged,
            "opt": {"moments": moments, "state": method_state},
        }
        kept = {"model": old, "averaged": state["averaged"]}
        kept["opt"] = {"moments": opt["moments"], "state": opt["state"]}
        result = jax.tree.map(lambda n, o: jnp.where(finite, n, o), changed, kept)
        result["frozen"] = state["frozen"]
        # Kept on the device, so that the loop need not look at every step.
        bad = opt["bad_steps"]
        result["opt"]["bad_steps"] = {
            "count": bad["count"] + ~finite,
            "first": jnp.where(finite | (bad["count"] > 0), bad["first"], step),
        }
        metrics = {
            **metrics,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": optimizer.schedule(step),
            "bad_steps": result["opt"]["bad_steps"]["count"],
        }
        return result, metrics

    return step_fn
