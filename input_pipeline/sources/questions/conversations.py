"""Source: a folder of images and a JSON of conversation or captions for each (CogVLM-SFT-311K)."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from input_pipeline.checks import unicode
from input_pipeline.files.listing import check_images
from input_pipeline.sources.shared import base
from input_pipeline.text.conversations import rounds_of


class Source(base.Source):
    """The examples `PATH/LABELS/NAME.json` with `PATH/images/NAME.jpg`, in the order of the names.

    A JSON is `{"conversations": [{"role": "user", "content": ...}, {"role": "assistant", ...},
    ...]}`, which becomes the record's `conversation`, or `{"captions": [{"role": "caption",
    "content": ...}, ...]}`, which become its `captions`; or both. The id is NAME. Files are read
    as records are asked for; preparing the data reads all.

    Args:
      path: the folder of the two folders.
      labels: the folder of the JSON files: "labels", or "labels_en", "labels_zh".
      caption_field: the name under which records hold captions.

    Raises:
      FileNotFoundError: a folder or some images are missing.
      ValueError: there is no JSON.
    """

    def __init__(
        self, path: str | os.PathLike, labels: str = "labels", caption_field: str = "caption"
    ):
        self._path, self._labels, self._field = Path(path), Path(path) / labels, caption_field
        if not self._labels.is_dir():
            raise FileNotFoundError(
                f"Folder {self._labels} does not exist; set labels to the folder of JSON files in "
                f"{self._path}."
            )
        files = (name for name in os.listdir(self._labels) if not name.startswith("."))
        self._names = sorted(name[:-5] for name in files if name.endswith(".json"))
        if not self._names:
            raise ValueError(f"{self._labels} has no .json file.")
        check_images(self._path / "images", (f"{name}.jpg" for name in self._names))

    def __len__(self) -> int:
        return len(self._names)

    def record(self, index: int) -> dict[str, Any]:
        """The record at `index`.

        Raises:
          ValueError: its JSON is of another form.
        """
        name = self._names[index]
        record = {
            "id": unicode.escaped(name),
            "image": (self._path / "images" / f"{name}.jpg").read_bytes(),
            "captions": {},
        }
        file = self._labels / f"{name}.json"
        try:
            label = unicode.parse_json(file.read_bytes())
            if captions := [_content(entry, "caption") for entry in label.get("captions", ())]:
                record["captions"] = {self._field: captions}
            if messages := label.get("conversations", ()):
                record["conversation"] = [
                    {"role": m["role"], "content": _content(m, m["role"])} for m in messages
                ]
                rounds_of(record)
            if not captions and not messages:
                raise ValueError("it has neither")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} should hold {{'captions': [...]}} or {{'conversations': [...]}} with "
                f"messages of role and content: {error}"
            ) from None
        return record

    def identity(self) -> Iterable[str | bytes]:
        """All names, and the sizes of the files."""
        names = "\n".join(["conversations", self._labels.name, self._field, *self._names])
        return names, self.sizes()

    def files(self) -> list[Path]:
        """Images and JSON files."""
        images = [self._path / "images" / f"{name}.jpg" for name in self._names]
        return images + [self._labels / f"{name}.json" for name in self._names]


def _content(message: dict[str, Any], role: str) -> str:
    if message["role"] != role or not isinstance(message["content"], str):
        raise ValueError(f"{message!r} is no text of role {role!r}")
    return message["content"]
