"""Files of large models, read and written a tensor at a time.

A state is a flat dict of `Tensor`s or arrays; np.asarray reads one.
"""

import functools
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import safetensors

from big_vlp import trees
from big_vlp.convert.common import ConversionError, Tensor
from big_vlp.storage import arrays
from big_vlp.storage.checkpoint import Checkpoints
from big_vlp.storage.model_dir import StoredModel

INDEX = "model.safetensors.index.json"
# What a directory may hold, the best first.
_FILES = (INDEX, "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


State = Mapping[str, Tensor | np.ndarray]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a model in safetensors files, or in .bin files where torch is installed.

    Args:
      path: a directory with an index and its shards, or with one file; or either itself.

    Raises:
      ConversionError: there is no such file; shards or tensors that the index names are missing,
        each is named; a file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).exists()]
        if not found:
            raise ConversionError(f"{path} has none of {_FILES}.")
        path = found[0]
    if path.suffix != ".json":
        return _open(path)
    try:
        index = json.loads(path.read_text())["weight_map"]
    except (OSError, ValueError, KeyError) as error:
        raise ConversionError(f"{path} is no index of shards: {error!r}.") from error
    names = sorted(set(index.values()))
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        raise ConversionError(
            f"{path} names {len(names)} files, of which these are missing: {missing}."
        )
    shards = {name: _open(path.parent / name) for name in names}
    problems = [f"missing in {name}: {k}" for k, name in index.items() if k not in shards[name]]
    problems += [
        f"in {name} but not in the index: {key}"
        for name, shard in shards.items()
        for key in shard
        if index.get(key) != name
    ]
    if problems:
        raise ConversionError(f"{path} and its files differ:\n  " + "\n  ".join(problems))
    return {key: shards[name][key] for key, name in index.items()}


def _open(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return read_torch(path, None)
    try:
        file = safetensors.safe_open(path, "np")
    except (OSError, safetensors.SafetensorError) as error:
        raise ConversionError(
            f"{path} is no safetensors file, or a damaged one: {error}."
        ) from error

    def tensor(key):
        part = file.get_slice(key)
        name = part.get_dtype()
        if name not in DTYPES:
            raise ConversionError(f"{path}: {key} has the type {name}; known are {list(DTYPES)}.")
        return Tensor(tuple(part.get_shape()), DTYPES[name], lambda: file.get_tensor(key))

    return {key: tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)


def read_torch(path: str | Path, part: str | None = "module") -> dict[str, Tensor]:
    """The tensors of a .pt file, which stays on disk; nothing stored in it is executed.

    Args:
      part: which entry holds the weights; "module" in checkpoints of SwissArmyTransformer. None:
        the file itself is the flat dict.

    Raises:
      ConversionError: torch is not installed, or the file is not such a one.
    """
    try:
        import torch
    except ImportError:
        raise ConversionError(
            "Reading .pt files needs torch: pip install 'big_vlp[torch]'."
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of several types
        raise ConversionError(f"{path} is no file of weights: {error}") from error
    if not isinstance(state, dict):
        raise ConversionError(f"{path} holds a {type(state).__name__}, no dict of weights.")
    if part is not None:
        if part not in state:
            raise ConversionError(f"{path} has no {part!r}; found {list(state)[:8]}.")
        state = state[part]
    others = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ConversionError(f"{path} is no flat dict of weights; others are {others[:8]}.")

    def tensor(value):
        if value.dtype == torch.bfloat16:  # which numpy does not know
            read = lambda: value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # noqa: E731
            return Tensor(tuple(value.shape), DTYPES["BF16"], read)
        array = value.numpy()
        return Tensor(array.shape, array.dtype, lambda: array)

    return {key: tensor(value) for key, value in state.items()}


def read_model(stored: StoredModel) -> dict:
    """The weights of a model directory and what was frozen, as a nested dict of `Tensor`s."""
    directory, checkpoints = stored.directory, Checkpoints(stored.directory, read_only=True)
    shapes = checkpoints.shapes(stored.step, stored.weights)
    path = arrays.orbax_path(directory)
    model = _read_item(path / "checkpoints" / str(stored.step) / stored.weights, shapes)
    if not (directory / "frozen").exists():
        return model
    return trees.merge(model, _read_item(path / "frozen", checkpoints.frozen_shapes()))


def _read_item(item: Path, shapes: Mapping) -> dict:
    def read(path):
        tree, to = trees.unflatten({path: 0}), ocp.RestoreArgs(restore_type=np.ndarray)
        args = ocp.args.PyTreeRestore(
            tree, restore_args=jax.tree.map(lambda _: to, tree), partial_restore=True
        )
        with arrays.reading(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return trees.flatten(checkpointer.restore(item, args=args))[path]

    return trees.unflatten(
        {
            path: Tensor(tuple(x.shape), np.dtype(x.dtype), functools.partial(read, path))
            for path, x in shapes.items()
        }
    )


def write_state(directory: str | Path, state: State, shard_bytes: int = 5 * 10**9) -> None:
    """Writes a state in the sharded form that Hugging Face's libraries read.

    Args:
      directory: new, or without such files.
      shard_bytes: size of a shard at most, unless a single tensor is larger.

    Raises:
      ConversionError: there is a model already, or a tensor's type is unknown.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    present = sorted(p.name for p in directory.glob("model*.safetensors*"))
    if present:
        raise ConversionError(f"{directory} has {present[:3]} already; give another directory.")
    sizes = {key: math.prod(v.shape) * np.dtype(v.dtype).itemsize for key, v in state.items()}
    unknown = [f"{k} {v.dtype}" for k, v in state.items() if np.dtype(v.dtype) not in _NAMES]
    if unknown:
        raise ConversionError(f"Cannot write these types: {unknown}; known are {list(DTYPES)}.")
    shards, filled = [[]], 0
    for key, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    index = {}
    for number, keys in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(directory / name, {key: state[key] for key in keys})
        index |= dict.fromkeys(keys, name)
    # The index comes last: with it, all files are complete.
    content = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
    (directory / INDEX).write_text(json.dumps(content, indent=1))


def _write(path: Path, state: State) -> None:
    """One safetensors file: the header's length, the header as JSON, then the arrays' bytes."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key, value in state.items():
        start, dtype = end, np.dtype(value.dtype)
        end += math.prod(value.shape) * dtype.itemsize
        header[key] = {
            "dtype": _NAMES[dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in state.values():
            file.write(np.ascontiguousarray(value).view(np.uint8).data)
