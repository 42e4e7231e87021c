"""Sections of a config as the arguments of a function: what does not fit is told in one line."""

import dataclasses
import difflib
import inspect
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class ArgumentError(TypeError):
    """A section does not fit what it describes; the message names the key."""


def call(where: str, fn, section: Mapping[str, Any], /, *args, **given):
    """`fn(*args, **given, **section)`, after a look at the keys and at the types of their values.

    Args:
      where: what the section is called, put before messages; "" for nothing.
      section: arguments that a user chose.
      args, given: arguments that are decided elsewhere, which the section must not name.

    Raises:
      ArgumentError: a key is unknown, missing or decided elsewhere, or its value is of the wrong
        type. What `fn` raises is left as it is.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(section, Mapping):
        raise ArgumentError(f"{prefix}give a section of keys, not {section!r}.")
    repeated = sorted(given.keys() & section.keys())
    if repeated:
        raise ArgumentError(f"{prefix}{repeated} cannot be set here, other parts decide it.")
    parameters = list(inspect.signature(fn).parameters.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    free = {p.name: p for p in parameters[len(args) :] if p.kind in named and p.name not in given}
    if {"name", "parent"} <= free.keys():  # Flax's own, of a module
        del free["name"], free["parent"]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    for key, value in section.items():
        if key not in free:
            if not takes_any:
                message = f"got an unexpected keyword argument {key!r}{nearest(key, free)}"
                raise ArgumentError(f"{prefix}{message}")
        elif expected := _mismatch(value, free[key].annotation):
            raise ArgumentError(f"{prefix}{key}={value!r}; give {expected}.")
    for key, parameter in free.items():
        if parameter.default is inspect.Parameter.empty and key not in section:
            raise ArgumentError(f"{prefix}the key {key!r} is missing.")
    return fn(*args, **given, **section)


def require_fields(cls: type, base: type) -> None:
    """For `__init_subclass__` of a base of dataclasses: a field that a subclass names without a
    default must be given, also where it has the name of one of the base's attributes, which
    dataclasses would take for its default."""
    for name in inspect.get_annotations(cls):
        if hasattr(base, name) and name not in vars(cls):
            setattr(cls, name, dataclasses.field())


def unknown(what: str, name: Any, choices: Iterable[str]) -> str:
    """The message for a name that is none of the choices, with the nearest of them."""
    return f"Unknown {what} {name!r}{nearest(name, choices)}"


def nearest(name: Any, choices: Iterable[str]) -> str:
    """The end of a message about a name that is none of the choices."""
    choices = list(choices)
    found = difflib.get_close_matches(str(name), [str(choice) for choice in choices], 1)
    if found:
        return f"; did you mean {found[0]!r}? Choose one of {choices}."
    return f"; choose one of {choices}." if choices else "; there is none."


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    type(None): "None",
    tuple: "a list",
    list: "a list",
    Sequence: "a list",
    dict: "a section of keys",
    Mapping: "a section of keys",
}
# Whole numbers are numbers, paths stand for strings, and JSON has no tuples.
_ACCEPTED = {
    int: numbers.Integral,
    float: numbers.Real,
    str: (str, os.PathLike),
    tuple: (list, tuple),
    list: (list, tuple),
    dict: Mapping,
}


def _mismatch(value, annotation) -> str | None:
    """What an annotated parameter takes, in words, if the value is not of it.

    Annotations of other types than those of configs accept anything.
    """
    union = isinstance(annotation, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    kinds = [typing.get_origin(kind) or kind for kind in kinds]
    if any(kind not in _NAMES for kind in kinds) or any(_is(value, kind) for kind in kinds):
        return None
    return " or ".join(dict.fromkeys(_NAMES[kind] for kind in kinds))


def _is(value, kind) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, _ACCEPTED.get(kind, kind))
