"""The compiled programs that JAX keeps for the next start: by default in a folder of the user's."""

import contextlib
import hashlib
import os
import platform
import tempfile
from pathlib import Path

import jax
from absl import logging

from input_pipeline.checks.errors import BigVlpError
from input_pipeline.files.buckets import create, storage_path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
OFF = "off"
# XLA's own files beside them, which it can write on a disk only.
_OF_XLA = "jax_persistent_cache_enable_xla_caches"
# Programs that compile in less are not kept. JAX's second leaves out most of what a start compiles.
_MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"
_LEAST = 0.1


class CompileCacheError(BigVlpError):
    """JAX_COMPILATION_CACHE_DIR names no place that can be written."""


def open_compile_cache() -> None:
    """Has JAX keep compiled programs; to be called before it compiles.

    They lie where JAX_COMPILATION_CACHE_DIR says, on a disk or in a bucket; nowhere where it says
    "off"; by default in `$XDG_CACHE_HOME/big_vlp/compiled`, else in `~/.cache`, in a folder for
    this kind of CPU: programs for a CPU may use what another one lacks. Where that cannot be
    written, a line says so. A run of several processes has no default: hosts may have a home each,
    where one finds what the others compile, and there are programs that GPUs compile together.

    JAX reads and writes there by itself, process 0 alone writes, and a failure later on is a
    warning: the program is compiled again.

    Raises:
      CompileCacheError: it is another URL, or the bucket cannot be written.
    """
    given = jax.config.jax_compilation_cache_dir
    if given == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not given:
        given = None if jax.distributed.is_initialized() else _own_directory()
        if given is None:
            return
        jax.config.update("jax_compilation_cache_dir", given)
    if _MIN_SECONDS.upper() not in os.environ:
        jax.config.update(_MIN_SECONDS, _LEAST)
    if "://" not in given or given.startswith("file://"):
        return
    try:
        directory = storage_path(given)
        with contextlib.suppress(FileExistsError):
            create(directory / ".writable", b"")
    except (BigVlpError, OSError) as error:
        raise CompileCacheError(
            f"{VARIABLE}={given} cannot be used ({error}). Correct or unset it."
        ) from error
    jax.config.update(_OF_XLA, "")


def users_cache(*names: str) -> Path:
    """The folder `$XDG_CACHE_HOME/big_vlp/NAMES`, else in `~/.cache`, made if missing.

    Raises:
      OSError: it cannot be written; RuntimeError: nobody knows the home.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(home, "big_vlp", *names)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass
    return directory


def _own_directory() -> str | None:
    """The user's, made if missing; None, and a logged line, where it cannot be written."""
    try:
        directory = users_cache("compiled", _kind_of_cpu())
    except (OSError, RuntimeError) as error:  # the latter where nobody knows the home
        logging.warning(
            "Compiled programs are not kept (%s). %s names another place, or %r for none.",
            error,
            VARIABLE,
            OFF,
        )
        return None
    return str(directory)


def _kind_of_cpu() -> str:
    """A name that CPUs share which can run each other's programs."""
    told = platform.processor()
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        lines = (line.partition(":") for line in first.splitlines())
        fields = {name.strip(): value for name, _, value in lines}
        told = "".join(fields.get(name, "") for name in ("model name", "flags", "Features"))
    return f"{platform.machine()}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
