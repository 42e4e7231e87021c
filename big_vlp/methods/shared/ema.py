"""Exponential moving averages of weights: one rule, and one word for its decay."""

import jax


def ema(averaged, new, decay):
    """decay * averaged + (1 - decay) * new, for every array of two trees of one structure.

    Args:
      decay: share of the old average that stays, in 0..1; a number or f32[].
    """
    return jax.tree.map(lambda a, n: decay * a + (1 - decay) * n, averaged, new)


def check_decay(decay: float | None) -> None:
    """Raises ValueError unless `decay` is None, for no average, or in [0, 1)."""
    if decay is not None and not 0 <= decay < 1:
        raise ValueError(
            f"ema_decay={decay} must be in [0, 1): the share of the old average that stays; or "
            "None for no average."
        )
