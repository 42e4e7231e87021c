"""Training states for tests that train nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from big_vlp import trees


def drawn(init):
    """A state of the structure that `init(key)` gives, whose average is where its model is, and
    whose biases are 0; drawing the real one takes a compilation."""
    rng = np.random.default_rng(5)
    state = jax.eval_shape(init, jax.random.key(0))
    moments, model = state["opt"], trees.flatten(state["model"])
    model = {
        path: (rng.uniform(0.1, 0.5, x.shape) * (not path.endswith("/bias"))).astype(x.dtype)
        for path, x in model.items()
    }
    averaged = {path: model[path] for path in trees.flatten(state["averaged"])}
    frozen = jax.tree.map(lambda x: rng.uniform(size=x.shape).astype(x.dtype), state["frozen"])
    state = {
        "model": trees.unflatten(model),
        "averaged": trees.unflatten(averaged),
        "opt": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), moments),
        "frozen": frozen,
    }
    return jax.tree.map(jnp.array, state)
