"""Trains what a config describes: python -m big_vlp.train --config FILE[:ARGS] --workdir DIR

The loop's order is: save if due -> evaluate if due -> batch of this step -> train step -> log.
Everything a step does is a function of (config, step, state), so a run that was killed goes on
exactly from its last checkpoint when the same command is given again: to the bit on CPUs and TPUs,
and on GPUs with `config.deterministic`. Each process of a cluster runs this same program;
`big_vlp.sharding.connect_processes` says how they find each other.
"""

import contextlib
import json
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import big_vlp
from big_vlp import sharding, step, telemetry, trees
from big_vlp.checkpoint import CheckpointError, restore_frozen, save_frozen
from big_vlp.experiment import ConfigError, Experiment, config_changes
from big_vlp.model_dir import Labels
from input_pipeline.show import write_contact_sheet

TERMINATED = 128 + signal.SIGTERM  # exit status after SIGTERM


class NonFiniteError(Exception):
    """An update was not finite and the config says to stop."""


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Runs or resumes a training run.

    Args:
      config: see `Experiment`.
      workdir: made if missing; one run, one directory.

    Raises:
      ConfigError: the config cannot be built.
      CheckpointError: a checkpoint cannot be read or written.
      NonFiniteError: see `Experiment.on_nonfinite`.
      SystemExit: status 143 after SIGTERM, with the state saved.
    """
    workdir = Path(workdir).absolute()
    experiment = Experiment.from_config(config)
    total_steps = experiment.total_steps
    mesh = experiment.make_mesh()
    method = experiment.make_method()
    optimizer = experiment.make_optimizer(method)
    loader = experiment.make_loader(mesh)
    evaluators = experiment.make_evaluators(method, mesh)
    checkpoints = experiment.make_checkpoints(workdir)
    warm_starts = experiment.make_warm_starts()

    init_key, run_key = jax.random.split(jax.random.key(experiment.seed))
    shapes = experiment.abstract_state(method, optimizer, mesh)
    placement = jax.tree.map(lambda x: x.sharding, shapes)
    train_step = step.compiled_step(method, optimizer, placement, mesh)

    meta = {
        "config": experiment.as_json(),
        "preprocess": json.loads(experiment.preprocess_record.to_json()),
        "data_fingerprint": loader.source.fingerprint(),
        "versions": {"big_vlp": big_vlp.__version__, "jax": jax.__version__},
    }
    saved_step = checkpoints.latest_step()
    labels = experiment.labels(loader)
    if saved_step is not None and (before := Labels.load(workdir)) not in (None, labels):
        raise ConfigError(
            f"{workdir} was trained on {len(before.names)} classes; the vocabulary or the data of "
            "the config now name others, or in another order. Restore them, or change --workdir."
        )
    first_step = saved_step or 0
    live = telemetry.LiveLine(total_steps)
    if saved_step is None:
        init = jax.jit(step.make_init(method, optimizer), out_shardings=placement)
        state = init(init_key)
        for warm_start in warm_starts:
            class_names = getattr(loader.source, "class_names", None)
            state, note = warm_start.apply(state, mesh, class_names)
            live.message(note)
        save_frozen(workdir, state["frozen"])
    else:
        state = restore(checkpoints, saved_step, shapes)
        live.message(f"Going on from {checkpoints.directory / str(saved_step)}.")
        for change in config_changes(checkpoints.meta(saved_step), meta):
            live.message(f"Changed since that checkpoint: {change}")

    # Only now: it drops the lines of steps that will be made again.
    log = telemetry.MetricLog(workdir, first_step)
    model = trees.merge(state["model"], state["frozen"])
    live.message(telemetry.parameter_table(model, optimizer.describe(model)))
    held = sum(map(sharding.bytes_per_device, jax.tree.leaves(state)))
    live.message(f"Training state: {held / 2**20:,.1f} MiB on each of {mesh.size} devices.")
    contact_sheet = workdir / "contact_sheet.png"
    if labels is not None and jax.process_index() == 0:
        labels.save(workdir)
    if first_step == 0 and jax.process_index() == 0:
        views = loader.views[loader.plan(0)[0]]
        write_contact_sheet(contact_sheet, method, views, loader.batch(0), run_key)

    def save(i):
        nonlocal saved_step
        if i != saved_step:
            items = {name: state[name] for name in ("model", "averaged", "opt")}
            checkpoints.save(i, items, {**meta, "step": i})
            saved_step = i

    def evaluate(i):
        for name, evaluator in evaluators.items():
            if evaluator.is_due(i, total_steps):
                values = evaluator.run(state)
                log.write(i, name, values)
                table = telemetry.metric_table(values)
                live.message(f"step {i}, {name} of the {evaluator.weights} weights:\n{table}")

    def announced(batches, sigterm):
        """Each batch with the longest text and the SIGTERM that any process has seen. Asked one
        batch ahead, so that the answer is there when its step is dispatched."""
        waiting = None
        for batch in batches:
            said = [method.text_length(batch), int(sigterm.is_set())]
            answer = sharding.largest_of_processes(said, mesh)
            if waiting is not None:
                yield waiting
            waiting = batch, answer
        yield waiting

    clock = Clock()
    with (
        noting_sigterm() as sigterm,
        contextlib.closing(loader.iterate(first_step)) as loaded,
        jax.set_mesh(mesh),
    ):
        batches = announced(loaded, sigterm)
        for i in range(first_step, total_steps):
            if checkpoints.is_due(i):
                save(i)
            evaluate(i)
            with clock.waiting():
                batch, answer = next(batches)
            text_length, terminated = np.asarray(answer)
            if terminated:
                save(i)
                checkpoints.wait()
                live.message(f"SIGTERM: step {i} is saved; the same command goes on from there.")
                sys.exit(TERMINATED)
            batch = method.cut_text(batch, text_length)
            global_batch = loader.plan(i)[1]
            batch = sharding.global_batch(batch, mesh, global_batch)
            state, metrics = train_step(state, batch, i, run_key)
            clock.examples += global_batch
            if i % experiment.log_every_steps == 0 or i + 1 == total_steps:
                metrics = {name: float(value) for name, value in metrics.items()}
                rates = clock.read()
                log.write(i, telemetry.TRAIN, metrics | rates)
                live.update(i + 1, metrics["loss"], **rates)
                if metrics["bad_steps"]:
                    report_bad_step(experiment, state, loader, workdir, live)
                checkpoints.check()
    save(total_steps)
    evaluate(total_steps)
    checkpoints.close()
    log.close()
    live.message(
        f"Done: {total_steps} steps.\n"
        f"  checkpoints    {checkpoints.directory}\n"
        f"  metrics        {workdir / telemetry.LOG_FILE}\n"
        f"  curves         {telemetry.plot_curves(workdir)}\n"
        f"  contact sheet  {contact_sheet}"
    )


def restore(checkpoints, saved_step: int, shapes: dict) -> dict:
    """The state of a checkpoint; it must have the structure of `shapes`."""
    items = {name: tree for name, tree in shapes.items() if name != "frozen"}
    frozen = restore_frozen(checkpoints.workdir, shapes["frozen"])
    return {**checkpoints.restore(saved_step, items), "frozen": frozen}


def report_bad_step(experiment, state, loader, workdir, live) -> None:
    """Records the first refused update and its batch, once; raises if the config says to stop."""
    first = int(state["opt"]["bad_steps"]["first"])
    record = workdir / "nonfinite.json"
    text = f"The loss or a gradient of step {first} was not finite; the update was refused."
    if jax.process_index() == 0 and not record.exists():
        report = {"first_bad_step": first, "record_ids": loader.ids(first)}
        record.write_text(json.dumps(report, indent=1))
        live.message(f"{text} Its record ids are in {record}.")
    if experiment.on_nonfinite == "stop":
        raise NonFiniteError(
            f"{text} Its record ids are in {record}. Look at these records, or lower the learning "
            "rate; config.on_nonfinite='skip' goes on without such updates."
        )


@contextlib.contextmanager
def noting_sigterm():
    """Gives an event that SIGTERM sets, so that the loop can save between two steps."""
    received = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


class Clock:
    """Examples per second and the share of time spent waiting for input, since the last reading."""

    def __init__(self):
        self.examples, self._waited, self._start = 0, 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self):
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def read(self) -> dict[str, float]:
        now = time.monotonic()
        elapsed = now - self._start
        rates = {
            "examples_per_s": self.examples / elapsed,
            "input_wait": self._waited / elapsed,
        }
        self.examples, self._waited, self._start = 0, 0.0, now
        return rates


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # the libraries' progress notes drown ours
    try:
        sharding.connect_processes()
        train(flags.FLAGS.config, flags.FLAGS.workdir)
    except (sharding.ClusterError, ConfigError, CheckpointError, NonFiniteError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "FILE[:ARGS], see configs/.")
    flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and pictures go.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
