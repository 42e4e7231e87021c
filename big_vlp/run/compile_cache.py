"""The compiled programs that JAX keeps for the next start, where these lie in a bucket."""

import contextlib

import jax

from input_pipeline.checks.errors import BigVlpError
from input_pipeline.files.buckets import create, storage_path

# XLA's own files beside them, which it can write on a disk only.
_OF_XLA = "jax_persistent_cache_enable_xla_caches"


class CompileCacheError(BigVlpError):
    """JAX_COMPILATION_CACHE_DIR names no place that can be written."""


def open_compile_cache() -> None:
    """Makes a bucket that JAX_COMPILATION_CACHE_DIR names known; to be called before JAX compiles.

    JAX reads and writes there by itself, process 0 alone writes, and a failure later on is a
    warning: the program is compiled again.

    Raises:
      CompileCacheError: it is another URL, or the bucket cannot be written.
    """
    given = jax.config.jax_compilation_cache_dir
    if not given or "://" not in given or given.startswith("file://"):
        return
    try:
        directory = storage_path(given)
        with contextlib.suppress(FileExistsError):
            create(directory / ".writable", b"")
    except (BigVlpError, OSError) as error:
        raise CompileCacheError(
            f"JAX_COMPILATION_CACHE_DIR={given} cannot be used ({error}). Correct or unset it."
        ) from error
    jax.config.update(_OF_XLA, "")
