"""Source: conversations about images in one JSON, as LLaVA (arXiv 2304.08485) publishes them."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.shared import listed
from input_pipeline.sources.shared.listed import text
from input_pipeline.text.conversations import rounds_of

_FORM = "LLaVA's [{id, image, conversations: [{from: human or gpt, value}]}]"
_ROLES = {"human": "user", "gpt": "assistant"}
_PLACE = re.compile(r"\s*<image>\s*")


class Source(listed.Listed):
    """A record for each entry with an image, in the order of the file, with its `conversation`.

    Read of llava_instruct_150k.json, llava_v1_5_mix665k.json and LLaVAR's files
    and those like them: image, and conversations: from, value. "<image>", which stands where LLaVA
    puts the image, is taken out: one image is always before the text. The id is the entry's, and
    further entries of the same get "#2" and so on, as ids repeat in these files. Entries without an
    image are left out.

    Args:
      annotations: the file.
      images: directory that the images' names start from.
      interleaved: take entries without an image, too, and those whose image is a list of several,
        with "<image>" where each stands (`text.places`); these records have `images`.

    Raises:
      FileNotFoundError: the file or images are missing.
      ValueError: the file is of another form, or speakers do not take turns.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        interleaved: bool = False,
    ):
        path = source_path(annotations)
        left_out: Counter[str] = Counter()
        with listed.understood(path, _FORM):
            entries = _read(annotation_files.read(path), interleaved, left_out)
            super().__init__("instructions", source_path(images), entries)
        self.left_out = dict(left_out)


def _read(
    content: list[dict[str, Any]], interleaved: bool, left_out: Counter[str]
) -> Iterator[tuple[listed.Names, dict[str, Any]]]:
    times: Counter[str] = Counter()
    for number, one in enumerate(content):
        images = one.get("image") or ()
        if not images and not interleaved:
            left_out["conversations without an image"] += 1
            continue
        name = annotation_files.identity(one.get("id", number))
        times[name] += 1
        id_ = name if times[name] == 1 else f"{name}#{times[name]}"
        several = interleaved and not isinstance(images, str)
        if several:
            images = tuple(text(image, f"{id_}: image") for image in images)
        else:
            images = text(images, f"{id_}: image")
        yield images, {"id": id_, "conversation": _turns(id_, one, several)}


def _turns(id_: str, one: dict[str, Any], with_places: bool) -> list[dict[str, str]]:
    turns = []
    for message in one["conversations"]:
        if message["from"] not in _ROLES:
            raise ValueError(f"{id_}: a message is from {message['from']!r}, not human or gpt")
        said = message["value"] if with_places else _PLACE.sub("\n", message["value"])
        said = text(said, f"{id_}: a message")
        turns.append({"role": _ROLES[message["from"]], "content": said})
    try:
        if not rounds_of({"conversation": turns}):
            raise ValueError("there is no message")
    except ValueError as error:
        raise ValueError(f"{id_}: {error}") from None
    return turns
