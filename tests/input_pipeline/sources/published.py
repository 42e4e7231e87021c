"""Small data sets in published formats, and what all sources of them promise."""

import json
import pickle

from input_pipeline.records import decode, encode, without_images
from tests.input_pipeline.sources.toy_task import image


def write_images(folder, names):
    """A grey square of another level for each; returns the folder."""
    for level, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(level))
    return folder


def write_json(path, content):
    """A list of `content` that is JSON lines where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl" or path.stem.startswith("coco_pope"):
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    else:
        path.write_text(json.dumps(content))
    return path


def records(source):
    """All of them: the same from a copy in another process, and from shards, and without images."""
    found = [source[i] for i in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint()
    for one, again in zip(found, copy.records(range(len(copy))), strict=True):
        assert encode(one) == encode(again)
        assert list(decode(encode(one)).keys() ^ one.keys()) == []
    for one, fields in zip(found, source.fields(range(len(source))), strict=True):
        assert encode(without_images(one)) == encode(fields)
    assert len({one["id"] for one in found}) == len(found)
    return found


def without_image(record):
    """The fields that an annotation file gives."""
    return {name: value for name, value in record.items() if name not in ("image", "captions")}
