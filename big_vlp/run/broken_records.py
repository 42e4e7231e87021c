"""Counts and names the records of a run in whose place others stand, over all processes."""

import json
import os

import jax

from big_vlp.parallel import cluster
from big_vlp.run.progress import Dispensable
from input_pipeline.files.buckets import storage_path
from input_pipeline.files.lines import Lines
from input_pipeline.loader import Batches, Loader
from input_pipeline.records import BrokenRecordError

FILE = "broken_records.jsonl"
# Examples that a share is taken of, at the least: so few broken ones are no reason to stop.
_MIN_EXAMPLES = 100


class BrokenRecords:
    """What `Loader.on_broken` "replace" leaves out, for the metrics, the user and a file.

    `workdir/broken_records.jsonl` has a line for each broken record: the step and global position
    that met it, and what is wrong. Process 0 writes it.

    Args:
      workdir: of the run.
      loader: of the run.
      first_step: that is made next; the share is of the examples since then.
      say: prints a line.
    """

    def __init__(self, workdir: str | os.PathLike, loader: Loader, first_step: int, say):
        self._path = storage_path(workdir) / FILE
        self._lines = Lines(self._path)
        self._loader, self._say = loader, say
        self._dispensable, self._waiting = Dispensable(os.fspath(self._path), say), ""
        self._next_step = first_step
        self._examples = self._broken = 0
        self._known = set()
        if jax.process_index() == 0 and self._lines.exists():
            text = self._lines.text()
            whole = text[: text.rfind("\n") + 1]
            if whole != text:  # A kill has cut the last line short.
                self._lines.replace(whole)
            self._known = {json.loads(line)["reason"] for line in whole.splitlines()}

    def report(self, step: int, batches: Batches) -> dict[str, int]:
        """Takes what was replaced up to this step; called by all processes alike.

        Args:
          step: whose update was the last.
          batches: the iterator that gave the run's batches; it may be ahead of the step.

        Returns:
          Metrics, none with `on_broken` "stop": the examples that were replaced since the last
          call, over all processes.

        Raises:
          BrokenRecordError: more than `max_broken_share` of the examples were replaced.
        """
        if self._loader.on_broken == "stop":
            return {}
        mine = []
        while batches.replaced and batches.replaced[0].step <= step:
            mine.append(vars(batches.replaced.popleft()))
        found = [one for part in cluster.gather(mine) for one in part]
        found.sort(key=lambda one: one["position"])
        # Processes along a tensor axis hold the same rows.
        found = list({one["position"]: one for one in found}.values())
        self._examples += sum(self._loader.plan(i)[1] for i in range(self._next_step, step + 1))
        self._next_step = step + 1
        self._broken += len(found)
        new = self._write(found)
        share = self._loader.max_broken_share
        if self._broken > share * max(self._examples, _MIN_EXAMPLES):
            error = BrokenRecordError(
                f"{self._broken:,} of {self._examples:,} examples were broken, which is more than "
                f"config.loader.max_broken_share={share:g} allows; they are named in {self._path}. "
                f"The last: {found[-1]['reason']}"
            )
            error.agreed = True  # all processes know the same
            raise error
        if new:
            self._say(
                f"step {step}: others stand in for {len(new):,} more broken records, named in "
                f"{self._path}. The first: {new[0]}"
            )
        return {"broken_records": len(found)}

    def _write(self, found: list[dict]) -> list[str]:
        """Appends what the file does not have yet; returns the reasons."""
        new, lines = [], self._waiting
        for one in found:
            if one["reason"] not in self._known and jax.process_index() == 0:
                self._known.add(one["reason"])
                new.append(one["reason"])
                lines += json.dumps(one) + "\n"
        self._waiting = lines
        if lines:
            with self._dispensable:
                self._lines.append(lines)
                self._waiting = ""
        return new
