"""Mining CatLIP's labels from captions: quick against plain on one core, and a whole vocabulary.

Plain is the rule from its definition: every caption through percent decoding, ftfy, Punkt, NLTK's
tokenizer and the lemmatiser, one by one. That is the released code without what it spends on a
tagger whose result it drops and on searching a list of 24,000 classes. Quick is what everything
here runs, `LabelMiner`, with an empty memory at the start of each pass. Both give the same keys.

- titles: of openclipart, if its tars are given; a few words each.
- captions: of scenes; one sentence of some 30 words.
- paragraphs: of scenes; 12 short sentences.
- vocabulary: the command from its start to its files, on prepared scenes, by one process, by one
  per core, and by Beam's DirectRunner where that is installed; captions of all kinds per second.
"""

import importlib.util
import json
import os
import tarfile
import tempfile
import time
from pathlib import Path

from input_pipeline.sources import scenes
from input_pipeline.words.mining import LabelMiner, keys_plainly
from tests.benchmarks.common import interleaved, one_core
from tests.benchmarks.end_to_end import program


def measure(num_captions: int = 3000, repeats: int = 3, tars: str = "", records: int = 20_000):
    """Args: captions per pass; passes that count; directory of openclipart; of the vocabulary."""
    described = [scenes.describe("train", i) for i in range(num_captions)]
    kinds = {
        "captions": [scene.caption for scene in described],
        "paragraphs": [". ".join(scene.sentences) + "." for scene in described],
    }
    if tars:
        kinds = {"titles": titles(Path(tars))[:num_captions], **kinds}
    rows = []
    with one_core():
        for kind, captions in kinds.items():
            times = interleaved({"quick": quick(captions), "plain": plain(captions)}, repeats)
            rows.append(
                {
                    "case": kind,
                    "ours_per_s": len(captions) / times["quick"]["wall_s"],
                    "plain_per_s": len(captions) / times["plain"]["wall_s"],
                    "wall_ratio": times["plain"]["wall_s"] / times["quick"]["wall_s"],
                }
            )
    with tempfile.TemporaryDirectory() as folder:
        rows += vocabularies(Path(folder), records)
    return rows


def quick(captions: list[str]):
    def run():
        miner = LabelMiner()
        for caption in captions:
            miner.keys(caption)

    return run


def plain(captions: list[str]):
    def run():
        for caption in captions:
            keys_plainly(caption)

    return run


def titles(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            samples = (member for member in tar if member.name.endswith(".json"))
            found += [json.load(tar.extractfile(member))["raw_caption"] for member in samples]
    return found


def vocabularies(folder: Path, num_records: int) -> list[dict]:
    """A row per way to count; fails if they do not write the same."""
    data = folder / "data"
    size = f"size={num_records}"
    program(
        *("input_pipeline.prepare", "source", "--input", f"scenes:{size},image_size=32"),
        *("--records-per-shard", "5000", "--output", str(data)),
    )
    counted = json.loads((data / "dataset.json").read_text())["captions"]
    cores = len(os.sched_getaffinity(0))
    ways = {"1 process": ["--workers", "1"], f"{cores} processes": ["--workers", str(cores)]}
    if importlib.util.find_spec("apache_beam"):
        ways["Beam"] = ["--runner", "DirectRunner"]
    rows, files = [], set()
    for i, (way, arguments) in enumerate(ways.items()):
        output = folder / f"{i}.tsv"
        started = time.perf_counter()
        program(
            *("input_pipeline.vocabulary", "--input", str(data), "--threshold", "10"),
            *("--output", str(output), *arguments),
        )
        seconds = time.perf_counter() - started
        files.add(output.read_bytes())
        rows.append({"case": f"vocabulary, {way}", "ours_per_s": sum(counted.values()) / seconds})
    if len(files) > 1:
        raise RuntimeError("the vocabularies differ")
    return rows
