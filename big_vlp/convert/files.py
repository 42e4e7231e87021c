"""Files of weights, read and written a tensor at a time.

A state is a flat dict of `Tensor`s or arrays; np.asarray reads one.
"""

import contextlib
import functools
import json
import math
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from etils import epath

from big_vlp import trees
from big_vlp.convert import pytorch, torchscript
from big_vlp.convert.common import ConversionError, State, Tensor
from big_vlp.storage import arrays
from big_vlp.storage.checkpoint import Checkpoints
from big_vlp.storage.model_dir import StoredModel
from input_pipeline.files.buckets import is_in_bucket, make_directory, storage_path
from input_pipeline.files.copies import local_copy
from input_pipeline.files.whole import (
    in_directory,
    place,
    scratch,
    temporary_name,
    write_whole,
)

INDEX = "model.safetensors.index.json"
# What a directory may hold, the best first.
_FILES = (
    INDEX,
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
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
# Entries of a whole training run's file, the best first: the average is what gets published.
_IN_A_CHECKPOINT = ("ema_state_dict", "model_state_dict", "state_dict")
# What a damaged .npz file makes its readers raise; encrypted ones a RuntimeError.
_NPZ_ERRORS = (
    OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


def read_state(path: str | Path | epath.Path) -> dict[str, Tensor]:
    """The tensors of a model, from .safetensors or .npz files, or from PyTorch's, of which a
    TorchScript archive needs no torch.

    Nothing stored in a file is executed. Of a file of a whole training run, the average is read.
    What lies in a bucket is copied to this machine first.

    Args:
      path: a file of weights, an index of several, or a directory with one of these.

    Raises:
      ConversionError: there is no such file; shards or tensors that the index names are missing,
        each is named; a file is damaged, or holds other things.
      PathError: it is a URL that cannot be read.
      OSError: the bucket does not give it, or this machine has no room for it.
    """
    path = storage_path(path)
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).exists()]
        if not found:
            raise ConversionError(f"{path} has none of {_FILES}.")
        path = found[0]
    return _read_shards(path) if path.suffix == ".json" else _read_file(path)


def read_of_run(path: str | Path | epath.Path) -> tuple[dict[str, Tensor], list[str]]:
    """As `read_state`, and a line, if any, about what a training run's file holds besides."""
    state, rest = read_state(path), []
    if isinstance(state, _OfRun):
        rest = [f"{', '.join(state.rest)} beside {state.entry}"] if state.rest else []
    return state, rest


class _OfRun(dict):
    """A state that is one entry of a training run's file, which has the `rest`."""

    def __init__(self, state: dict, entry: str, rest: list[str]):
        super().__init__(state)
        self.entry, self.rest = entry, rest


def read_parts(path: str | Path | epath.Path, *names: str) -> dict[str, dict[str, Tensor]]:
    """Several states of one file: {name: state}.

    Args:
      names: entries of a .pt file, or what is before the first dot of the keys of a .safetensors or
        .npz file.

    Raises:
      ConversionError: as of `read_state`, or the file lacks a part.
      PathError, OSError: as of `read_state`.
    """
    path, parts = storage_path(path), {}
    is_flat = path.suffix in (".safetensors", ".npz")
    if is_flat:
        for key, value in _read_file(path).items():
            name, _, key = key.partition(".")
            parts.setdefault(name, {})[key] = value
    else:
        parts = pytorch.load(path)
    missing = [repr(name) for name in names if name not in parts]
    if missing:
        raise ConversionError(f"{path} has no {', '.join(missing)}; found {list(parts)[:8]}.")
    if is_flat:
        return {name: parts[name] for name in names}
    return {name: pytorch.tensors(path, parts[name]) for name in names}


def _read_shards(path: Path | epath.Path) -> dict[str, Tensor]:
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
    shards = {name: _read_file(path.parent / name) for name in names}
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


def _read_file(path: Path | epath.Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    copy = local_copy(path)
    if torchscript.is_archive(copy):
        return torchscript.read(copy)
    content = pytorch.load(path)
    if {"student", "teacher"} <= content.keys():
        raise ConversionError(
            f"{path} holds a student and a teacher: import it as cosmos, which has both."
        )
    entry = next((name for name in _IN_A_CHECKPOINT if content.get(name) is not None), None)
    if entry is None:
        return pytorch.tensors(path, content)
    rest = sorted(str(key) for key in content if key != entry)
    return _OfRun(pytorch.tensors(path, content[entry]), entry, rest)


def _read_safetensors(path: Path | epath.Path) -> dict[str, Tensor]:
    copy = local_copy(path)
    try:
        file = safetensors.safe_open(copy, "np")
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


def _read_npz(path: Path | epath.Path) -> dict[str, Tensor]:
    copy = local_copy(path)
    try:
        archive = zipfile.ZipFile(copy)
        headers = {name: _npy_header(archive, name) for name in archive.namelist()}
    except _NPZ_ERRORS as error:
        raise ConversionError(f"{path} is no .npz file, or a damaged one: {error}.") from error

    def tensor(name):
        shape, stored = headers[name]
        # NumPy does not know bf16, and stores two bytes.
        dtype = DTYPES["BF16"] if stored == np.dtype("V2") else stored
        if dtype not in _NAMES:
            raise ConversionError(f"{path}: {name} is of type {stored}; known are {list(DTYPES)}.")

        def read():
            try:
                with archive.open(name) as file:
                    return np.lib.format.read_array(file, allow_pickle=False).view(dtype)
            except _NPZ_ERRORS as error:
                raise ConversionError(f"{path} is damaged at {name}: {error}.") from error

        return Tensor(shape, dtype, read)

    return {name.removesuffix(".npy"): tensor(name) for name in headers}


def _npy_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array in an .npz file."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(file)
        else:
            header = np.lib.format.read_array_header_2_0(file)
    return header[0], header[2]


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


def write_state(
    directory: str | Path | epath.Path, state: State, shard_bytes: int = 5 * 10**9
) -> None:
    """Writes a state in the sharded form that Hugging Face's libraries read.

    Args:
      directory: new, or without such files.
      shard_bytes: size of a shard at most, unless a single tensor is larger.

    Raises:
      ConversionError: there is a model already, or a tensor's type is unknown.
    """
    directory = storage_path(directory)
    make_directory(directory)
    names = [path.name for path in in_directory(directory)]
    present = [name for name in names if re.fullmatch(r"model.*\.safetensors.*", name)]
    if present:
        raise ConversionError(f"{directory} has {present[:3]} already; give another directory.")
    _check_types(state)
    sizes = {key: math.prod(v.shape) * np.dtype(v.dtype).itemsize for key, v in state.items()}
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
        write_file(directory / name, {key: state[key] for key in keys})
        index |= dict.fromkeys(keys, name)
    # The index comes last: with it, all files are complete.
    content = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
    write_whole(directory / INDEX, json.dumps(content, indent=1).encode())


def write_file(path: Path | epath.Path, state: State) -> None:
    """Writes a state in one file, which is there as a whole or not at all: .safetensors, .npz, or
    .pt where torch is installed.

    Raises:
      ConversionError: it is called otherwise, a tensor's type is unknown, or there is no torch.
    """
    writers = {".safetensors": _write_safetensors, ".npz": _write_npz, ".pt": pytorch.save}
    if path.suffix not in writers:
        raise ConversionError(f"{path}: give a file named *{', *'.join(writers)}.")
    _check_types(state)
    _write(path, lambda file: writers[path.suffix](file, state))


def write_parts(path: Path | epath.Path, parts: Mapping[str, State]) -> None:
    """Writes several states in one file, as `read_parts` reads them: of a .pt file entries beside
    an "epoch", elsewhere the name and a dot in front of every key.

    Raises:
      ConversionError: as of `write_file`.
    """
    flat = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    if path.suffix != ".pt":
        write_file(path, flat)
        return
    _check_types(flat)
    _write(path, lambda file: pytorch.save(file, parts, epoch=0))


def _write(path: Path | epath.Path, write: Callable[[BinaryIO], None]) -> None:
    with scratch(path.parent) as folder:
        temporary = folder / temporary_name(path.name)
        try:
            with temporary.open("wb") as file:
                write(file)
            place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _write_npz(file: BinaryIO, state: State) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for key, value in state.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(value, order="C"), allow_pickle=False)


def _write_safetensors(file: BinaryIO, state: State) -> None:
    # The header's length, the header as JSON, then the arrays' bytes.
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
    file.write(struct.pack("<Q", len(text)) + text)
    for value in state.values():
        file.write(np.ascontiguousarray(value).view(np.uint8).data)


def _check_types(state: State) -> None:
    unknown = [f"{k} {v.dtype}" for k, v in state.items() if np.dtype(v.dtype) not in _NAMES]
    if unknown:
        raise ConversionError(f"Cannot write these types: {unknown}; known are {list(DTYPES)}.")


@contextlib.contextmanager
def appearing(target: Path | epath.Path) -> Iterator[Path | epath.Path]:
    """Gives the directory to write into: one beside the target, which it becomes when all is there;
    in a bucket itself, as there is no model before its last file."""
    if is_in_bucket(target):
        try:
            yield target
        except BaseException:
            with contextlib.suppress(OSError):
                target.rmtree()
            raise
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as directory:
        path = Path(directory) / target.name
        path.mkdir()
        yield path
        path.rename(target)
