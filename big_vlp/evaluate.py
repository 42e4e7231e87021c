"""Evaluates checkpoints of a run: python -m big_vlp.evaluate --config FILE --workdir DIR

By default the latest checkpoint; `--step N` takes that one; `--follow` takes every checkpoint
that appears until the last step of the run. Results go to WORKDIR/evaluate/STEP.json; following
goes on after the steps that have one.
"""

import json
import os
import sys
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from big_vlp import sharding, telemetry
from big_vlp.checkpoint import CheckpointError, restore_frozen
from big_vlp.experiment import ConfigError, Experiment
from input_pipeline.records import BrokenRecordError

POLL_SECONDS = 10
NO_STEP = -1


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    at_step: int | None = None,
    follow: bool = False,
) -> None:
    """Runs every evaluator of the config, as an evaluator job beside or after training.

    Args:
      config: that of the run.
      workdir: that of the run.
      at_step: which checkpoint; None takes the latest.
      follow: evaluate every checkpoint from now on; ends with the run's last step.

    Raises:
      ConfigError: the config cannot be built.
      CheckpointError: no such checkpoint, or it holds another model.
    """
    experiment = Experiment.from_config(config)
    mesh = experiment.make_mesh()
    method = experiment.make_method()
    optimizer = experiment.make_optimizer(method)
    evaluators = experiment.make_evaluators(method, mesh)
    if not evaluators:
        raise ConfigError("config.evals is empty: there is nothing to evaluate.")
    checkpoints = experiment.make_checkpoints(workdir, read_only=True)
    results = checkpoints.workdir / "evaluate"
    results.mkdir(parents=True, exist_ok=True)

    shapes = experiment.abstract_state(method, optimizer, mesh)
    wanted = {name: shapes[name] for name in {e.weights for e in evaluators.values()}}

    def run(i):
        state = checkpoints.restore(i, wanted)
        state["frozen"] = restore_frozen(checkpoints.workdir, shapes["frozen"])
        with jax.set_mesh(mesh):
            values = {name: evaluator.run(state) for name, evaluator in evaluators.items()}
        if jax.process_index() == 0:
            for name, metrics in values.items():
                print(f"step {i}, {name} of the {evaluators[name].weights} weights:")
                print(telemetry.metric_table(metrics), flush=True)
            part = results / f"{i}.json.part"
            part.write_text(json.dumps({"step": i, **values}, indent=1))
            os.replace(part, results / f"{i}.json")

    def decided(choose):
        """Step that process 0 chooses: each process may see the directory at another moment."""
        mine = choose() if jax.process_index() == 0 else NO_STEP
        return int(np.asarray(sharding.largest_of_processes([mine], mesh))[0])

    if not follow:
        i = at_step
        if i is None:
            i = decided(lambda: max(checkpoints.all_steps(), default=NO_STEP))
        if i == NO_STEP:
            raise CheckpointError(
                f"No complete checkpoint in {checkpoints.directory}; train first, or correct "
                "--workdir."
            )
        run(i)
        return

    finished = experiment.total_steps + 1

    def next_to_evaluate():
        done = {int(path.stem) for path in results.glob("*.json")}
        if experiment.total_steps in done:
            return finished
        return min(set(checkpoints.all_steps()) - done, default=NO_STEP)

    while (i := decided(next_to_evaluate)) != finished:
        if i == NO_STEP:
            time.sleep(POLL_SECONDS)
        else:
            run(i)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    options = flags.FLAGS
    try:
        sharding.connect_processes()
        evaluate(options.config, options.workdir, options.step, options.follow)
    except (sharding.ClusterError, ConfigError, CheckpointError, BrokenRecordError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "FILE[:ARGS], the config of the run.")
    flags.DEFINE_string("workdir", None, "The directory of the run.")
    flags.DEFINE_integer("step", None, "Which checkpoint; default: the latest.")
    flags.DEFINE_bool("follow", False, "Evaluate every checkpoint as it appears.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
