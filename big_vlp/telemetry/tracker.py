"""The numbers of a run on Weights & Biases."""

import importlib
import importlib.util
import os
import uuid
from collections.abc import Mapping

from input_pipeline.files.whole import write_whole

FILE = "wandb_id"
_LOGIN_SECONDS = 30  # at a terminal wandb asks for a key


class Tracker:
    """Sends what the log gets. All starts of a run are one run there, of the id in `wandb_id`.

    Args:
      project, entity, name: see `wandb.init`; by default the name is the workdir's.

    Raises:
      ValueError: the package is not installed.
    """

    def __init__(self, project: str, entity: str | None = None, name: str | None = None):
        self._given = {"project": project, "entity": entity, "name": name}
        self._workdir = self._config = self._run = None
        found = importlib.util.find_spec("wandb")
        if found is None or found.origin is None:  # such is the folder that a run of its leaves
            raise ValueError(
                "wandb is not installed: pip install wandb, or leave this section out."
            )

    def of(self, workdir, config: Mapping) -> "Tracker":
        """This one, for a run and its config as JSON data."""
        self._workdir, self._config = workdir, config
        return self

    def write(self, step: int, split: str, values: Mapping[str, float], now: float) -> None:
        """Adds numbers at a step; does nothing after it could not begin.

        Raises:
          Exception: whatever wandb raises.
        """
        del now
        if self._workdir is not None:
            self._begin()
        if self._run is not None:
            self._run.log({"step": step, **{f"{split}/{name}": v for name, v in values.items()}})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _begin(self) -> None:
        workdir, self._workdir = self._workdir, None
        path = workdir / FILE
        if not path.exists():
            write_whole(path, uuid.uuid4().hex.encode())
        given = {**self._given, "name": self._given["name"] or os.path.basename(workdir)}
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            **given,
            id=path.read_text(),
            resume="allow",
            config=dict(self._config),
            settings={"login_timeout": _LOGIN_SECONDS},  # other hosts wait meanwhile
        )
        # Its own count of steps does not go back, as a run does that goes on from a checkpoint.
        self._run.define_metric("*", step_metric="step")
