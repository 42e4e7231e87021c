"""Checks of many files at once."""

import os
from collections.abc import Iterable

_NAMED = 5


def check_images(root: str | os.PathLike, names: Iterable[str]) -> None:
    """Checks that all files are there, listing every folder once instead of asking for each file.

    Args:
      root: directory that `names` start from.
      names: of the files; an absolute one stays as it is.

    Raises:
      FileNotFoundError: says how many are missing, and names the first few.
    """
    folders: dict[str, set[str]] = {}
    missing, count = [], 0
    for name in names:
        count += 1
        folder, file = os.path.split(os.path.join(root, name))
        if folder not in folders:
            folders[folder] = _list(folder)
        if file not in folders[folder]:
            missing.append(os.path.join(folder, file))
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {count:,} images are missing: {', '.join(missing[:_NAMED])}"
            f"{', ...' if len(missing) > _NAMED else ''}. Is {os.fspath(root)!r} the directory "
            "that their names start from?"
        )


def _list(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder or "."))
    except (FileNotFoundError, NotADirectoryError):
        return set()
