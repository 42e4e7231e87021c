"""Trains what a config describes, or goes on with a run that ended early.

    python -m big_vlp.train --config configs/demo.py --workdir runs/demo
    python -m big_vlp.train --config configs/demo.py --workdir runs/long --config.total_steps=4000

The loop's order is: save if due -> evaluate if due -> batch of this step -> train step -> log.
Everything a step does is a function of (config, step, state), so a run that was killed goes on
exactly from its last checkpoint when the same command is given again: to the bit on CPUs and TPUs,
and on GPUs with `config.deterministic`. Each process of a cluster runs this same program;
`big_vlp.parallel.cluster.connect_processes` says how they find each other.

SIGTERM to any process, the notice that its machine is about to go, and Ctrl-C, end all of them with
the state saved: within two steps (three, of several processes), or between two batches of an
evaluation. So the grace period before a SIGKILL must hold that and the writing of a checkpoint;
what is killed sooner goes on from the last one.
"""

import collections
import contextlib
import importlib.metadata
import json
import os
import signal
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import flags, logging

import big_vlp
from big_vlp import command, trees
from big_vlp.experiment import ConfigError, Experiment, config_changes
from big_vlp.parallel import cluster, notices, placing, processes, signals, watchdog
from big_vlp.parallel.feed import Feed
from big_vlp.run import progress, step, tables
from big_vlp.run.bad_steps import BadSteps, NonFiniteError
from big_vlp.run.broken_records import BrokenRecords
from big_vlp.run.commit import note_commit
from big_vlp.run.compile_cache import open_compile_cache
from big_vlp.run.contact_sheet import MAX_EXAMPLES, write_contact_sheet
from big_vlp.run.lease import held_lease
from big_vlp.run.log import LOG_FILE, TRAIN, LogError, MetricLog, read_log
from big_vlp.storage.checkpoint import CheckpointError
from big_vlp.storage.frozen import save_frozen
from big_vlp.storage.model_dir import Labels
from big_vlp.telemetry.flops import ModelFlops
from big_vlp.telemetry.meter import Meter
from evaluators.shared.sharing import sharing
from input_pipeline.files.buckets import storage_path
from input_pipeline.files.whole import write_json
from input_pipeline.loader import free_shared_memory
from input_pipeline.workers import leave_out_main

# What draws and reads the data: their versions decide the very bytes.
DATA_PACKAGES = ("grain", "numpy", "opencv-python-headless", "pillow", "simplejpeg")
CONFIG_FILE = "config.json"
# Steps that the devices have been given and have not finished: while one runs, the next waits.
MAX_RUNNING = 2


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Runs or resumes a training run.

    Args:
      config: see `Experiment`.
      workdir: made if missing; one run, one directory.

    Raises:
      PathError: `workdir` is no path of this machine, nor in a bucket.
      CompileCacheError: see `open_compile_cache`.
      ConfigError: the config cannot be built, or the run is beyond its `total_steps`.
      LeaseError: another run writes into `workdir`.
      CheckpointError: a checkpoint cannot be read or written.
      LogError: the metric log cannot be read or written.
      NonFiniteError: see `Experiment.on_nonfinite`; the state is saved.
      BrokenRecordError: see `Loader.on_broken`; in evaluations always.
      ProcessError: another process of the run failed.
      Stop: a SystemExit of status 143 after SIGTERM, 130 after Ctrl-C, with the state saved.
    """
    workdir = storage_path(workdir)
    open_compile_cache()
    experiment = Experiment.from_config(config)
    total_steps = experiment.total_steps
    live = progress.LiveLine(total_steps)
    # What is opened is closed after the reason of an end was said.
    with (
        signals.heard(),
        notices.heard(),
        watchdog.watching(experiment.watchdog_minutes, processes.tell_of_standstill),
        contextlib.ExitStack() as opened,
        processes.telling(live.message, opened.close) as telling,
    ):
        _run(experiment, workdir, live, opened, telling)


def _run(experiment, workdir, live, opened, telling) -> None:
    experiment.check_agreed()
    total_steps = experiment.total_steps
    mesh = experiment.make_mesh()
    method = experiment.make_method()
    model_flops = ModelFlops(experiment, mesh, method.dtype)
    meter = opened.enter_context(Meter(mesh.size, model_flops))
    profile = experiment.make_profile().open(workdir, meter, live.message)
    opened.callback(profile.close)
    optimizer = experiment.make_optimizer(method)
    loader = experiment.make_loader(mesh)
    evaluators = experiment.make_evaluators(method, mesh)
    warm_starts = experiment.make_warm_starts()
    tracker = experiment.make_tracker(workdir)
    check_lease = opened.enter_context(held_lease(workdir, live.message))
    checkpoints = opened.enter_context(contextlib.closing(experiment.make_checkpoints(workdir)))

    init_key, run_key = jax.random.split(jax.random.key(experiment.seed))
    shapes = experiment.abstract_state(method, optimizer, mesh)
    placement = jax.tree.map(lambda x: x.sharding, shapes)
    train_step = step.compiled_step(method, optimizer, placement, mesh)

    packages = {name: importlib.metadata.version(name) for name in DATA_PACKAGES}
    meta = {
        "config": experiment.as_json(),
        "preprocess": json.loads(experiment.preprocess_record.to_json()),
        "data_fingerprint": loader.source.fingerprint(),
        "versions": {"big_vlp": big_vlp.__version__, "jax": jax.__version__, **packages},
    }
    saved_step = checkpoints.latest_step()
    if saved_step is not None and saved_step > total_steps:
        raise ConfigError(
            f"{workdir} has a checkpoint of step {saved_step}, and config.total_steps is "
            f"{total_steps}: the run is beyond that. Give {saved_step} or more, or another "
            "--workdir."
        )
    labels = experiment.labels(loader)
    if saved_step is not None and (before := Labels.load(workdir)) not in (None, labels):
        raise ConfigError(
            f"{workdir} was trained on {len(before.names)} classes; the vocabulary or the data of "
            "the config now name others, or in another order. Restore them, or change --workdir."
        )
    evaluated = set()
    if saved_step is None:
        init = jax.jit(step.make_init(method, optimizer), out_shardings=placement)
        state = init(init_key)
        for warm_start in warm_starts:
            state, note = warm_start.apply(state, mesh, loader.source.class_names, method)
            live.message(note)
        save_frozen(workdir, state["frozen"])
    else:
        try:
            saved_step, state = checkpoints.restore_latest(shapes, live.message)
        except CheckpointError as error:
            error.agreed = True  # all processes get the same
            raise
        live.message(f"Going on from {checkpoints.directory / str(saved_step)}.")
        saved_meta = checkpoints.meta(saved_step)
        for change in config_changes(saved_meta, meta):
            live.message(f"Changed since that checkpoint: {change}")
        before, now = saved_meta["config"], meta["config"]
        evaluated = set(
            processes.from_first(
                lambda: sorted(logged_evaluations(workdir, saved_step, before, now)), LogError
            )
        )

    first_step = saved_step or 0
    # Only now: it drops the lines of steps that will be made again.
    log = MetricLog(workdir, first_step, evaluated, live.message, tracker)
    opened.callback(log.close)
    bad_before = state["opt"]["bad_steps"]["count"]
    meter.goes_on(log.found, first_step, int(bad_before))
    broken_records = BrokenRecords(workdir, loader, first_step, live.message)
    model = trees.merge(state["model"], state["frozen"])
    live.message(tables.parameter_table(model, optimizer.describe(model)))
    held = sum(map(placing.bytes_per_device, jax.tree.leaves(state)))
    live.message(f"Training state: {held / 2**20:,.1f} MiB on each of {mesh.size} devices.")
    contact_sheet = workdir / "contact_sheet.png"
    if jax.process_index() == 0:
        try:
            write_json(workdir / CONFIG_FILE, experiment.as_json())
            note_commit(workdir, first_step)
            if labels is not None:
                labels.save(workdir)
        except OSError as error:
            raise CheckpointError(
                f"{workdir} cannot be written ({error}). Make room, or correct --workdir; then run "
                "the same command again."
            ) from error
    if first_step == 0 and jax.process_index() == 0:
        image_size, batch_size, _ = loader.plan(0)
        rows = loader.first_rows(0, MAX_EXAMPLES)
        views = loader.views[image_size]
        with progress.Dispensable(os.fspath(contact_sheet), live.message):
            write_contact_sheet(contact_sheet, method, views, rows, run_key, batch_size=batch_size)
    bad_steps = BadSteps(
        bad_before,
        workdir,
        experiment.on_nonfinite,
        experiment.max_bad_steps,
        loader.ids,
        live.message,
    )

    def save(i):
        nonlocal saved_step
        if i != saved_step:
            check_lease()
            items = {name: state[name] for name in ("model", "averaged", "opt")}
            doing = f"writing the checkpoint of step {i}"
            with watchdog.longer(doing), meter.pausing("checkpoint"):
                checkpoints.save(i, items, {**meta, "step": i})
            saved_step = i

    def evaluate(i):
        with sharing():
            for name, evaluator in evaluators.items():
                if evaluator.is_due(i, total_steps) and not (i == first_step and name in evaluated):
                    doing = f"evaluating step {i}, {name}"
                    with watchdog.longer(doing), meter.pausing("evaluation"):
                        values = evaluator.run(state)
                    check_lease()
                    log.write(i, name, values)
                    table = tables.metric_table(values)
                    live.message(f"step {i}, {name} of the {evaluator.weights} weights:\n{table}")

    steps_done = first_step
    try:
        loaded, running = loader.iterate(first_step), collections.deque()
        sizes = (loader.plan(i)[1] for i in range(first_step, total_steps))
        fed = Feed(loaded, sizes, mesh, method.check_batch)
        with contextlib.closing(fed) as feed, jax.set_mesh(mesh):
            batches = announced(feed, total_steps - first_step, mesh, checkpoints.is_time)
            for i in range(first_step, total_steps):
                if checkpoints.is_due(i):
                    bad_steps.look()
                    save(i)
                evaluate(i)
                if len(running) == MAX_RUNNING:
                    jax.block_until_ready(running.popleft())
                with meter.waiting():
                    batch, is_time = next(batches)
                if is_time and i:
                    bad_steps.look()
                    save(i)
                image_size, global_batch, *_ = loader.plan(i)
                with jax.profiler.StepTraceAnnotation("train", step_num=i):
                    state, metrics = train_step(state, batch, i, run_key)
                running.append(metrics)
                del batch  # else its memory were not free before the next one is there
                steps_done = i + 1
                watchdog.started(f"step {i}")
                signals.only_note()  # before, there was nothing to lose: they end it at once
                bad_steps.note(i, metrics["bad_steps"])
                meter.dispatched(metrics["bad_steps"], global_batch, image_size)
                profile.dispatched(i)
                if i % experiment.log_every_steps == 0 or i + 1 == total_steps:
                    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
                    clocked = meter.read(int(metrics["bad_steps"]))
                    check_lease()
                    broken = broken_records.report(i, loaded)
                    took = checkpoints.seconds_of_last_save()
                    saved = {} if took is None else {"save_seconds": took}
                    log.write(i, TRAIN, metrics | clocked | broken | saved)
                    live.update(i + 1, metrics["loss"], clocked)
                    bad_steps.look()
                    checkpoints.check()
            signals.only_note()
            save(total_steps)
            with watchdog.longer("finishing the last checkpoint"):
                checkpoints.wait()  # an end during the last evaluation loses nothing
            evaluate(total_steps)
    except BaseException as error:
        end = error
        if processes.is_agreed(end):
            try:
                bad_steps.look()  # those in what is saved here are old ones to the next run
            except NonFiniteError as found:
                end = found if isinstance(end, signals.Stop) else end
            telling.why(end)
            if steps_done:  # else the next run begins anew, also with another config
                save(steps_done)
            with watchdog.longer("finishing the last checkpoint"):
                checkpoints.wait()
            if isinstance(end, signals.Stop):  # after an error the last line is that
                kept = f"step {steps_done} is saved; the same command goes on from there."
                live.message(f"{end.name}: {kept if steps_done else 'no step was done yet.'}")
        if end is not error:
            raise end from None
        raise
    from big_vlp.run.curves import CURVES_FILE, plot_curves  # Matplotlib takes its time

    curves = workdir / CURVES_FILE
    with progress.Dispensable(os.fspath(curves), live.message):
        try:
            plot_curves(workdir)
        except ValueError as nothing_yet:
            curves = nothing_yet
    opened.close()
    live.message(
        f"Done: {total_steps} steps.\n"
        f"  checkpoints    {checkpoints.directory}\n"
        f"  metrics        {workdir / LOG_FILE}\n"
        f"  curves         {curves}\n"
        f"  contact sheet  {contact_sheet}"
    )


def logged_evaluations(workdir, saved_step: int, before: dict, now: dict) -> set[str]:
    """The evaluations of a checkpoint that are in the log, but for those that now are others."""
    if not (workdir / LOG_FILE).exists():
        return set()
    found = {line["split"] for line in read_log(workdir) if line["step"] == saved_step}
    old, new = before["evals"], now["evals"]
    changed = {name for name in new if new[name] != old.get(name)}
    return found - changed - {TRAIN}


def announced(batches, count: int, mesh, is_time):
    """Each of `count` batches, and process 0's `is_time`.

    Where there are several processes, all are asked one batch ahead, so that the answer is there
    when its step is dispatched.

    Raises:
      Exception, Stop: see `parallel.processes.raise_together`; the batches before were given.
    """

    def checked(batch, error, answer):
        time_is_up, *state = np.asarray(answer)
        processes.raise_if_told(state, error)
        return batch, bool(time_is_up)

    waiting, error = collections.deque(), None
    for _ in range(count):
        # After an error the others still ask once more, and wait for this process' answer.
        batch = None
        if error is None:
            try:
                with signals.interrupting():
                    batch = next(batches)
            except signals.Stop:
                pass  # in the state below
            except Exception as failed:
                # A signal to the whole group ends the loader's workers, too.
                error = None if signals.received() else failed
        time_is_up = int(jax.process_index() == 0 and is_time())
        said = [time_is_up, *processes.my_state(error)]
        waiting.append((batch, error, cluster.largest_of_processes(said, mesh)))
        del batch
        if len(waiting) == 2 or jax.process_count() == 1:
            yield checked(*waiting.popleft())
    if waiting:
        yield checked(*waiting.popleft())


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # the libraries' progress notes drown ours
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks for a profile once there are steps
    leave_out_main()
    try:
        cluster.connect_processes()
        train(flags.FLAGS.config, flags.FLAGS.workdir)
    except (Exception, signals.Stop) as error:
        status = processes.end(error)
    else:
        status = 0
    free_shared_memory()
    sys.exit(status)


if __name__ == "__main__":
    command.define_config()
    command.define_run("where checkpoints, metrics and pictures go; a run that is there goes on")
    with processes.ending_at_once():
        command.run(main)
