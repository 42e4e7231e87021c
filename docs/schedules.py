"""Draws docs/schedules.png: the learning rate of each schedule over a run.

PYTHONPATH=. python docs/schedules.py
"""

from pathlib import Path

import jax
import numpy as np

from big_vlp.run.optim import make_optimizer
from input_pipeline.figures import new_figure, png

SHARED = {"learning_rate": 1.0, "total_steps": 1000, "warmup_steps": 50, "weight_decay": 0.0}
KEYS = {"cosine": {}, "wsd": {"cooldown_steps": 200}, "constant": {}}
KEYS["rsqrt"] = {"cooldown_steps": 200, "timescale": 200}
COLOURS = ("#0072b2", "#d55e00", "#666666", "#009e73")


def main() -> None:
    figure = new_figure(6.4, 2.8)
    axes, steps = figure.subplots(), np.arange(1000)
    for (name, keys), colour in zip(KEYS.items(), COLOURS):
        schedule = make_optimizer(schedule=name, **SHARED, **keys).schedule
        label = ", ".join([name, *(f"{key}={value}" for key, value in keys.items())])
        axes.plot(steps, jax.vmap(schedule)(steps), label=label, color=colour)
    axes.set_xlabel("step, of 1,000; warmup_steps=50")
    axes.set_ylabel("share of the peak")
    axes.set_ylim(0, 1.05)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    Path(__file__).with_name("schedules.png").write_bytes(png(figure))


if __name__ == "__main__":
    main()
