"""Frozen parameters of a run: WORKDIR/frozen, written once, as they do not change."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import orbax.checkpoint as ocp

from big_vlp.storage import agreement, arrays
from big_vlp.storage.agreement import CheckpointError
from input_pipeline.files.buckets import storage_path


def save_frozen(workdir: str | Path, frozen: dict) -> None:
    """Writes the frozen parameters of a run that begins, over those of one that never saved.

    Raises:
      CheckpointError: they cannot be written.
    """
    if frozen:
        workdir = storage_path(workdir)
        path = arrays.orbax_path(workdir) / "frozen"
        with (
            arrays.writing(workdir / "frozen", lambda: "The run has not begun"),
            ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer,
        ):
            checkpointer.save(path, args=arrays.to_save(frozen), force=True)


def restore_frozen(
    workdir: str | Path, frozen: dict, say: Callable[[str], None] = lambda _: None
) -> dict:
    """Reads them back; `frozen` is a nested dict of jax.ShapeDtypeStruct. Every process asks.

    Raises:
      CheckpointError: they are missing or damaged, or belong to another model.
    """
    if not frozen:
        return {}
    workdir = storage_path(workdir)

    def read():
        with reading(workdir) as path:
            return arrays.read_checked(path, frozen, str(workdir / "frozen"), say)

    tree, stored = agreement.together(read)
    with reading(workdir):
        if altered := arrays.altered(tree, stored):
            raise arrays.UnreadableArraysError(arrays.not_as_written(altered))
    return tree


@contextlib.contextmanager
def reading(workdir: Path):
    """Gives the path for Orbax; says what to do where it cannot be read."""
    path = workdir / "frozen"
    if not path.exists():
        raise CheckpointError(f"{path} is missing: it holds the run's frozen parameters.")
    try:
        yield arrays.orbax_path(workdir) / "frozen"
    except arrays.UnreadableArraysError as error:
        raise CheckpointError(
            f"{path} is damaged ({arrays.named(str(error), workdir)}): it holds the run's frozen "
            "parameters, which no checkpoint repeats. Bring it back from a copy, or begin again in "
            "another --workdir."
        ) from error
