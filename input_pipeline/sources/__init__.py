"""Data sources: random-access collections of records, chosen by module name.

A record is a dict with `id` (str), `image` (encoded bytes), `captions` (dict of field -> list of
str) and, where the data has them, boxes, masks, labels and questions. A source is picklable,
cheap to construct, and opens its files lazily, because every loader worker gets a copy.
"""

import importlib
import importlib.util
import pkgutil


def make_source(name: str, **kwargs):
    """Builds `input_pipeline.sources.<name>.Source(**kwargs)`.

    Raises:
      ValueError: no such source.
      TypeError: the source does not take one of the arguments.
    """
    if importlib.util.find_spec(f"{__name__}.{name}") is None:
        known = sorted(m.name for m in pkgutil.iter_modules(__path__))
        raise ValueError(f"Unknown data source {name!r}; choose one of {known}.")
    module = importlib.import_module(f"{__name__}.{name}")
    return module.Source(**kwargs)
