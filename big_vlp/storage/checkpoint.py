"""Checkpoints of a run: WORKDIR/checkpoints/STEP with items model, averaged, opt and meta.

Step N is the state before update N, so a run that restores it goes on with batch N. Frozen
parameters do not change and are written once, to WORKDIR/frozen. Writing happens in the
background; a directory gets its final name only when it is complete.

A checkpoint may be damaged later, by a disk, a copy that was cut short, or by hand. Whatever is
read is compared with what was written (but for what `big_vlp.convert` exports, a tensor at a
time), and the processes of a run agree on what can be read.
"""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from big_vlp import renamed, trees
from big_vlp.parallel.processes import from_first
from big_vlp.storage import agreement, arrays, frozen
from big_vlp.storage.agreement import CheckpointError, UnreadableError
from input_pipeline.files.buckets import create, is_in_bucket, make_directory, storage_path
from input_pipeline.files.outages import COMMITTED

# Beside each checkpoint, by Orbax; lists its items.
STEP_METADATA = "_CHECKPOINT_METADATA"
DAMAGED_SUFFIX = ".damaged"


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
      workdir: made if missing.
      every_steps: `is_due` says yes at multiples of it.
      every_minutes: `is_time` says yes when so many have passed; None never.
      keep_latest: how many of the newest checkpoints are kept.
      keep_every_steps: multiples of it are kept for good; None keeps only the newest.
      on_damage: what `restore_latest` does where the newest checkpoint cannot be read: "stop"
        raises, "previous" sets it aside as STEP.damaged and takes the newest one that can.
      read_only: of one who makes and deletes nothing.

    Raises:
      ValueError: another `on_damage`.
      CheckpointError: the directory cannot be made.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        every_steps: int = 1,
        every_minutes: float | None = None,
        keep_latest: int = 1,
        keep_every_steps: int | None = None,
        on_damage: str = "stop",
        read_only: bool = False,
    ):
        if on_damage not in ("stop", "previous"):
            raise ValueError(f"on_damage={on_damage!r}; choose stop or previous.")
        self.workdir = storage_path(workdir)
        self.directory = self.workdir / "checkpoints"
        self.every_steps, self.on_damage = every_steps, on_damage
        self._seconds, self._since = every_minutes and 60 * every_minutes, time.monotonic()
        self._began = self._took = None  # of the last save: when it began, how long it took
        self._manager = None
        if read_only:
            return
        try:
            make_directory(self.directory)
        except OSError as error:
            raise CheckpointError(f"{self.directory} cannot be made: {error}.") from error
        with arrays.writing(self.directory, lambda: "Nothing was written"):
            self._manager = self._made_manager(keep_latest, keep_every_steps)

    def _made_manager(self, keep_latest: int, keep_every_steps: int | None):
        return ocp.CheckpointManager(
            arrays.orbax_path(self.workdir) / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_latest,
                keep_period=keep_every_steps,
                # Leftovers of a killed save; they never count as checkpoints.
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._note_finished),
            ),
            item_handlers={
                "model": ocp.StandardCheckpointHandler(),
                "averaged": ocp.StandardCheckpointHandler(),
                "opt": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def all_steps(self) -> list[int]:
        """Complete checkpoints, oldest first; looks at the directory. Other names do not count.

        Raises:
          CheckpointError: the directory cannot be read.
        """
        try:
            found = [p for p in self.directory.iterdir() if re.fullmatch(r"0|[1-9]\d*", p.name)]
            return sorted(int(path.name) for path in found if _is_complete(path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.directory} cannot be read: {error}.") from error

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, as process 0 sees it; every process asks."""
        return from_first(lambda: max(self.all_steps(), default=None), CheckpointError)

    def save(self, step: int, trees_of_items: dict[str, Any], meta: dict) -> None:
        """Starts writing a checkpoint; arrays are copied before this returns.

        Args:
          trees_of_items: {"model", "averaged", "opt"} -> nested dicts of arrays; empty ones are
            left out.
          meta: JSON-able.

        Raises:
          CheckpointError: this or the previous write failed; older checkpoints are untouched.
        """
        args = {name: arrays.to_save(tree) for name, tree in trees_of_items.items() if tree}
        args["meta"] = ocp.args.JsonSave(meta)
        self._since = time.monotonic()
        with self._writing():
            self._manager.wait_until_finished()
            self._began = time.monotonic()
            # force: whether a save is due was decided by the caller.
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def is_due(self, step: int) -> bool:
        return step > 0 and step % self.every_steps == 0

    def is_time(self) -> bool:
        """Whether `every_minutes` have passed since the last save, or since this said so: once
        each time. Clocks differ: one process asks, and tells the others."""
        if not self._seconds or time.monotonic() - self._since < self._seconds:
            return False
        self._since = time.monotonic()
        return True

    def seconds_of_last_save(self) -> float | None:
        """How long the last save took until it was complete, once after each; the time that a
        machine must have between SIGTERM and SIGKILL, and a step."""
        took, self._took = self._took, None
        return took

    def _note_finished(self) -> None:
        self._took = time.monotonic() - self._began

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
          CheckpointError: it failed.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises CheckpointError if a save in the background failed; does not wait."""
        with self._writing():
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for the last save.

        Raises:
          CheckpointError: it failed.
        """
        if self._manager is not None:
            with self._writing():
                self._manager.close()

    def restore(
        self, step: int, wanted: dict[str, Any], say: Callable[[str], None] = lambda _: None
    ) -> dict[str, Any]:
        """Reads items of a checkpoint; every process of a run asks, and all get it or none does.

        Args:
          wanted: {name: nested dict of jax.ShapeDtypeStruct with shardings}.
          say: is told of arrays whose dtype changes.

        Raises:
          UnreadableError: there is no such checkpoint, or a part of it is missing or damaged, for
            one process at least.
          CheckpointError: it holds another model; every parameter that differs is named.
        """
        trees_wanted = {name: tree for name, tree in wanted.items() if tree}

        def read_all():
            self.meta(step)
            self._check_items(step, trees_wanted)
            return {
                name: self._reading(
                    step, name, arrays.read_checked, tree, f"{self._path(step)}, item {name}", say
                )
                for name, tree in trees_wanted.items()
            }

        found = agreement.together(read_all, lambda why: self.damaged(step, why))
        for name, (tree, stored) in found.items():
            if altered := arrays.altered(tree, stored):
                raise self.damaged(step, f"{name}: {arrays.not_as_written(altered)}")
        return {name: found[name][0] if name in found else {} for name in wanted}

    def restore_latest(
        self, shapes: dict[str, Any], say: Callable[[str], None]
    ) -> tuple[int, dict[str, Any]]:
        """The step and the state of the newest checkpoint that can be read, and what was frozen.

        Every process of a run asks, and gets the same.

        Args:
          shapes: the state: {name of an item, or "frozen": as for `restore`}; there is a
            checkpoint.
          say: is told what is remarkable.

        Raises:
          CheckpointError: the newest checkpoint cannot be read and `on_damage` is "stop"; or none
            can; or the frozen parameters cannot; or they belong to another model.
        """
        frozen_tree = frozen.restore_frozen(self.workdir, shapes["frozen"], say)
        wanted = {name: tree for name, tree in shapes.items() if name != "frozen"}
        refused: dict[int, str] = {}

        def newest_left():
            return max((s for s in self.all_steps() if s not in refused), default=None)

        state = None
        while state is None:
            step = from_first(newest_left, CheckpointError)
            if step is None:
                raise CheckpointError(
                    f"{'; '.join(refused.values())}: no other checkpoint is left. Bring one back "
                    "from a copy, or begin again in another --workdir."
                )
            try:
                state = self.restore(step, wanted, say)
            except UnreadableError as error:
                refused[step] = error.what
        if refused and self.on_damage == "stop":
            them = "it" if len(refused) == 1 else "them"
            raise CheckpointError(
                f"{'; '.join(refused.values())}: delete {them}, the run goes on from {step}. "
                f"config.checkpoint.on_damage='previous' sets {them} aside by itself."
            )
        for damaged, what in refused.items():
            self._set_aside(damaged)
            say(f"{what}: set aside as {damaged}{DAMAGED_SUFFIX}, the run goes on from {step}.")
        return step, {**state, "frozen": frozen_tree}

    def _set_aside(self, step: int) -> None:
        """Out of the way of the run that comes to this step again, and of what counts."""
        path, free = self._path(step), self._path(step).with_name(f"{step}{DAMAGED_SUFFIX}")

        def rename():
            if jax.process_index() != 0:
                return
            number = 2
            target = free
            while target.exists():
                target, number = free.with_name(f"{free.name}.{number}"), number + 1
            try:
                if is_in_bucket(path):
                    (path / COMMITTED).unlink()  # what is moved file by file does not count
                path.rename(target)
                if is_in_bucket(path):
                    create(target / COMMITTED, b"")  # or Orbax takes it for a leftover
            except OSError as error:
                raise CheckpointError(f"{path} cannot be set aside: {error}.") from error

        agreement.together(rename)
        self._manager.reload()

    def has(self, step: int, item: str) -> bool:
        """Whether a checkpoint was written with an item; empty ones are not.

        Raises:
          UnreadableError
        """
        return item in self._items(step)

    def shapes(self, step: int, item: str) -> dict[str, Any]:
        """{path: its shape and dtype} of an item.

        Raises:
          UnreadableError
        """
        self._check_items(step, [item])
        return trees.flatten(self._reading(step, item, arrays.metadata).tree)

    def frozen_shapes(self) -> dict[str, Any]:
        """{path: its shape and dtype} of the run's frozen parameters.

        Raises:
          CheckpointError
        """
        with frozen.reading(self.workdir) as path:
            return trees.flatten(arrays.metadata(path).tree)

    def meta(self, step: int) -> dict:
        """The JSON of a checkpoint, with today's names of the config's keys.

        Raises:
          UnreadableError: there is no such checkpoint, or its JSON is damaged.
        """
        meta = self._read_json(step, "meta/metadata")
        if isinstance(meta.get("config"), dict):
            meta["config"] = renamed.upgrade(meta["config"])
        if isinstance(meta.get("preprocess"), dict):  # the record, which is a section of a config
            section = {"preprocess": meta["preprocess"]}
            meta["preprocess"] = renamed.upgrade(section)["preprocess"]
        return meta

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    def _items(self, step: int) -> dict:
        """The items that a checkpoint was written with."""
        written = self._read_json(step, STEP_METADATA).get("item_handlers")
        if not isinstance(written, dict):
            raise self.damaged(step, f"{STEP_METADATA} lists no items")
        return written

    def _check_items(self, step: int, names) -> None:
        written = self._items(step)
        for name in names:
            if name not in written:
                raise CheckpointError(
                    f"Checkpoint {self._path(step)} has no item {name!r}: it was written by "
                    "another method."
                )

    def _read_json(self, step: int, name: str) -> dict:
        try:
            if not _is_complete(self._path(step)):
                raise FileNotFoundError("it is not complete")
            value = json.loads((self._path(step) / name).read_bytes())
        except (OSError, ValueError) as error:
            if arrays.cannot_be_reached(error):
                raise CheckpointError(
                    f"{self._path(step)} cannot be reached now ({arrays.reason(error)})."
                ) from error
            raise self.damaged(step, f"{name}: {arrays.reason(error)}") from error
        if not isinstance(value, dict):
            raise self.damaged(step, f"{name} is not the JSON that was written")
        return value

    def _reading(self, step: int, item: str, read, *args):
        """`read(path of the item, *args)`."""
        try:
            path = arrays.orbax_path(self.workdir) / "checkpoints" / str(step) / item
            return read(path, *args)
        except arrays.UnreadableArraysError as error:
            raise self.damaged(step, f"{item}: {error}") from error

    def damaged(self, step: int, why: str) -> UnreadableError:
        """The error of one that is not there, or cannot be read for the reason given."""
        steps = self.all_steps()
        if step not in steps:
            return UnreadableError(
                f"{self.directory} has no checkpoint of step {step}; it has {steps}", "."
            )
        earlier = [s for s in steps if s < step]
        then = f"the run goes on from {earlier[-1]}" if earlier else "the run begins again"
        why = arrays.named(why, self.workdir)
        return UnreadableError(
            f"checkpoint {step} ({self._path(step)}) is damaged ({why})",
            f": delete it, {then}.",
        )

    def _writing(self):
        def kept():
            steps = self.all_steps()
            last = f"the last complete one is step {steps[-1]}" if steps else "there is none yet"
            return f"Complete checkpoints are untouched; {last}"

        return arrays.writing(self.directory, kept)


def _is_complete(path) -> bool:
    """Whether a directory with the name of a checkpoint is one."""
    return (path / COMMITTED).exists() if is_in_bucket(path) else path.is_dir()
