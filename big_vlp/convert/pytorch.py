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
    # Before, a file of weights could have code executed (CVE-2025-32434).
    if tuple(int(x) for x in torch.__version__.split(".")[:2]) < (2, 6):
        raise ConversionError(
            f"{what} needs torch 2.6 or later, which is safe, not {torch.__version__}: pip install "
            "-U torch; or use a .safetensors file."
        )
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

    def tensor(key, value):
        value, bf16 = value.detach(), value.dtype == torch.bfloat16  # which numpy does not know
        try:
            array = value.view(torch.int16).numpy() if bf16 else value.numpy()
        except (RuntimeError, TypeError) as error:  # sparse, quantised, or of another new type
            raise ConversionError(f"{path}: {key} is no ordinary array: {error}.") from error
        array = array.view(ml_dtypes.bfloat16) if bf16 else array
        return Tensor(array.shape, array.dtype, lambda: array)

    state = _a_dict(path, state)
    others = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ConversionError(f"{path} is no flat dict of weights; others are {others[:8]}.")
    return {str(key): tensor(key, value) for key, value in state.items()}


def save(file: BinaryIO, state: State, **others) -> None:
    """Writes a dict of tensors, or of such dicts, with whole numbers beside it.

    Raises:
      ConversionError: there is no torch.
    """
    torch = _torch("Writing a .pt file")

    def converted(value):
        if isinstance(value, dict):
            return {key: converted(x) for key, x in value.items()}
        if isinstance(value, int):
            return value
        array = np.array(value)  # a copy: PyTorch wants memory that can be written to
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    torch.save(converted({**state, **others}), file)
