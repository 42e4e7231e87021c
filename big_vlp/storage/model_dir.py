"""Reads models back: a model directory is what a run, or a converter, leaves.

It holds `checkpoints/STEP` (weights, and as JSON the config and the preprocess record), `frozen`
where a run froze parameters, and `labels.json` where the model has a classifier.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from big_vlp import trees
from big_vlp.methods import make_method
from big_vlp.parallel import meshes, placing
from big_vlp.run import step
from big_vlp.storage import arrays
from big_vlp.storage.checkpoint import CheckpointError, Checkpoints
from big_vlp.storage.frozen import restore_frozen
from input_pipeline.checks import arguments
from input_pipeline.checks.paths import PathError
from input_pipeline.files.buckets import is_in_bucket, make_directory, storage_path
from input_pipeline.files.whole import write_whole
from input_pipeline.preprocess import Preprocess

LABELS_FILE = "labels.json"
WEIGHTS = ("model", "averaged")


@dataclasses.dataclass(frozen=True)
class Labels:
    """The classes of a classifier.

    Attributes:
      names: for people, such as "dog.n.01".
      keys: of WordNet synsets ("n2084071"), or None where classes are no synsets.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...] | None = None

    def save(self, directory: Path) -> None:
        """Others may read at the same time: they find the old file or the new one."""
        make_directory(directory)
        write_whole(directory / LABELS_FILE, json.dumps(dataclasses.asdict(self)).encode())

    @classmethod
    def load(cls, directory: Path) -> "Labels | None":
        """Those of a model directory; None if it has none.

        Raises:
          CheckpointError: the file is damaged.
        """
        path = directory / LABELS_FILE
        try:
            fields = json.loads(path.read_bytes())
            names, keys = fields["names"], fields["keys"]
            if not all(isinstance(x, list) for x in (names, [] if keys is None else keys)):
                raise ValueError("names and keys are no lists")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged ({arrays.reason(error)}): it names the classes of the model. "
                "Bring it back from a copy. In the directory of a run it may be deleted: train "
                "writes it again, of the classes that the config names."
            ) from error
        return cls(tuple(names), keys and tuple(keys))


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """What a model directory says about itself; `load` reads the weights.

    Attributes:
      directory: of the model.
      step: of the checkpoint.
      weights: "model" or "averaged".
      meta: the checkpoint's JSON.
      labels: classes, or None.
    """

    directory: Path
    step: int
    weights: str
    meta: dict
    labels: Labels | None

    @property
    def preprocess(self) -> Preprocess:
        try:
            return Preprocess.from_json(json.dumps(self.meta["preprocess"]))
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.directory}: its preprocess record cannot be read: {error}"
            ) from error

    def make_method(self, *names: str):
        """The method that the weights belong to.

        Args:
          names: which methods the caller can use; none: all.

        Raises:
          CheckpointError: it is another, or cannot be made.
        """
        given: dict[str, Any] = {"preprocess": self.preprocess}
        section = self.meta["config"]["method"]
        if names and section["name"] not in names:
            raise CheckpointError(
                f"{self.directory} is a model of method {section['name']!r}; this needs one of "
                f"{', '.join(names)}."
            )
        if self.labels is not None and "num_classes" not in section:
            given["num_classes"] = len(self.labels.names)
        try:
            return make_method(**section, **given)
        except (arguments.ArgumentError, ValueError) as error:
            raise CheckpointError(
                f"{self.directory}: its method cannot be made: {error}"
            ) from error

    def load(self, mesh=None) -> dict:
        """The weights and what was frozen, as one nested dict of arrays on the mesh.

        Raises:
          CheckpointError: they cannot be read.
        """
        mesh = meshes.make_mesh() if mesh is None else mesh
        checkpoints = Checkpoints(self.directory, read_only=True)
        is_split = mesh.shape["fsdp"] * mesh.shape["tensor"] > 1
        splits = self.make_method().splits if is_split else {}

        def read(shapes, restore):
            shapes = trees.unflatten(
                {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in shapes.items()}
            )
            return restore(step.abstract(shapes, placing.place(shapes, mesh, splits)))

        weights = read(
            checkpoints.shapes(self.step, self.weights),
            lambda shapes: checkpoints.restore(self.step, {self.weights: shapes})[self.weights],
        )
        frozen = self.directory / "frozen"
        if not frozen.exists():
            return weights
        from_frozen = read(
            checkpoints.frozen_shapes(), lambda shapes: restore_frozen(self.directory, shapes)
        )
        return trees.merge(weights, from_frozen)


def open_model(
    directory: str | Path, weights: str | None = None, at_step: int | None = None
) -> StoredModel:
    """Looks at a model directory.

    Args:
      directory: of a run or a converted model.
      weights: "model" or "averaged"; by default the average where there is one.
      at_step: which checkpoint; by default the latest.

    Raises:
      CheckpointError: there is no such model.
    """
    directory = _local(directory)
    if weights not in (None, *WEIGHTS):
        raise CheckpointError(f"weights={weights!r}; choose model or averaged.")
    checkpoints, steps = None, []
    if is_in_bucket(directory) or directory.is_dir():
        checkpoints = Checkpoints(directory, read_only=True)
        steps = checkpoints.all_steps()
    if not steps:
        raise CheckpointError(f"{directory} is no model directory: it has no complete checkpoint.")
    at_step = steps[-1] if at_step is None else at_step
    if at_step not in steps:
        raise CheckpointError(f"{directory} has no checkpoint of step {at_step}; it has {steps}.")
    found = [name for name in reversed(WEIGHTS) if checkpoints.has(at_step, name)]
    if not found:
        raise checkpoints.damaged(at_step, "it was written without weights")
    weights = weights or found[0]
    if weights not in found:
        raise CheckpointError(f"{directory} has no {weights!r} weights; it has {found}.")
    meta = checkpoints.meta(at_step)
    if not {"config", "preprocess"} <= meta.keys():
        raise checkpoints.damaged(at_step, "meta/metadata lacks config or preprocess")
    return StoredModel(directory, at_step, weights, meta, Labels.load(directory))


def save_model(
    directory: str | Path,
    items: dict,
    method: dict,
    preprocess: Preprocess,
    labels: Labels | None,
    source: dict | None = None,
) -> None:
    """Writes a converted model as a model directory of one checkpoint, step 0.

    Args:
      directory: new, or empty.
      items: {"model": tree, "averaged": tree or {}}; leaves are whatever np.asarray reads, and are
        read one at a time. A model may be larger than memory.
      method: the section `method` of a config: name and arguments.
      source: JSON data about where the weights come from; a checkpoint's `meta["source"]`.

    Raises:
      CheckpointError: there is a model already, or it cannot be written.
    """
    directory = _local(directory)
    target = directory / "checkpoints"
    if target.exists():
        raise CheckpointError(f"{directory} holds a model already; give another directory.")
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file; give a directory.")
    record = json.loads(preprocess.to_json())
    meta = {"config": {"method": method, "preprocess": record}, "preprocess": record, "step": 0}
    meta |= {} if source is None else {"source": source}
    args = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items() if tree}
    # Compressing would hold each parameter once more, for a quarter of the disk space.
    handler = ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (object, _OneAtATime())
        ),
        use_compression=False,
    )
    try:
        make_directory(directory)
        with ocp.CheckpointManager(
            arrays.orbax_path(directory) / "checkpoints",
            options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
            item_handlers={"meta": ocp.JsonCheckpointHandler()} | dict.fromkeys(args, handler),
        ) as manager:
            manager.save(0, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)))
        if labels is not None:
            labels.save(directory)
    except BaseException as error:
        if not is_in_bucket(target):
            shutil.rmtree(target, ignore_errors=True)
        elif target.exists():
            target.rmtree()
        if not isinstance(error, Exception):
            raise
        raise CheckpointError(f"Writing {directory} failed: {arrays.reason(error)}.") from error


def _local(directory: str | Path) -> Path:
    try:
        return storage_path(directory)
    except PathError as error:
        raise CheckpointError(str(error)) from error


class _OneAtATime(ocp.type_handlers.NumpyHandler):
    """Writes leaves as the numpy arrays they are or give, each before the next is made."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(self, values, infos, args=None):
        for value, info, arg in zip(values, infos, args):
            for written in await super().serialize([np.asarray(value)], [info], [arg]):
                written.result()
        return []
