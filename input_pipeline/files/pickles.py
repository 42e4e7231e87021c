"""Pickles that are read as plain data: nothing that is stored in one is executed."""

import io
import pickle
from typing import Any


def load(data: bytes) -> Any:
    """What a pickle of numbers, strings and containers of them holds; of Python 2 as well, whose
    strings are read as UTF-8.

    Raises:
      ValueError: it needs a class or a function, or is damaged.
    """
    try:
        return _Plain(io.BytesIO(data), encoding="utf-8").load()
    except Exception as error:  # A damaged pickle raises almost anything.
        raise ValueError(f"this pickle cannot be read as plain data ({error}).") from None


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to something outside")
