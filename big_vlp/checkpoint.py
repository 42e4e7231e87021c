"""Checkpoints of a run: WORKDIR/checkpoints/STEP with items model, averaged, opt and meta.

Step N is the state before update N, so a run that restores it goes on with batch N. Frozen
parameters do not change and are written once, to WORKDIR/frozen. Writing happens in the
background; a directory gets its final name only when it is complete.
"""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from big_vlp import trees
from input_pipeline.paths import local_path


class CheckpointError(Exception):
    """A checkpoint that cannot be read or written; the message says what to do."""


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
      workdir: made if missing.
      every_steps: `is_due` says yes at multiples of it.
      keep_latest: how many of the newest checkpoints are kept.
      keep_every_steps: multiples of it are kept for good; None keeps only the newest.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        every_steps: int = 1,
        keep_latest: int = 1,
        keep_every_steps: int | None = None,
        read_only: bool = False,
    ):
        self.workdir = local_path(workdir)
        self.every_steps = every_steps
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep_latest,
            keep_period=keep_every_steps,
            # Leftovers of a killed save; they never count as checkpoints.
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self.directory = self.workdir / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=options,
            item_handlers={
                "model": ocp.StandardCheckpointHandler(),
                "averaged": ocp.StandardCheckpointHandler(),
                "opt": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Complete checkpoints, oldest first; looks at the directory again."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: dict[str, Any], meta: dict) -> None:
        """Starts writing a checkpoint; arrays are copied before this returns.

        Args:
          items: {"model", "averaged", "opt"} -> nested dicts of arrays; empty ones are left out.
          meta: JSON-able.

        Raises:
          CheckpointError: this or the previous write failed; older checkpoints are untouched.
        """
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items() if tree}
        args["meta"] = ocp.args.JsonSave(meta)
        with self._explain_write_errors():
            # force: whether a save is due was decided by the caller.
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def is_due(self, step: int) -> bool:
        return step > 0 and step % self.every_steps == 0

    def wait(self) -> None:
        """Returns when the last save is complete.

        Raises:
          CheckpointError: it failed.
        """
        with self._explain_write_errors():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises CheckpointError if a save in the background failed; does not wait."""
        with self._explain_write_errors():
            self._manager.check_for_errors()

    def restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Reads items of a checkpoint.

        Args:
          items: {name: nested dict of jax.ShapeDtypeStruct with shardings}.

        Raises:
          CheckpointError: there is no such checkpoint, or it holds another model; every
            parameter that differs is named.
        """
        if step not in self.all_steps():
            raise CheckpointError(
                f"{self.directory} has no checkpoint of step {step}; it has {self.all_steps()}."
            )
        wanted = {name: tree for name, tree in items.items() if tree}
        metadata = self._manager.item_metadata(step)
        for name, tree in wanted.items():
            found = metadata.get(name)
            if found is None:
                raise CheckpointError(
                    f"Checkpoint {self.directory / str(step)} has no item {name!r}: it was written "
                    "by another method."
                )
            _same_or_raise(tree, found, f"{self.directory / str(step)}, item {name!r}")
        args = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] if name in wanted else {} for name in items}

    def has(self, step: int, item: str) -> bool:
        """Whether a checkpoint holds an item; empty ones are not written."""
        return (self.directory / str(step) / item).exists()

    def shapes(self, step: int, item: str) -> dict[str, Any]:
        """{path: its shape and dtype} of an item."""
        return trees.flatten(dict(self._manager.item_metadata(step)[item]))

    def frozen_shapes(self) -> dict[str, Any]:
        """{path: its shape and dtype} of the run's frozen parameters."""
        with ocp.StandardCheckpointer() as checkpointer:
            return trees.flatten(dict(checkpointer.metadata(self.workdir / "frozen").item_metadata))

    def meta(self, step: int) -> dict:
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def close(self) -> None:
        with self._explain_write_errors():
            self._manager.close()

    def _explain_write_errors(self):
        return _WriteErrors(self)


class _WriteErrors:
    """Turns whatever a failed write raises into one CheckpointError."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is None or not isinstance(error, Exception):
            return
        steps = sorted(int(p.name) for p in self.checkpoints.directory.glob("*[0-9]") if p.is_dir())
        last = f"the last complete one is step {steps[-1]}" if steps else "there is none yet"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else kind.__name__
        raise CheckpointError(
            f"Writing a checkpoint to {self.checkpoints.directory} failed ({reason}). Complete "
            f"checkpoints are untouched; {last}. Make room or pick another --workdir, then run the "
            "same command again: it goes on from there."
        ) from error


def save_frozen(workdir: str | Path, frozen: dict) -> None:
    """Writes the frozen parameters of a run that begins, over those of one that never saved."""
    if frozen:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(Path(workdir).absolute() / "frozen", frozen, force=True)


def restore_frozen(workdir: str | Path, frozen: dict) -> dict:
    """Reads them back; `frozen` is a nested dict of jax.ShapeDtypeStruct."""
    if not frozen:
        return {}
    path = Path(workdir).absolute() / "frozen"
    if not path.exists():
        raise CheckpointError(f"{path} is missing: it holds the run's frozen parameters.")
    with ocp.StandardCheckpointer() as checkpointer:
        _same_or_raise(frozen, checkpointer.metadata(path).item_metadata, str(path))
        return checkpointer.restore(path, frozen)


def _same_or_raise(expected, found, where: str) -> None:
    lines = trees.differences(expected, dict(found))
    if lines:
        raise CheckpointError(
            f"{where} holds another model than the config describes ({len(lines)} differences):\n  "
            + "\n  ".join(lines)
            + "\nUse the config it was trained with (meta/metadata holds it), or another --workdir."
        )
