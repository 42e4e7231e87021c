"""PyTorch's files: dicts of tensors, read without executing anything in them, and written."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
from etils import epath

from big_vlp.convert.common import ConversionError, State, Tensor
from input_pipeline.files.copies import local_copy


def load(path: Path | epath.Path) -> dict:
    """The dict in a .pt file; tensors stay on disk, unless the file is of a PyTorch before 1.6.

    Raises:
      ConversionError: there is no torch, or the file holds no dict, or other Python objects.
    """
    torch, copy = _torch(f"Reading {path.name}"), local_copy(path)
    try:
        content = torch.load(
            copy, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(copy)
        )
    except pickle.UnpicklingError as error:
        # Its own message advises to execute the file.
        found = re.search(r"(?:GLOBAL|global:?) ([\w.]+)", str(error))
        what = f" ({found.group(1)})" if found else ""
        raise ConversionError(
            f"{path} is no file of weights: it holds other Python objects, or is damaged{what}. "
            "They are never loaded, as loading executes them. Have the weights saved alone, as "
            ".safetensors best."
        ) from error
    except Exception as error:  # of several types
        raise ConversionError(f"{path} is no file of weights: {error}") from error
    return _a_dict(path, content)


def _torch(what: str):
    try:
        import torch
    except ImportError:
        raise ConversionError(
            f"{what} needs torch: pip install 'big_vlp[torch]'; or use a .safetensors file."
        ) from None
    return torch


def _a_dict(path: Path | epath.Path, content) -> dict:
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}, no dict of weights.")
    return content


def tensors(path: Path | epath.Path, state: dict) -> dict[str, Tensor]:
    """Those of a flat dict that `load` gave, or a part of it.

    Raises:
      ConversionError: there are other things in it.
    """
    import torch

    def tensor(value):
        if value.dtype == torch.bfloat16:  # which numpy does not know
            read = lambda: value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # noqa: E731
            return Tensor(tuple(value.shape), np.dtype(ml_dtypes.bfloat16), read)
        array = value.numpy()
        return Tensor(array.shape, array.dtype, lambda: array)

    state = _a_dict(path, state)
    others = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ConversionError(f"{path} is no flat dict of weights; others are {others[:8]}.")
    return {key: tensor(value) for key, value in state.items()}


def save(file: BinaryIO, state: State, **others) -> None:
    """Writes a dict of tensors, or of such dicts, with whole numbers beside it.

    Raises:
      ConversionError: there is no torch.
    """
    torch = _torch("Writing a .pt file")

    def converted(value):
        if isinstance(value, dict):
            return {key: converted(x) for key, x in value.items()}
        # A copy: PyTorch wants memory that can be written to.
        return value if isinstance(value, int) else torch.tensor(np.asarray(value))

    torch.save(converted({**state, **others}), file)
