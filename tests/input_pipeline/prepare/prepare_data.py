"""Small inputs for the command `prepare`, and ways to run it, shared by its tests."""

import hashlib
import io
import itertools
import json
import re
import tarfile

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from input_pipeline import records
from input_pipeline.prepare import command as prepare
from input_pipeline.sources import make_source


def image(seed=0, size=16):
    """JPEG of noise; `seed` a number or a letter, `size` (height, width) or both in one."""
    seed = ord(seed) if isinstance(seed, str) else seed
    height, width = size if isinstance(size, tuple) else (size, size)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, samples):
    """samples: key -> (image bytes, contents of the .json)."""
    with tarfile.open(path, "w") as tar:
        for key, (data, values) in samples.items():
            members = ((f"{key}.jpg", data), (f"{key}.json", json.dumps(values).encode()))
            for name, contents in members:
                info = tarfile.TarInfo(name)
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))


def write_tars(folder, count=3, samples=4):
    """Tars with a string and a list per sample, and one corrupt and one empty sample per tar."""
    folder.mkdir()
    for i in range(count):
        contents = {
            f"{j:03d}": (
                image(100 * i + j),
                {"title": f"Tar {i}. Item {j}", "tags": ["x", f"t{j}"]},
            )
            for j in range(samples)
        }
        contents["broken"] = (image()[:200], {"title": "broken", "tags": []})
        contents["empty"] = (image(), {"title": "", "tags": [""]})
        write_tar(folder / f"train-{i}.tar", contents)
    return folder


def run(tars, output, *arguments, captions="title,tags", workers=1):
    """Exit code of the command, run in this process."""
    command = ["webdataset", "--input", f"{tars}/train-*.tar", "--output", str(output)]
    command += ["--captions", captions, "--workers", str(workers)]
    return prepare.main([*command, *arguments])


def contents(folder):
    """name -> bytes of the files, but for when the input was written: copies of it are equal."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: re.sub(rb'"modified": "\w+"', b"", data) for name, data in files.items()}


def ids(folder):
    source = make_source("prepared", path=folder)
    return [source[i]["id"] for i in range(len(source))]


def run_source(output, name, *arguments, workers=1):
    """Exit code of `prepare source`; arguments of the source are before the flags."""
    pairs = list(itertools.takewhile(lambda text: not text.startswith("--"), arguments))
    source = f"{name}:{','.join(pairs)}" if pairs else name
    command = ["source", "--input", source, *arguments[len(pairs) :], "--output", str(output)]
    return prepare.main([*command, "--workers", str(workers)])


def write_prepared(folder, examples):
    """A data set as prepare writes it, of any records."""
    folder.mkdir()
    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1,uncompressed")
    for example in examples:
        writer.write(records.encode(example))
    writer.close()
    data = (folder / "a.array_record").read_bytes()
    shard = {"file": "a.array_record", "records": len(examples), "bytes": len(data)}
    shard["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "dataset.json").write_text(json.dumps({"version": 1, "shards": [shard]}))
    return folder
