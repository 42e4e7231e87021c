"""Source: conversations about images in one JSON: LLaVA's, LRV-Instruction's, MiniGPT-4's."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from input_pipeline.files import annotations as annotation_files
from input_pipeline.files.ranges import source_path
from input_pipeline.sources.shared import listed
from input_pipeline.sources.shared.listed import Kind, only, text
from input_pipeline.text.conversations import rounds_of

_ROLES = {"human": "user", "gpt": "assistant"}
_PLACE = re.compile(r"\s*<image>\s*")
# MiniGPT-4 asks for a description in several ways and stores none of them.
_DESCRIBE = "Describe this image in detail."

Entry = tuple[listed.Names, dict[str, Any]]


class Source(listed.Listed):
    """A record for each entry with an image, in the order of the file, with its `conversation`.

    The id is the entry's, and further entries of the same get "#2" and so on, as ids repeat in
    these files. Entries without an image are left out.

    kind, and what is read of its file:
      llava (arXiv 2304.08485): llava_instruct_150k.json, llava_v1_5_mix665k.json, LLaVAR's files
        and those like them: image, and conversations: from, value. "<image>", which stands where
        LLaVA puts the image, is taken out: one image is always before the text.
      lrv (LRV-Instruction, arXiv 2306.14565): filter_cap.json and those like it, a list, or one
        under annotations: image_id, question, answer, task, the category; IMAGE_ID.jpg, in one
        folder or in Visual Genome's two.
      minigpt4 (arXiv 2304.10592): filter_cap.json of cc_sbu_align, annotations: image_id, caption,
        which answers "Describe this image in detail."; IMAGE_ID.jpg.

    Args:
      annotations: the file.
      images: directory that the images' names start from.
      kind: one of these.
      interleaved: of "llava": take entries without an image, too, and those whose image is a list
        of several, with "<image>" where each stands (`text.places`); these records have `images`.

    Raises:
      FileNotFoundError: the file or images are missing.
      ValueError: the file is of another form, or speakers do not take turns.
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        kind: str = "llava",
        interleaved: bool = False,
    ):
        chosen, path, folder = (
            listed.choose(KINDS, kind, {"interleaved": interleaved or None}),
            source_path(annotations),
            source_path(images),
        )
        left_out: Counter[str] = Counter()
        with listed.understood(path, chosen.form):
            more = {"interleaved": True} if interleaved else {}
            entries = chosen.read(annotation_files.read(path), folder, left_out, **more)
            super().__init__("instructions", folder, _numbered(entries))
        self.left_out = dict(left_out)


def _numbered(entries: Iterator[Entry]) -> Iterator[Entry]:
    times: Counter[str] = Counter()
    for image, fields in entries:
        name = fields["id"]
        times[name] += 1
        yield image, fields | {"id": name if times[name] == 1 else f"{name}#{times[name]}"}


def _llava(
    content: list[dict[str, Any]], folder, left_out: Counter[str], interleaved: bool = False
) -> Iterator[Entry]:
    for number, one in enumerate(content):
        images = one.get("image") or ()
        if not images and not interleaved:
            left_out["conversations without an image"] += 1
            continue
        name = annotation_files.identity(one.get("id", number))
        several = interleaved and not isinstance(images, str)
        if several:
            images = tuple(text(image, f"{name}: image") for image in images)
        else:
            images = text(images, f"{name}: image")
        yield images, {"id": name, "conversation": _turns(name, one, several)}


def _lrv(content: Any, folder, left_out: Counter[str]) -> Iterator[Entry]:
    place = listed.in_visual_genome(folder)
    for one in content["annotations"] if isinstance(content, dict) else content:
        name = annotation_files.identity(one["image_id"])
        if not (_said(one["question"]) and _said(one["answer"])):
            left_out["blank questions or answers"] += 1  # all are written by a machine
            continue
        fields = _asked(name, one["question"], one["answer"]) | only(category=one.get("task"))
        yield place(f"{name}.jpg"), fields


def _said(value: Any) -> bool:
    return not isinstance(value, str) or bool(value.strip())


def _minigpt4(content: dict[str, Any], folder, left_out: Counter[str]) -> Iterator[Entry]:
    for one in content["annotations"]:
        name = annotation_files.identity(one["image_id"])
        yield f"{name}.jpg", _asked(name, _DESCRIBE, one["caption"])


def _asked(name: str, question: Any, answer: Any) -> dict[str, Any]:
    said = (("user", question, "question"), ("assistant", answer, "answer"))
    turns = [
        {"role": role, "content": text(value, f"image {name}: the {what}")}
        for role, value, what in said
    ]
    return {"id": name, "conversation": turns}


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


KINDS = {
    "llava": Kind(
        _llava,
        "LLaVA's [{id, image, conversations: [{from: human or gpt, value}]}]",
        takes=["interleaved"],
    ),
    "lrv": Kind(_lrv, "LRV-Instruction's [{image_id, question, answer, task}]"),
    "minigpt4": Kind(_minigpt4, "MiniGPT-4's {annotations: [{image_id, caption}]}"),
}
