"""The tensors in a TorchScript archive, in which OpenAI's CLIP is released, without executing it.

Such a .pt is a zip file of a pickle, which describes modules as objects of classes named
__torch__..., of their code, and of one file for each tensor's memory. Only the pickle and these
files are read, and the pickle may name nothing but such classes and what makes a tensor.
"""

import collections
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np

from big_vlp.convert.common import ConversionError, Tensor

_DTYPES = {
    "HalfStorage": np.float16, "FloatStorage": np.float32, "DoubleStorage": np.float64,
    "LongStorage": np.int64, "IntStorage": np.int32, "ByteStorage": np.uint8,
}  # fmt: skip


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: one with code beside its pickle."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read(path: Path) -> dict[str, Tensor]:
    """The state dict of the archive's module: its tensors, by the names of its attributes.

    Raises:
      ConversionError: it holds other things, or is damaged.
    """
    found = {}
    try:
        archive = zipfile.ZipFile(path)
        name = next(x for x in archive.namelist() if x.endswith("/data.pkl"))
        with archive.open(name) as file:
            module = _Unpickler(file, archive, name.removesuffix("data.pkl")).load()
        _collect(module, "", found)
    # An odd pickle makes its reader raise anything.
    except Exception as error:
        what = str(error) or type(error).__name__
        raise ConversionError(f"{path} is no TorchScript archive of weights: {what}") from error
    if not found:
        raise ConversionError(f"{path} holds no weights.")
    return found


class _Module(dict):
    """A module: its attributes by name."""

    def __setstate__(self, state):
        self.update(state)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, archive: zipfile.ZipFile, root: str):
        super().__init__(file, encoding="utf-8")
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str):
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch", "device") or module == "torch.jit._pickle":
            return lambda *args: None
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"it names {module}.{name}, which makes no weights")

    def persistent_load(self, pid):
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"unknown storage {kind}")
        return key, dtype

    def _tensor(self, storage, offset, shape, stride, *_):
        key, dtype = storage
        numbers = (offset, *shape, *stride)
        if any(type(x) is not int or x < 0 for x in numbers) or len(shape) != len(stride):
            raise pickle.UnpicklingError(f"tensor {key} has an impossible shape")
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride))
        count = math.prod(shape)

        def read():
            try:
                with self._archive.open(f"{self._root}data/{key}") as file:
                    flat = np.frombuffer(file.read(), dtype)
            except Exception as error:  # of several types
                raise ConversionError(f"The archive is damaged at tensor {key}: {error}") from error
            # No step leads outside, and nothing is made larger than it is stored.
            if count and (last >= flat.size or count > flat.size):
                raise ConversionError(f"The archive is damaged: tensor {key} is cut off.")
            steps = tuple(step * dtype.itemsize for step in stride)
            start = flat[min(offset, flat.size) :]
            return np.lib.stride_tricks.as_strided(start, shape, steps, writeable=False)

        return Tensor(tuple(shape), dtype, read)


def _collect(module, prefix: str, found: dict) -> None:
    for name, value in module.items() if isinstance(module, dict) else ():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", found)
