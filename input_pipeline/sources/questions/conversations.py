"""Source: a folder of images and a JSON of conversation or captions for each (CogVLM-SFT-311K)."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from input_pipeline.checks import unicode
from input_pipeline.files.listing import check_images, names_in
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.shared import base
from input_pipeline.text.conversations import rounds_of


class Source(base.OfFiles):
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
        root, self._field = source_path(path), caption_field
        self._images, self._labels = root / "images", root / labels
        if not self._labels.is_dir():
            raise FileNotFoundError(
                f"Folder {self._labels} does not exist; set labels to the folder of JSON files in "
                f"{root}."
            )
        files = (name for name in names_in(self._labels) if not name.startswith("."))
        self._names = sorted(name[:-5] for name in files if name.endswith(".json"))
        if not self._names:
            raise ValueError(f"{self._labels} has no .json file.")
        check_images(self._images, (f"{name}.jpg" for name in self._names))

    def __len__(self) -> int:
        return len(self._names)

    def paths(self, index: int) -> Sequence[str]:
        """Image and JSON."""
        name = self._names[index]
        image, label = (self._images, f"{name}.jpg"), (self._labels, f"{name}.json")
        return os.path.join(*image), os.path.join(*label)

    def record_of(self, index: int, *contents: bytes) -> dict[str, Any]:
        """The record of image and JSON.

        Raises:
          ValueError: its JSON is of another form.
        """
        image, text = contents
        record = {"id": unicode.escaped(self._names[index]), "image": image, "captions": {}}
        file = self.paths(index)[1]
        try:
            label = unicode.parse_json(text)
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


def _content(message: dict[str, Any], role: str) -> str:
    if message["role"] != role or not isinstance(message["content"], str):
        raise ValueError(f"{message!r} is no text of role {role!r}")
    return message["content"]
