"""A tiny TFDS data set, written and read without TensorFlow."""

import io
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline.sources import make_source

ROOT = Path(__file__).parents[3]


def image(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


class TinyCaptions(tfds.core.GeneratorBasedBuilder):
    """Captions as in coco_captions, a label, a second image, numbers."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar = {}  # nothing is downloaded; looking for checksums needs one package more

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "depth": tfds.features.Image(encoding_format="png"),
                "inner": {"image": tfds.features.Image(), "title": tfds.features.Text()},
                "captions": tfds.features.Sequence({"id": np.int64, "text": np.str_}),
                "tags": tfds.features.Sequence(tfds.features.Text()),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "number": np.int64,
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10, 0), "val": self._generate_examples(2, 100)}

    def _generate_examples(self, count, first):
        for i in range(first, first + count):
            yield (
                f"{i:03d}",
                {
                    "image": io.BytesIO(image(i)),
                    "depth": io.BytesIO(b"never decoded"),
                    "inner": {"image": io.BytesIO(image(1000 + i)), "title": f" Title é{i}\n"},
                    "captions": [{"id": k, "text": f"{i} {k}"} for k in range(2)],
                    "tags": ["a", " ", f"t{i}"][: i % 4],
                    "label": i % 2,
                    "number": 7 + i,
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    TinyCaptions(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def open_tfds(data_dir, **more):
    options = {"dataset": "tiny_captions", "split": "train", "data_dir": data_dir, **more}
    return make_source("tfds", **options)


def number(record):
    """TFDS shuffles when it prepares; captions say which example it is."""
    return int(record["captions"]["captions/text"][0].split()[0])


def test_images_are_encoded_and_captions_are_lists(data_dir):
    source = open_tfds(data_dir, captions=["captions/text", "inner/title", "tags"], label="label")
    assert len(source) == 10
    assert {number(source[i]) for i in range(10)} == set(range(10))
    for index in range(10):
        record = source[index]
        n = number(record)
        assert record["id"] == f"tiny_captions/1.0.0/train/{index}"
        assert record["image"] == image(n)
        assert record["captions"] == {
            "captions/text": [f"{n} 0", f"{n} 1"],
            "inner/title": [f"Title é{n}"],
            "tags": [text for text in ["a", " ", f"t{n}"][: n % 4] if text.strip()],
        }
        assert record["label"] == n % 2
        assert type(record["label"]) is int
    assert source.class_names == ["cat", "dog"]


def test_parts_of_splits_and_features_within_others(data_dir):
    source = open_tfds(data_dir, split="train[20%:50%]", image="inner/image", label="number")
    whole = open_tfds(data_dir, captions=["captions/text"])
    assert len(source) == 3
    for index in range(3):
        n = number(whole[index + 2])
        assert source[index]["image"] == image(1000 + n)
        assert source[index]["label"] == 7 + n
        assert source[index]["captions"] == {}
    assert source.class_names is None
    assert len(open_tfds(data_dir, split="val")) == 2


def test_pickling_and_threads(data_dir):
    source = open_tfds(data_dir, captions=["captions/text"], label="label")
    expected = [source[i] for i in range(10)]
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.__getitem__, list(range(10)) * 10)) == expected * 10
    assert copy.class_names == source.class_names
    assert copy.fingerprint() == source.fingerprint()


def test_the_fingerprint_covers_split_and_features(data_dir):
    variants = [
        open_tfds(data_dir),
        open_tfds(data_dir, split="val"),
        open_tfds(data_dir, split="train[:50%]"),
        open_tfds(data_dir, captions=["tags"]),
        open_tfds(data_dir, label="label"),
        open_tfds(data_dir, image="inner/image"),
    ]
    assert len({source.fingerprint() for source in variants}) == len(variants)
    assert open_tfds(data_dir).fingerprint() == variants[0].fingerprint()


def test_reading_needs_neither_tensorflow_nor_jax(data_dir):
    """Nor the code that prepared the data set, which often imports TensorFlow."""
    program = f"""
import sys
from input_pipeline.sources import make_source
source = make_source("tfds", dataset="tiny_captions", split="val", data_dir={str(data_dir)!r})
assert source[1]["image"][:2] == b"\\xff\\xd8"
assert not {{"tensorflow", "jax"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "Unknown split 'test'"),
        ({"split": "train[:1%]"}, r"Split 'train\[:1%\]' of tiny_captions/1.0.0 has no records"),
        ({"image": "picture"}, r"no feature 'picture'; there are \['captions/id', 'captions/text'"),
        ({"image": "label"}, "Feature 'label' is not an image, but ClassLabel"),
        ({"image": "inner"}, "Feature 'inner' is not an image"),
        ({"captions": ["captions/words"]}, "no feature 'captions/words'"),
        ({"captions": ["number"]}, "Feature 'number' is not text"),
        ({"captions": ["captions"]}, "Feature 'captions' is not text"),
        ({"captions": "tags"}, r"captions='tags': give a list .*\['tags'\]"),
        ({"label": "inner/title"}, "Feature 'inner/title' is not an integer"),
        ({"label": "captions/id"}, "no feature 'captions/id'"),
    ],
)
def test_bad_arguments(data_dir, options, message):
    with pytest.raises(ValueError, match=message):
        open_tfds(data_dir, **options)


@pytest.mark.parametrize("dataset", ["coco_captions", "tiny_captions:2.0.0"])
def test_a_data_set_that_is_not_prepared(data_dir, dataset):
    message = rf"'{dataset}' is not in .*Prepare it with `tfds build {dataset} --file_format=array"
    with pytest.raises(FileNotFoundError, match=message):
        open_tfds(data_dir, dataset=dataset)


def test_files_without_random_access(data_dir, tmp_path):
    folder = tmp_path / "tiny_captions" / "1.0.0"
    folder.mkdir(parents=True)
    for file in (data_dir / "tiny_captions" / "1.0.0").glob("*"):
        (folder / file.name.replace("array_record", "tfrecord")).write_bytes(
            file.read_bytes().replace(b"array_record", b"tfrecord")
        )
    with pytest.raises(ValueError, match=r"is stored as tfrecord.*--file_format=array_record"):
        open_tfds(tmp_path)


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_out_of_range(data_dir, index):
    with pytest.raises(IndexError, match=f"Index {index} is out of range: there are 10"):
        open_tfds(data_dir)[index]
