"""The learning rate of each step: a linear warm-up, then one of four shapes."""

import dataclasses

import jax.numpy as jnp

# Share of the peak that the first `hold_steps` use.
HELD = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """What all have in common. Calling it with a step (0-based) gives its learning rate, fp32.

    Attributes:
      learning_rate: its peak.
      total_steps: length of the run.
      warmup_steps: step i of the warm-up uses learning_rate * (i + 1) / warmup_steps.
      initial_learning_rate: where the warm-up starts instead, to reach the peak one step after its
        last, as corenet does it.
      hold_steps: the first so many steps use 5 % of the peak, whatever the warm-up says, as
        SwissArmyTransformer begins its fine-tuning.

    Raises:
      ValueError: numbers of steps do not fit together.
    """

    learning_rate: float
    total_steps: int
    warmup_steps: int
    initial_learning_rate: float | None = None
    hold_steps: int = 0

    def __post_init__(self):
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must lie in 0..total_steps "
                f"({self.total_steps})."
            )
        if self.hold_steps < 0:
            raise ValueError(f"hold_steps={self.hold_steps}: 0 or more.")

    def __call__(self, step):
        high, warmup = self.learning_rate, max(self.warmup_steps, 1)
        if self.initial_learning_rate is None:
            warm = high * ((step + 1) / warmup)
        else:
            first = self.initial_learning_rate
            warm = first + (high - first) * (step / warmup)
        rate = jnp.where(step < self.warmup_steps, warm, self.after_warmup(step))
        return jnp.where(step < self.hold_steps, high * HELD, rate)

    def after_warmup(self, step):
        """The learning rate of a step that the warm-up does not count."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak, to the end."""

    def after_warmup(self, step):
        return jnp.float32(self.learning_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine.

    Attributes:
      final_learning_rate: where it ends.
      epoch_steps: steps of an epoch, if the learning rate is to change once an epoch after the
        warm-up: that of epoch e of E is at e / E of the cosine, whatever the warm-up's length.
    """

    final_learning_rate: float = 0.0
    epoch_steps: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.epoch_steps is not None and self.epoch_steps < 1:
            raise ValueError(f"epoch_steps={self.epoch_steps}: 1 or more, or None.")

    def after_warmup(self, step):
        low, high = self.final_learning_rate, self.learning_rate
        if self.epoch_steps is None:
            rest = max(self.total_steps - self.warmup_steps, 1)
            done = (step - self.warmup_steps) / rest
        else:
            done = step // self.epoch_steps * self.epoch_steps / self.total_steps
        return low + (high - low) * ((1 + jnp.cos(jnp.pi * done)) / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cooled(Schedule):
    """A schedule that does not know the run's length, but for its end: a line down.

    Attributes:
      cooldown_steps: length of the line; a run that shall go on from a checkpoint before it, with
        more `total_steps`, has lost nothing.
      final_learning_rate: where the line would end, one step after the last.
    """

    cooldown_steps: int
    final_learning_rate: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        rest = self.total_steps - self.warmup_steps
        if not 0 <= self.cooldown_steps <= rest:
            raise ValueError(
                f"cooldown_steps ({self.cooldown_steps}) must lie in 0..{rest}, the steps after "
                "the warm-up."
            )

    def after_warmup(self, step):
        low, left = self.final_learning_rate, self.total_steps - step
        share = jnp.minimum(1.0, left / self.cooldown_steps) if self.cooldown_steps else 1.0
        return low + (self.before_cooldown(step) - low) * share

    def before_cooldown(self, step):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wsd(_Cooled):
    """Warm-up, stable, decay (arXiv 2404.06395): the peak, then the line."""

    def before_cooldown(self, step):
        return jnp.float32(self.learning_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rsqrt(_Cooled):
    """The reciprocal square root of the steps (arXiv 2106.04560), then the line.

    Attributes:
      timescale: steps after the warm-up until it has fallen to 1 / sqrt(2) of the peak.
    """

    timescale: int = 10_000

    def before_cooldown(self, step):
        since = jnp.maximum(step - self.warmup_steps, 0)
        return self.learning_rate / jnp.sqrt(1 + since / self.timescale)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "rsqrt": Rsqrt,
    "wsd": Wsd,
}
