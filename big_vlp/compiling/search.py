"""The remat policy and the number of micro-batches with which a recipe's batch runs fastest.

Candidates are compiled with their blocks in loops, which takes a fraction of the time. For each
policy two batches are compiled without micro-batches (one, if that is the recipe's and fits):
between and near them memory and time are affine in the batch. Where the recipe's batch does not fit
so, it is cut into the fewest micro-batches with which it does. Only the winner is compiled as the
config says. What was compiled is kept on the user's disk, so a search that was ended goes on.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import NamedTuple

from big_vlp.compiling import programs, report
from big_vlp.compiling.kept import Kept
from big_vlp.compiling.setup import Setup, held
from big_vlp.experiment import ConfigError
from big_vlp.models.layers.remat import NAMES
from big_vlp.parallel import meshes
from big_vlp.telemetry import roofline
from big_vlp.telemetry.flops import as_needed, products_per_sample, with_settings

# After so many no other candidate is begun.
MINUTES = 30
# After the config's own. From the least memory to the most: so something is found in any case.
POLICIES = ("full", "dots", ",".join(NAMES[:3]), ",".join(NAMES), None)
# Rows on each device of the first program.
ROWS = 8
# Share of the memory that is left free where it was not compiled but interpolated.
MARGIN = 0.02
# Numbers of micro-batches that are tried for a policy.
TRIES = 3


class Point(NamedTuple):
    """What a step of so many examples needs on each device.

    Attributes:
      work_bytes: beside the state; None where it does not fit.
      seconds: by the roofline; None where no roofline can be had.
    """

    batch: int
    work_bytes: float | None
    seconds: float | None


class Row(NamedTuple):
    """The largest batch that fits, up to the recipe's.

    Attributes:
      steps: micro-batches.
      overhead: products that the program computes over those that are needed.
    """

    remat: str | None
    steps: int
    point: Point
    overhead: float

    @property
    def rate(self) -> float | None:
        """Examples per second."""
        return self.point.seconds and self.point.batch / self.point.seconds


class _OutOfTime(Exception):
    pass


def search(setup: Setup, with_roofline: bool) -> None:
    """Prints the table, the report of the winner, and the options that say it.

    Raises:
      ConfigError: memory of the devices is not known, or they do not divide the batch.
      TooLargeError: nothing fits, or the evaluators do not.
    """
    wanted, parts = setup.experiment.global_batch, meshes.batch_parts(setup.mesh)
    if setup.memory is None:
        raise ConfigError(
            f"The memory of a {setup.device_kind} is not known, so nothing can be searched for it. "
            "Give a TPU slice, as --topology=v5e:4x4."
        )
    if wanted % parts:
        raise ConfigError(
            f"config.global_batch={wanted} cannot be split over data * fsdp = {parts} devices; "
            "make it a multiple."
        )
    print(
        f"\nSearching for {setup.mesh.size} x {setup.device_kind}, each with "
        f"{setup.memory / 2**30:.2f} GiB, of which the training state takes "
        f"{held(setup.state) / 2**30:.2f}; at most {MINUTES} minutes:",
        flush=True,
    )
    rows, unfit, left = Candidates(setup).rows()
    print(table(rows, setup))
    if unfit:
        print(f"No batch fits with: {'; '.join(map(str, unfit))}.")
    if left:
        print(
            f"Not reached in {MINUTES} minutes: {'; '.join(map(str, left))}. The same command goes "
            "on from here."
        )
    for row in rows:
        chosen = with_row(setup, row)
        print(f"\n{options(chosen)}, compiled as the config says:", flush=True)
        try:
            report.show_steps(chosen, with_roofline)
        except programs.TooLargeError as error:
            print(f"  {error}\n  So the next.")
            continue
        report.show_evaluators(chosen)
        print(f"\nAdd to the command line:\n  {options(chosen)}", flush=True)
        return
    raise programs.TooLargeError(
        f"Nothing that was tried fits {setup.mesh.size} x {setup.device_kind}. Use more devices, "
        "or a larger config.mesh.fsdp."
    )


def with_row(setup: Setup, row: Row) -> Setup:
    """The setup with the row's settings."""
    fields, given = _fields(setup.method), {"remat": row.remat, "accumulate_steps": row.steps}
    given = {name: value for name, value in given.items() if name in fields}
    method = {**setup.experiment.method, **given}
    experiment = dataclasses.replace(setup.experiment, global_batch=row.point.batch, method=method)
    return dataclasses.replace(
        setup, experiment=experiment, method=with_settings(setup.method, **given)
    )


def options(setup: Setup) -> str:
    """What says the setup's batch, policy and micro-batches on a command line."""
    found = {"global_batch": setup.experiment.global_batch}
    for name in ("remat", "accumulate_steps"):
        if name in setup.experiment.method:
            found[f"method.{name}"] = setup.experiment.method[name]
    return " ".join(f"--config.{name}={value}" for name, value in found.items())


def table(rows: list[Row], setup: Setup) -> str:
    """One line for each row, in their order."""
    lines = [
        f"  {'remat':26} micro-batches    batch     GiB  FLOPs   ms/step  examples/s",
    ]
    state = held(setup.state)
    for row in rows:
        point, times = row.point, f"{'':>8}  {'not known':>10}"
        if row.rate:
            times = f"{1e3 * point.seconds:8,.1f}  {row.rate:10,.0f}"
        lines.append(
            f"  {row.remat!s:26} {row.steps:13} {point.batch:8,} "
            f"{(state + point.work_bytes) / 2**30:7.2f}  {row.overhead:5.2f}  {times}"
        )
    lines.append(
        "FLOPs: products over needed ones. Times are the least that products and memory take "
        "(see --roofline), without what devices send each other."
    )
    return "\n".join(lines)


def _fields(method) -> set[str]:
    return {field.name for field in dataclasses.fields(method)}


class Candidates:
    """Compiles what the table needs, and no more."""

    def __init__(self, setup: Setup):
        self._setup, self._kept = setup, Kept.of(setup)
        self._size = setup.experiment.preprocess_record.image_size
        self._wanted = setup.experiment.global_batch
        self._parts = meshes.batch_parts(setup.mesh)
        self._first = ROWS * self._parts
        self._end = time.monotonic() + 60 * MINUTES

    def rows(self) -> tuple[list[Row], list[str | None], list[str | None]]:
        """(the rows, those with the recipe's whole batch first, and of these the fastest first;
        policies with which no batch fits; those that did not get their turn)."""
        rows, unfit, left, policies = [], [], [], (None,)
        if "remat" in _fields(self._setup.method):
            policies = dict.fromkeys((self._setup.method.remat, *POLICIES))
        for remat in policies:
            try:
                found = [
                    Row(remat, steps, point, self._overhead(remat, steps))
                    for steps, point in self._of_policy(remat)
                ]
            except _OutOfTime:
                left.append(remat)
                continue
            rows += found
            if not found:
                unfit.append(remat)
        return sorted(rows, key=self._order), unfit, left

    def _order(self, row: Row) -> tuple:
        """By overhead where a time is not known."""
        cost = -row.rate if row.rate else row.overhead
        return row.point.batch < self._wanted, row.rate is None, cost, row.steps

    def _of_policy(self, remat: str | None) -> Iterator[tuple[int, Point]]:
        """(micro-batches, the largest batch that fits)."""
        largest = self._whole(remat)
        if largest is None:
            return
        self._first = largest.batch  # the next policy begins there
        yield 1, largest
        if largest.batch == self._wanted:
            return
        tried = 0
        for steps in self._divisors():
            if self._wanted // steps > largest.batch:
                continue
            point = self._point(remat, steps, self._wanted)
            if point.work_bytes is not None:
                yield steps, point
                return
            tried += 1
            if tried == TRIES:
                return

    def _divisors(self) -> list[int]:
        """Into how many micro-batches the recipe's batches can be cut, each of the same number of
        rows on every device."""
        if "accumulate_steps" not in _fields(self._setup.method):
            return []
        batches = [batch for _, batch in self._setup.experiment.make_plan().shapes]
        most = min(batches) // self._parts
        return [
            steps
            for steps in range(2, most + 1)
            if all(batch % (steps * self._parts) == 0 for batch in batches)
        ]

    def _whole(self, remat: str | None) -> Point | None:
        """The largest batch without micro-batches, up to the recipe's; None where none fits."""
        for batch in dict.fromkeys((self._first, self._first / 8, 1)):
            first = self._point(remat, 1, max(self._rounded(batch), self._parts))
            if first.work_bytes is not None:
                break
        else:
            return None
        free = (1 - MARGIN) * self._setup.memory - held(self._setup.state)
        # More is not free if work does not grow faster than the batch.
        second = self._rounded(first.batch * free / first.work_bytes)
        if second <= first.batch:
            return first
        second = self._point(remat, 1, second)
        if second.work_bytes is None or second.batch == self._wanted:
            return first if second.work_bytes is None else second
        return self._between(first, second, free)

    def _between(self, first: Point, second: Point, free: float) -> Point:
        """The largest batch whose work fits, on the line through two points."""
        more = second.work_bytes - first.work_bytes
        share = (free - first.work_bytes) / more if more > 0 else float("inf")
        step = second.batch - first.batch
        if share < 1 or step < first.batch / 4:  # the second did fit; they are too near for a line
            return second
        batch = self._rounded(first.batch + min(share * step, self._wanted))
        share = (batch - first.batch) / step
        seconds = None
        if first.seconds is not None and second.seconds is not None:
            seconds = first.seconds + share * (second.seconds - first.seconds)
        return Point(batch, first.work_bytes + share * more, seconds)

    def _rounded(self, batch: float) -> int:
        """Down to what the devices divide; no more than the recipe's."""
        return int(min(batch, self._wanted) // self._parts) * self._parts

    def _method(self, remat: str | None, steps: int):
        settings = {"remat": remat, "accumulate_steps": steps, "unroll": False}
        return with_settings(self._setup.method, **settings)

    def _overhead(self, remat: str | None, steps: int) -> float:
        experiment, method = self._setup.experiment, self._method(remat, steps)

        def count(method):
            return products_per_sample(experiment, method)

        batch = experiment.global_batch
        needed = self._kept.get(f"needed {batch}", lambda: count(as_needed(method)))
        return self._kept.get(f"{remat} {steps} of {batch}", lambda: count(method)) / needed

    def _point(self, remat: str | None, steps: int, batch: int) -> Point:
        """Raises _OutOfTime where it is not kept, and no more may be begun."""
        return Point(
            batch,
            *self._kept.get(f"{remat} {steps} {batch}", lambda: self._compile(remat, steps, batch)),
        )

    def _compile(self, remat: str | None, steps: int, batch: int) -> tuple:
        began = time.monotonic()
        if began > self._end:
            raise _OutOfTime
        method, found = self._method(remat, steps), (None, None)
        try:
            compiled = programs.compile_step(self._setup, self._size, batch, method)
            found = compiled.work_bytes, self._seconds(compiled.text)
        except programs.TooLargeError:
            pass
        work = "does not fit" if found[0] is None else f"work of {found[0] / 2**30:.2f} GiB"
        print(
            f"  {remat}, {steps} x {batch // steps:,} examples: {work} "
            f"({time.monotonic() - began:.0f} s)",
            flush=True,
        )
        return found

    def _seconds(self, text: str | None) -> float | None:
        if text is None:
            return None
        try:
            return roofline.roofline(text, self._setup.device_kind).seconds
        except roofline.UnknownDeviceError:
            return None
