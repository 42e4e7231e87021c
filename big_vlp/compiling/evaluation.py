"""What evaluators need beside the training state, without their data."""

from collections.abc import Iterator
from typing import NamedTuple

from big_vlp.compiling import programs
from big_vlp.compiling.setup import Setup, held
from big_vlp.experiment import ConfigError
from big_vlp.parallel import meshes
from evaluators.shared.base import find_evaluator, needed_of


class Program(NamedTuple):
    """A predict function as an evaluator runs it.

    Attributes:
      evaluator: its name in `config.evals`.
      weights_bytes: of the weights that it reads, on each device; they are part of the state.
      work_bytes: what it needs beside the state; None where nobody says what its rows are.
    """

    evaluator: str
    function: str
    rows: int
    weights_bytes: int
    work_bytes: int | None


def evaluator_programs(setup: Setup) -> Iterator[Program]:
    """Compiles the predict functions that the config's evaluators call, each once.

    What an evaluator does by itself, with features and scores, is small and left out, and so is an
    evaluator that does not say what it `needs` or has no `batch_size`.

    Raises:
      ConfigError: there is no such evaluator, or the method lacks a function.
      TooLargeError: one does not fit beside the training state.
    """
    done = {}
    for name, (scheduled, settings) in setup.experiment.planned_evaluators(setup.method).items():
        where, weights = f"config.evals.{name}", scheduled.weights
        try:
            evaluator = find_evaluator(scheduled.evaluator)
            needs = needed_of(evaluator, setup.method.predict_fns())
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        asked = settings.get("batch_size", getattr(evaluator, "batch_size", None))
        if asked is None:
            continue
        parts = meshes.batch_parts(setup.mesh)
        rows = -(-asked // parts) * parts  # as `evaluators.shared.rows.RowMap` rounds
        for function in needs:
            key = function, rows, weights
            if key not in done:
                advice = _advice(where, rows, parts)
                what = f"{where} ({function} of {rows:,} rows)"
                done[key] = programs.compile_predict(setup, *key, what, advice)
            report = done[key]
            found = None if report is None else report.work_bytes
            yield Program(name, function, rows, held(setup.weights(weights)), found)


def _advice(where: str, rows: int, parts: int) -> str:
    less = "" if rows == parts else f"Lower {where}.batch_size, or use"
    return (
        f"{less or 'Use'} more devices, or evaluate in a job of its own (python -m "
        "big_vlp.evaluate), which holds the weights alone."
    )
