"""Parts that a config chooses by name: ours by the name of their module, others by a dotted one.

In a package of parts every module is a part, in whichever subfolder, and holds it under one name
(such as `Method`); what parts share lies in a folder `shared`, and in the packages themselves, and
what evaluators are run on in `datasets`.
"""

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import Any

from input_pipeline.checks.arguments import unknown

NO_PARTS = ("shared", "datasets")


def known(package: str) -> dict[str, str]:
    """{name: module} of the parts in a package; none of them is imported."""
    found: dict[str, str] = {}
    _walk(package, importlib.import_module(package).__path__, found)
    return dict(sorted(found.items()))


def _walk(package: str, path, found: dict[str, str]) -> None:
    for module in pkgutil.iter_modules(path):
        name = f"{package}.{module.name}"
        if module.name == "__main__":
            continue
        if not module.ispkg:
            found[module.name] = name
        elif module.name not in NO_PARTS:
            _walk(name, [str(Path(folder) / module.name) for folder in path], found)


def find(kind: str, package: str, name: str, attribute: str) -> Any:
    """The part of that name: a class or a function.

    Args:
      kind: what it is called in messages, such as "method".
      package: of ours.
      name: of a module in `package`, or of any other that Python finds ("my_lab.my_method").
      attribute: what the module calls the part, such as "Method".

    Raises:
      ValueError: there is no such module, or it holds no such part. What a module raises while it
        is imported is left as it is.
    """
    ours = known(package)
    if not isinstance(name, str):
        raise ValueError(unknown(kind, name, ours))
    module = ours.get(name, name)
    if name not in ours and not _can_be_imported(name):
        message = unknown(kind, name, ours)
        if "." in name:
            message += f" A module {name!r} cannot be imported from here, either; see PYTHONPATH."
        raise ValueError(message)
    part = getattr(importlib.import_module(module), attribute, None)
    if part is None:
        message = f"Module {module} has no {attribute}, which a {kind} must have."
        raise ValueError(message if name in ours else f"{message} {unknown(kind, name, ours)}")
    return part


def _can_be_imported(name: str) -> bool:
    if not all(map(str.isidentifier, name.split("."))):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:  # of a package above it
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            return False
        raise
    except ValueError:  # such as __main__
        return False
