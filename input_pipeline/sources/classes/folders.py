"""Source: a folder per class (ImageNet, Places365)."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from input_pipeline.checks import unicode
from input_pipeline.files.listing import IMAGE_EXTENSIONS
from input_pipeline.files.ranges import disk_path
from input_pipeline.sources.shared import base

_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


class Source(base.Source):
    """The images `PATH/CLASS/*`, class by class; both in the order of their names.

    A record's `label` is the number of its class among the sorted folders, its id the path below
    PATH. Files that are no images by their ending (see `listing.IMAGE_EXTENSIONS`), hidden files
    and folders, and files beside the class folders are passed over. Where names are no UTF-8, ids
    and class names have escapes.

    Attributes:
      class_names: the folders' names, or what `names` calls them.

    Args:
      path: the folder of the class folders.
      names: text file with a line "FOLDER NAME" for each class folder, as ImageNet's
        LOC_synset_mapping.txt; a tab, or else the first space, divides the two. Further lines are
        passed over.

    Raises:
      FileNotFoundError: `path` is no folder, or there is no file `names`.
      ValueError: there is no class, a class has no image, or `names` lacks one.
    """

    def __init__(self, path: str | os.PathLike, names: str | os.PathLike | None = None):
        self._path = disk_path(path, "folders of classes are read")
        if not self._path.is_dir():
            raise FileNotFoundError(f"Folder {self._path} does not exist.")
        folders = sorted(e.name for e in _visible(self._path) if e.is_dir())
        if not folders:
            raise ValueError(f"{self._path} has no folders; it should hold one for each class.")
        self._files: list[str] = []
        self._labels: list[int] = []
        for label, folder in enumerate(folders):
            files = sorted(
                entry.name
                for entry in _visible(self._path / folder)
                if entry.name.lower().endswith(_SUFFIXES)
            )
            if not files:
                raise ValueError(
                    f"Class folder {self._path / folder} has no image. Is {str(self._path)!r} the "
                    "folder of the class folders, or one above it?"
                )
            self._files += [f"{folder}/{file}" for file in files]
            self._labels += [label] * len(files)
        written = list(map(unicode.escaped, folders))
        self.class_names = written if names is None else _read_names(Path(names), written)

    def __len__(self) -> int:
        return len(self._files)

    def record(self, index: int) -> dict[str, Any]:
        return {
            "id": unicode.escaped(self._files[index]),
            "image": (self._path / self._files[index]).read_bytes(),
            "captions": {},
            "label": self._labels[index],
        }

    def identity(self) -> Iterable[str | bytes]:
        """All names, and the images' sizes."""
        return "\n".join(["folders", *self.class_names, *self._files]), self.sizes()

    def files(self) -> list[str]:
        """The images."""
        return [os.path.join(self._path, name) for name in self._files]


def _visible(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _read_names(path: Path, folders: list[str]) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"File of class names {path} does not exist.")
    known = {}
    for line in unicode.read_lines(path):
        folder, _, name = line.partition("\t" if "\t" in line else " ")
        known[folder.strip()] = name.strip()
    missing = [folder for folder in folders if not known.get(folder)]
    if missing:
        raise ValueError(
            f"{path} has no name for {len(missing)} of {len(folders)} class folders: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Its lines should be "
            "FOLDER NAME."
        )
    return [known[folder] for folder in folders]
