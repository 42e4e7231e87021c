"""Nested dicts of arrays on disk, a directory of Orbax each: written with checksums, read whole.

Orbax' files have no checksum of their own over the arrays: one bit that flips on a disk would pass
for a weight. So the sum of each array's bits is written beside it and compared after reading.
"""

import atexit
import contextlib
import errno
import functools
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax

from big_vlp import trees
from big_vlp.storage import objects
from big_vlp.storage.agreement import CheckpointError
from input_pipeline.files.buckets import is_in_bucket
from input_pipeline.files.outages import Unreachable

CHECKSUMS = "checksums"
# Orbax and tensorstore take "\\" for "/", the others for a pattern or a URL.
SPECIAL_CHARACTERS = set("\\*?[]:")
# What the errors of tensorstore and Orbax hold where it is not the program's fault.
OF_FILES = (
    "os_error_code|OS error|local file|already exists|HTTP response code"
    "|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED"
)


class UnreadableArraysError(CheckpointError):
    """An item that is missing, damaged or not this user's to read; the message says why."""


def orbax_path(directory: Path) -> Path:
    """A path to a directory that exists, in characters that Orbax takes: itself, or a link to it.

    Orbax writes some names to another place, and others not at all: with "[" in it a checkpoint is
    written without its arrays.
    """
    name = str(directory)
    if is_in_bucket(directory):
        if name.startswith("s3://"):
            objects.teach_orbax()
        return directory
    if name.isprintable() and not SPECIAL_CHARACTERS & set(name):
        return directory
    return _link(directory)


@functools.cache
def _link(directory: Path) -> Path:
    folder = tempfile.TemporaryDirectory(prefix="big_vlp_")
    atexit.register(folder.cleanup)
    link = Path(folder.name) / "directory"
    link.symlink_to(directory, target_is_directory=True)
    return link


def to_save(tree: dict) -> ocp.args.StandardSave:
    """What Orbax is told to write; in a run of several processes, all call this."""
    return ocp.args.StandardSave(tree, custom_metadata={CHECKSUMS: _checksums(tree)})


def metadata(path: Path) -> Any:
    """Of an item: `.tree`, a nested dict of shapes and dtypes, and `.custom_metadata`.

    Raises:
      UnreadableArraysError
    """
    with reading():
        return ocp.StandardCheckpointHandler().metadata(path)


def read(path: Path, tree: dict) -> dict:
    """The arrays of an item, where and of which dtype `tree` says; waits for no other process.

    Args:
      tree: nested dict of jax.ShapeDtypeStruct with shardings, of the item's paths and shapes.

    Raises:
      UnreadableArraysError
    """
    with reading():
        return ocp.StandardCheckpointHandler().restore(path, args=ocp.args.StandardRestore(tree))


def read_checked(path: Path, tree: dict, where: str, say: Callable[[str], None]):
    """(arrays, metadata) of an item."""
    stored = metadata(path)
    lines = trees.differences(tree, stored.tree)
    if lines:
        raise CheckpointError(
            f"{where} holds another model than the config describes ({len(lines)} differences):\n  "
            + "\n  ".join(lines)
            + "\nUse the config it was trained with (meta/metadata holds it), or another --workdir."
        )
    counts = Counter((old, new) for _, old, new in casts(tree, stored.tree))
    for (old, new), count in counts.items():
        say(f"{where}: what is stored in {old} is read as {new} (arrays: {count}).")
    return read(path, tree), stored


def not_as_written(paths: list[str]) -> str:
    return f"not as it was written: {paths[0]}, arrays: {len(paths)}"


def named(why: str, workdir: Path) -> str:
    """With the name that a user knows the directory by."""
    if os.strerror(errno.EACCES) in why:
        why += "; this user needs the right to read it"
    return why.replace(str(orbax_path(workdir)), str(workdir))


def altered(tree: dict, stored: Any) -> list[str]:
    """Paths of arrays that are not as they were written; in a run of several processes, all ask.

    Arrays that were read as another dtype are not compared, nor items without checksums, which
    converters write.

    Args:
      tree: what `read` gave.
      stored: the item's `metadata`.
    """
    expected = (stored.custom_metadata or {}).get(CHECKSUMS)
    if expected is None:
        return []
    recast = {path for path, _, _ in casts(tree, stored.tree)}
    found = _checksums(tree)
    return [path for path in found if path not in recast and found[path] != expected.get(path)]


def casts(wanted: dict, stored: dict) -> list[tuple[str, str, str]]:
    """(path, dtype on disk, dtype wanted) of the arrays whose dtype changes in reading."""
    stored = trees.flatten(stored)
    return [
        (path, np.dtype(stored[path].dtype).name, np.dtype(leaf.dtype).name)
        for path, leaf in trees.flatten(wanted).items()
        if stored[path].dtype != leaf.dtype
    ]


def _checksums(tree: dict) -> dict[str, int]:
    """{path: the sum of an array's bits, read as integers}, whatever the mesh it is split over."""
    return {path: int(x) for path, x in jax.device_get(trees.flatten(_sums(tree))).items()}


@jax.jit
def _sums(tree):
    def bits_sum(x):
        if x.dtype == bool:
            x = x.astype(jnp.uint8)
        word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
        return lax.bitcast_convert_type(x, word).sum(dtype=jnp.uint32)

    return jax.tree.map(bits_sum, tree)


@contextlib.contextmanager
def reading():
    """Turns whatever a failed read raises into UnreadableArraysError."""
    _drop_late_reports()
    try:
        yield
    except Exception as error:
        if cannot_be_reached(error):
            raise CheckpointError(
                f"A checkpoint cannot be reached now, nothing is wrong with it ({reason(error)})."
            ) from _as_outage(error)
        if _lacks_resources(error):
            raise CheckpointError(
                f"Reading a checkpoint failed for want of memory or files on this machine, nothing "
                f"is wrong with it ({reason(error)})."
            ) from error
        raise UnreadableArraysError(reason(error)) from error


@functools.cache
def _drop_late_reports() -> None:
    """When one read fails, Orbax gives up the others; each would print a traceback when it ends."""
    report = sys.unraisablehook

    def report_others(unraisable):
        code = getattr(unraisable.object, "cr_code", None)
        of_orbax = code is not None and "orbax" in code.co_filename
        if not of_orbax and "Event loop is closed" not in str(unraisable.exc_value):
            report(unraisable)

    sys.unraisablehook = report_others
    logging.getLogger("asyncio").addFilter(
        lambda record: "exception was never retrieved" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


@contextlib.contextmanager
def writing(directory: Path, kept: Callable[[], str]):
    """Turns whatever a failed write raises into one CheckpointError.

    Args:
      kept: says what is not lost.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if _is_full(error):
            remedy = "Make room or pick another --workdir"
        elif _is_of_files(error):
            remedy = "Mend that or pick another --workdir"
        else:
            remedy = "This is a fault of the program and no full disk; mend it"
            absl.logging.error("Writing to %s failed:", directory, exc_info=error)
        raise CheckpointError(
            f"Writing a checkpoint to {directory} failed ({reason(error)}). {kept()}. {remedy}, "
            "then run the same command again: it goes on from there."
        ) from (_as_outage(error) if cannot_be_reached(error) else error)


def reason(error: BaseException) -> str:
    """One line on why reading or writing files failed: of the first cause."""
    *_, error = _causes(error)
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = re.split(r" \[(tensorstore_spec|source locations|os_error_code)=", text)[0]
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"not the JSON that was written: {text}"
    if isinstance(error, OSError | ValueError):
        return text
    return f"{type(error).__name__}: {text}"


def _is_full(error: BaseException) -> bool:
    """Whether writing failed because a disk, or a quota, is full."""
    texts = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)]
    return any(text in str(cause) for cause in _causes(error) for text in texts)


def cannot_be_reached(error: BaseException) -> bool:
    """Whether storage did not answer, which may pass by itself."""
    return any(
        isinstance(cause, Unreachable) or re.search("UNAVAILABLE|DEADLINE_EXCEEDED", str(cause))
        for cause in _causes(error)
    )


def _as_outage(error: BaseException) -> BaseException:
    """With an `Unreachable` among its causes, where TensorStore tells of the outage in words."""
    if any(isinstance(cause, Unreachable) for cause in _causes(error)):
        return error
    outage = Unreachable(reason(error))
    outage.__cause__ = error
    return outage


def _lacks_resources(error: BaseException) -> bool:
    """Whether reading failed for the machine's limits, and not for the files."""
    numbers = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return any(
        isinstance(cause, MemoryError | jax.errors.JaxRuntimeError)
        or getattr(cause, "errno", None) in numbers
        or "RESOURCE_EXHAUSTED" in str(cause)
        for cause in _causes(error)
    )


def _is_of_files(error: BaseException) -> bool:
    """Whether reading or writing failed for what the operating system said."""
    return any(
        isinstance(cause, OSError) or re.search(OF_FILES, str(cause)) for cause in _causes(error)
    )


def _causes(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__
