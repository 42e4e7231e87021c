"""Numbers of compiled programs, kept in the user's cache for the next search."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import logging

import big_vlp
from big_vlp import trees
from big_vlp.compiling.setup import Setup
from big_vlp.run.compile_cache import users_cache
from input_pipeline.files.whole import write_json

_COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# What a search chooses, or what is part of no program.
_FREE = ("remat", "accumulate_steps", "unroll")
_SECTIONS = ("preprocess", "views", "optim", "mesh", "deterministic", "xla_flags")


class Kept:
    """JSON values by name, in a file that is written with each.

    Args:
      path: None keeps them for this process.
    """

    def __init__(self, path: Path | None):
        self._path, self._values = path, {}
        if path is not None and path.exists():
            self._values = json.loads(path.read_text())

    @classmethod
    def of(cls, setup: Setup) -> "Kept":
        """Of the same model, devices, compilers and code."""
        try:
            return cls(users_cache("searched") / f"{_identity(setup)}.json")
        except (OSError, RuntimeError) as error:
            logging.warning("What is compiled in this search is not kept (%s).", error)
            return cls(None)

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of that name, made where there is none."""
        if name not in self._values:
            self._values[name] = make()
            if self._path is not None:
                write_json(self._path, self._values)
        return self._values[name]


def _identity(setup: Setup) -> str:
    config = setup.experiment.as_json()
    method = {key: value for key, value in config["method"].items() if key not in _FREE}
    state = {path: f"{x.dtype}{x.shape}" for path, x in trees.flatten(setup.state).items()}
    told = [
        *(method, *(config[name] for name in _SECTIONS), state, dict(setup.mesh.shape)),
        *(setup.device_kind, setup.memory),
        *(_version(name) for name in _COMPILERS),
        *(os.environ.get(name) for name in _FLAGS),
    ]
    files = sorted(Path(big_vlp.__file__).parent.rglob("*.py"))
    files.append(Path(inspect.getfile(type(setup.method))))  # which may be a user's
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
