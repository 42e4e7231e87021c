"""Updates that were refused because the loss or a gradient was not finite."""

import json
import os
from pathlib import Path

import jax

from big_vlp.run.progress import Dispensable
from input_pipeline.checks.errors import BigVlpError
from input_pipeline.files.whole import write_whole

RECORD_FILE = "nonfinite.json"
_RECORDED = 20  # a run that has diverged would fill it with every batch


class NonFiniteError(BigVlpError):
    """An update was not finite and the config says to stop, or too many in a row were not."""

    agreed = True  # the counts are the same on all processes


class BadSteps:
    """What a run does about refused updates.

    The state counts them on the device. The counts of the steps since the last look are kept, and
    read only when the last one has grown, so a run without bad steps pays one number per look.

    Args:
      count: of the state that the run starts from: those were reported when they were new.
      workdir: where `nonfinite.json` names the bad steps and their records.
      on_nonfinite, limit: see `Experiment.on_nonfinite` and `Experiment.max_bad_steps`.
      record_ids: step -> ids of its batch.
      say: prints a line.
    """

    def __init__(self, count, workdir: Path, on_nonfinite: str, limit: int, record_ids, say):
        self._count, self._record = int(count), workdir / RECORD_FILE
        self._stop, self._limit = on_nonfinite == "stop", limit
        self._record_ids, self._say = record_ids, say
        self._steps, self._in_a_row = [], 0

    def note(self, step: int, count: jax.Array) -> None:
        """Takes the state's count after a step; does not wait for it."""
        self._steps.append((step, count))

    def look(self) -> None:
        """Records the steps that were refused since the last look.

        Raises:
          NonFiniteError: there are some and the config says to stop, or so many in a row.
        """
        steps, self._steps = self._steps, []
        if not steps or int(steps[-1][1]) == self._count:
            self._in_a_row = 0 if steps else self._in_a_row
            return
        bad, longest = [], 0
        for step, count in steps:
            refused, self._count = int(count) > self._count, int(count)
            self._in_a_row = self._in_a_row + 1 if refused else 0
            longest = max(longest, self._in_a_row)
            bad += [step] if refused else []
        self._report(bad)
        which = f"step {bad[0]}"
        if len(bad) > 1:
            which = f"{len(bad)} steps from {bad[0]} to {bad[-1]}"
        text = f"The loss or a gradient of {which} was not finite; the update was refused"
        if self._stop:
            raise NonFiniteError(
                f"{text}. {self._record} has the record ids: look at them, or lower the learning "
                "rate. The same command goes on without that update; config.on_nonfinite='skip' "
                "does so without stopping."
            )
        if longest >= self._limit:
            raise NonFiniteError(
                f"{text}: {longest} in a row, config.max_bad_steps is {self._limit}. The run has "
                f"diverged, or its data are broken: {self._record} has the first record ids. Lower "
                "the learning rate, or go on from an earlier checkpoint by deleting the later ones."
            )
        self._say(f"{text}. {self._record} has the record ids.")

    def _report(self, bad: list[int]) -> None:
        if jax.process_index() == 0:
            with Dispensable(os.fspath(self._record), self._say):
                self._write(bad)

    def _write(self, bad: list[int]) -> None:
        report, known = {}, []
        if self._record.exists():
            report = json.loads(self._record.read_text())
            known = [report["first_bad_step"], *(x["step"] for x in report.get("later", ()))]
        for step in [step for step in bad if step not in known][: max(0, _RECORDED - len(known))]:
            ids = self._record_ids(step)
            if report:
                report.setdefault("later", []).append({"step": step, "record_ids": ids})
            else:
                report = {"first_bad_step": step, "record_ids": ids}
        write_whole(self._record, json.dumps(report, indent=1).encode("ascii"))
