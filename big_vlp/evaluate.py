"""Evaluates checkpoints of a run by the evaluators of its config.

    python -m big_vlp.evaluate --config configs/demo.py --workdir runs/demo --step 200

By default the latest checkpoint; `--step N` takes that one; `--follow` takes every checkpoint
that appears until the last step of the run, and passes over those that the run deletes first.
Results go to WORKDIR/evaluate/STEP.json, and the table of all evaluators that it ends with to
STEP_table.json, .md and .png; following goes on after the steps that have results.
"""

import functools
import signal
import sys
import time
from pathlib import Path

import jax
import ml_collections
from absl import flags, logging

from big_vlp import command
from big_vlp.experiment import ConfigError, Experiment
from big_vlp.parallel import cluster, processes, watchdog
from big_vlp.run import log, tables
from big_vlp.run.compile_cache import open_compile_cache
from big_vlp.storage.agreement import together
from big_vlp.storage.checkpoint import CheckpointError, UnreadableError
from big_vlp.storage.frozen import restore_frozen
from evaluators.datasets import report, tasks
from evaluators.shared.sharing import sharing
from input_pipeline.checks import unicode
from input_pipeline.files.buckets import make_directory, storage_path
from input_pipeline.files.whole import write_json, write_whole

POLL_SECONDS = 10
POLLS_PER_NOTE = 60
FINISHED = "finished"


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
      PathError: `workdir` is no path of this machine, nor in a bucket.
      CompileCacheError: see `open_compile_cache`.
      ConfigError: the config cannot be built.
      CheckpointError: there is no such checkpoint, it is damaged, or it holds another model; when
        following, only of the run's last step. Or the result cannot be written.
      BrokenRecordError: a record cannot be evaluated.
      ProcessError: another process failed.
    """
    workdir = storage_path(workdir)
    open_compile_cache()
    experiment = Experiment.from_config(config)
    experiment.check_agreed()
    mesh = experiment.make_mesh()
    method = experiment.make_method()
    optimizer = experiment.make_optimizer(method)
    evaluators = experiment.make_evaluators(method, mesh)
    if not evaluators:
        raise ConfigError("config.evals is empty: there is nothing to evaluate.")
    checkpoints = experiment.make_checkpoints(workdir, read_only=True)
    results = checkpoints.workdir / "evaluate"
    shapes = experiment.abstract_state(method, optimizer, mesh)
    used = {e.weights for e in evaluators.values()}
    wanted = {name: shapes[name] for name in sorted(used)}  # all processes in one order

    @functools.cache
    def frozen():
        return restore_frozen(checkpoints.workdir, shapes["frozen"], _say)

    def run(i):
        state = {**checkpoints.restore(i, wanted, _say), "frozen": frozen()}
        with jax.set_mesh(mesh), sharing():
            values = {name: evaluator.run(state) for name, evaluator in evaluators.items()}
        imported = _published(checkpoints.meta(i))
        evaluated = {
            name: report.Evaluated(values[name], e.weights, e.task, e.paper or imported)
            for name, e in evaluators.items()
        }
        _write(results, i, evaluated)
        for name, one in evaluated.items():
            _say(f"step {i}, {name} of the {one.weights} weights:")
            _say(tables.metric_table(one.values))
        _say(f"step {i}:\n{report.text(evaluated)}")

    with watchdog.watching(experiment.watchdog_minutes, processes.tell_of_standstill):
        if follow:
            _follow(checkpoints, experiment.total_steps, results, run)
            return
        i = checkpoints.latest_step() if at_step is None else at_step
        if i is None:
            raise CheckpointError(
                f"No complete checkpoint in {checkpoints.directory}; train first, or correct "
                "--workdir."
            )
        run(i)


def _follow(checkpoints, total_steps: int, results: Path, run) -> None:
    """Calls `run` for every checkpoint that has no result, oldest first, until the last step's.

    The trainer deletes old checkpoints meanwhile: one that goes before it is read is passed over.
    Then the newest is next, which stays longest.
    """
    passed_over, behind, polls = set(), False, 0

    def next_step():
        steps = checkpoints.all_steps()
        passed_over.intersection_update(steps)  # what is written again may be whole
        done = {int(path.stem) for path in results.glob("*.json") if path.stem.isdecimal()}
        pending = {step for step in steps if step <= total_steps} - done - passed_over
        if not pending:
            return FINISHED if total_steps in done else None
        return max(pending) if behind else min(pending)

    while (i := processes.from_first(next_step, CheckpointError)) != FINISHED:
        if i is None:
            if polls % POLLS_PER_NOTE == 0:
                _say(f"Waiting for checkpoints in {checkpoints.directory}, up to {total_steps}.")
            polls += 1
            watchdog.progress("waiting for a checkpoint")
            time.sleep(POLL_SECONDS)
            continue
        polls = 0
        try:
            run(i)
            behind = False
        except UnreadableError as error:
            is_there = processes.from_first(
                lambda i=i: i in checkpoints.all_steps(), CheckpointError
            )
            if is_there and i == total_steps:
                raise
            _say(f"Passed over step {i}: {error.what}.")
            passed_over.add(i)
            behind = not is_there


def _published(meta: dict) -> str | None:
    """The published model that a checkpoint was imported from, where its paper has numbers."""
    name = (meta.get("source") or {}).get("name")
    return name if name in tasks.papers() else None


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _write(folder: Path, step: int, evaluated: dict[str, report.Evaluated]) -> None:
    """Numbers that are not finite look as in the metric log; process 0 writes, all learn of it."""

    def write():
        if jax.process_index() != 0:
            return
        results = {
            name: {metric: log.to_json(float(value)) for metric, value in one.values.items()}
            for name, one in evaluated.items()
        }
        table = jax.tree.map(
            lambda x: log.to_json(x) if isinstance(x, float) else x, report.as_json(evaluated)
        )
        from evaluators.datasets.chart import chart  # Matplotlib takes its time

        try:
            make_directory(folder)
            write_json(folder / f"{step}_table.json", table)
            write_whole(folder / f"{step}_table.md", report.markdown(evaluated).encode())
            if (picture := chart(report.rows(evaluated))) is not None:
                write_whole(folder / f"{step}_table.png", picture)
            write_json(folder / f"{step}.json", {"step": step, **results})  # last: it says done
        except OSError as error:
            raise CheckpointError(f"The result cannot be written: {error}.") from error

    together(write)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    unicode.escape_output()  # a directory's name may be no text
    options = flags.FLAGS
    try:
        # Ends at once, as there is nothing to save. In a cluster jax takes SIGTERM for itself.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        cluster.connect_processes()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        evaluate(options.config, options.workdir, options.step, options.follow)
    except Exception as error:
        sys.exit(processes.end(error))


if __name__ == "__main__":
    command.define_config()
    command.define_run("the directory of the run")
    flags.DEFINE_integer(
        "step", None, "which checkpoint to evaluate; by default the latest", lower_bound=0
    )
    flags.DEFINE_bool("follow", False, "evaluate every checkpoint as it appears")
    command.run(main)
