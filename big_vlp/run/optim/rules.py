"""Optimizers with per-parameter rules: learning-rate multiplier, weight decay, freezing.

Rules are regexes over parameter paths ("image_tower/proj/kernel"). Each parameter must match
exactly one, so a typo neither freezes nor forgets anything silently.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from big_vlp import trees
from big_vlp.models.layers.axes import Declared
from big_vlp.run.optim.schedules import Schedule
from big_vlp.run.optim.updates import Update

# Matrices and tables decay; gains, biases, class tokens and temperatures do not.
DEFAULT_RULES = (
    (".*(kernel|embedding|probe)", 1.0, 1.0),
    (".*(bias|scale|class_token)", 1.0, 0.0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Directions of `updates`, times the learning rate of `schedules`, under rules.

    Attributes:
      schedule: step -> learning rate.
      algorithm: what makes a direction of the gradients.
      weight_decay: decoupled, for each of them; multiplied by the scheduled learning rate.
      clip_norm: of the global gradient norm, over what is trained; None does not clip.
      rules: (regex, learning-rate multiplier, weight-decay multiplier); a learning-rate
        multiplier of 0 freezes; one number per layer is for stacked blocks.
      dead: {path: index}, see `methods.Method.dead_parameters`: parts `parameter[index]` that get
        no gradient, and so no decay either.
      declared: which parameters are kernels of dense layers, and their axes.
    """

    schedule: Schedule
    algorithm: Update
    weight_decay: float
    clip_norm: float | None = None
    rules: tuple = DEFAULT_RULES
    dead: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    declared: Declared = dataclasses.field(default_factory=Declared)

    def assign(self, params, partial: bool = False) -> dict[str, tuple[float | tuple, float]]:
        """{path: (learning-rate multiplier or one per layer, weight-decay multiplier)}.

        Args:
          params: the whole model, or a part of it with `partial`.

        Raises:
          ValueError: a parameter matches no rule or several, or a rule matches nothing.
        """
        paths = list(trees.flatten(params))
        found = {p: [r for r in self.rules if re.fullmatch(r[0], p)] for p in paths}
        problems = [f"no rule covers {p}" for p, rules in found.items() if not rules]
        problems += [
            f"{p} is covered by {[r[0] for r in rules]}"
            for p, rules in found.items()
            if len(rules) > 1
        ]
        flat = trees.flatten(params)
        problems += [
            f"rule {rule!r} gives {len(lr)} learning rates to {p} {tuple(flat[p].shape)}"
            for p, rules in found.items()
            for rule, lr, _ in rules
            if isinstance(lr, tuple) and flat[p].shape[:1] != (len(lr),)
        ]
        used = {r[0] for rules in found.values() for r in rules}
        if not partial:
            unused = [r[0] for r in self.rules if r[0] not in used]
            problems += [f"rule {r!r} matches no parameter" for r in unused]
        if problems:
            raise ValueError(
                "optim.rules must cover every parameter exactly once:\n  " + "\n  ".join(problems)
            )
        return {p: (rules[0][1], float(rules[0][2])) for p, rules in found.items()}

    def describe(self, params) -> dict[str, str]:
        """{path: how the parameter is treated}, for the table at the start of a run."""
        params, statistics = trees.split_statistics(params)
        flat, described = trees.flatten(params), {}
        for path, (lr, wd) in self.assign(params).items():
            how = self.algorithm.treats(path, flat[path].shape, self.declared)
            trained = f"trained, lr {_times(lr)}, wd {_times(wd)}{how and f', {how}'}"
            described[path] = f"{trained}{self._dead(path)}" if lr else "frozen"
        return described | dict.fromkeys(trees.flatten(statistics), "running statistic")

    def is_trainable(self, params) -> Callable[[str], bool]:
        """Tells by its path whether a parameter is trained."""
        assigned = self.assign(params)
        return lambda path: assigned[path][0] != 0

    def grad_norm(self, grads):
        """Global norm of the gradients of all that is trained, fp32."""
        return optax.tree.norm(self._trained(grads))

    def init(self, trainable):
        """What the algorithm remembers of the trainable parameters; a nested dict."""
        return serialization.to_state_dict(self._transformation().init(trainable))

    def update(self, grads, moments, trainable, step):
        """One step: (new parameters, new moments). All trees have the trainable structure."""
        transformation = self._transformation()
        like = jax.eval_shape(transformation.init, trainable)
        moments = serialization.from_state_dict(like, moments)
        direction, moments = transformation.update(self._trained(grads), moments)
        learning_rate = self.schedule(step)
        assigned = self.assign(trainable, partial=True)

        def apply(path, parameter, direction):
            lr, wd = assigned[path]
            if isinstance(lr, tuple):
                lr = _per_layer(np.float32(lr), parameter)
            new = parameter - learning_rate * lr * (direction + self.weight_decay * wd * parameter)
            if path not in self.dead:
                return new
            index = self.dead[path]
            return new.at[index].set(parameter[index])

        flat, directions = trees.flatten(trainable), trees.flatten(direction)
        new = {path: apply(path, flat[path], directions[path]) for path in flat}
        return trees.unflatten(new), serialization.to_state_dict(moments)

    def _trained(self, grads):
        """The gradients; zero for layers that a rule freezes, so that no norm counts them."""
        assigned = self.assign(grads, partial=True)

        def keep(path, gradient):
            lr = assigned[path][0]
            if not isinstance(lr, tuple) or all(lr):
                return gradient
            return jnp.where(_per_layer(np.array(lr) != 0, gradient), gradient, 0)

        return trees.unflatten({path: keep(path, g) for path, g in trees.flatten(grads).items()})

    def _dead(self, path: str) -> str:
        if path not in self.dead:
            return ""
        index = (":" if i == slice(None) else str(i) for i in self.dead[path])
        return f", not [{', '.join(index)}]: no gradient"

    def _transformation(self) -> optax.GradientTransformation:
        made = self.algorithm.transformation(self.declared)
        if self.clip_norm is None:
            return made
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), made)


def _per_layer(values: np.ndarray, parameter) -> np.ndarray:
    """[L] -> [L, 1, ...], to go with a parameter of L stacked layers."""
    return values.reshape(-1, *[1] * (parameter.ndim - 1))


def _times(multiplier) -> str:
    if isinstance(multiplier, tuple):
        return f"x{multiplier[0]:g}..{multiplier[-1]:g}"
    return f"x{multiplier:g}"
