"""Views with labels: mined or stored, padded, checked."""

import random

import numpy as np
import pytest

from input_pipeline.sources import make_source
from input_pipeline.views import make_views

# dog, cat, sofa and red.n.01
LINES = (
    "n2084071\t9\tdog.n.01\nn2121620\t8\tcat.n.01\nn4256520\t7\tsofa.n.01\nn4962784\t6\tred.n.01\n"
)
SCENES = {"name": "scenes", "size": 4, "image_size": 32}


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text(LINES)
    return str(path)


@pytest.fixture(scope="module")
def image():
    return make_source(**SCENES)[0]["image"]


def labels_of(views, record):
    example = views(record, random.Random(0))
    assert {k: (x.shape, x.dtype) for k, x in example.items()} == views.spec()
    return example["labels"].tolist()


def record(image, *captions, **fields):
    return {"id": "r1", "image": image, "captions": {"caption": list(captions)}, **fields}


def test_labels_are_mined_from_all_captions(vocabulary, image):
    views = make_views("catlip", image_size=16, vocabulary=vocabulary, max_labels=5)
    assert views.num_classes == 4
    found = labels_of(views, record(image, "two cats on a red sofa", "a cat and a bird"))
    assert found == [1, 2, 3, -1, -1]
    assert labels_of(views, record(image, "and")) == [-1] * 5  # kept: nothing is there
    batch = {"labels": np.array([[1, 2, -1], [-1, -1, -1]])}
    assert views.texts(batch) == [["cat.n.01, sofa.n.01"], ["no label"]]


def test_the_most_frequent_are_kept_of_too_many(vocabulary, image):
    views = make_views("catlip", image_size=16, vocabulary=vocabulary, max_labels=2)
    assert labels_of(views, record(image, "red sofa, cat, dog")) == [0, 1]
    small = make_views("catlip", image_size=16, vocabulary=vocabulary, vocabulary_size=1)
    assert small.num_classes == 1
    assert labels_of(small, record(image, "red sofa, cat, dog"))[:2] == [0, -1]


def test_stored_labels_are_taken_as_they_are(vocabulary, image):
    views = make_views("catlip", image_size=16, vocabulary=vocabulary, stored=True, max_labels=3)
    assert labels_of(views, record(image, "a bird", labels=[0, 3])) == [0, 3, -1]
    assert labels_of(views, record(image, "a dog", labels=[])) == [-1, -1, -1]
    with pytest.raises(ValueError, match="'r1' has no labels; prepare the data with --labels"):
        labels_of(views, record(image, "a dog"))
    with pytest.raises(ValueError, match="'r1' has label 4, which is none of 4 classes"):
        labels_of(views, record(image, "a dog", labels=[0, 4]))


def test_labelled_data(image):
    single = make_views("labels", image_size=16, num_classes=8)
    scenes = make_source(**SCENES)
    example = single(scenes[1], random.Random(0))
    assert example["label"] == scenes[1]["label"]
    assert {k: (x.shape, x.dtype) for k, x in example.items()} == single.spec()
    assert single.texts({"label": np.array([3])}) == [["class 3"]]
    many = make_views("labels", image_size=16, num_classes=8, multi_label=True)
    assert [x for x in labels_of(many, scenes[1]) if x >= 0] == scenes[1]["labels"]
    with pytest.raises(ValueError, match="'r1' has no label; use a labelled data set"):
        single(record(image, "a dog"), random.Random(0))
    with pytest.raises(ValueError, match="'r1' has label -1, which is none of 8 classes"):
        single(record(image, "a dog", label=-1), random.Random(0))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("catlip", {"vocabulary": "nowhere.tsv"}, "no vocabulary nowhere.tsv"),
        ("catlip", {"max_labels": 0}, "max_labels=0"),
        ("catlip", {"label_mode": "nouns"}, "Unknown label mode 'nouns'"),
        ("catlip", {"vocabulary_size": 0}, "size=0"),
        ("labels", {"num_classes": 0}, "num_classes=0"),
        ("labels", {"num_classes": 2, "crop_scale": (0.5, 0.1)}, "crop scale"),
        ("labels", {"num_classes": 2, "flip_prob": 2}, "flip_prob"),
    ],
)
def test_options_are_checked(vocabulary, name, options, message):
    given = {"vocabulary": vocabulary, **options} if name == "catlip" else options
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_views(name, image_size=16, **given)


def test_mined_labels_as_a_source(vocabulary):
    source = make_source("mined_labels", data=SCENES, vocabulary=vocabulary)
    views = make_views("catlip", image_size=16, vocabulary=vocabulary)
    scenes = make_source(**SCENES)
    for i in range(len(source)):
        found = labels_of(views, scenes[i])
        assert source[i]["labels"] == [x for x in found if x >= 0]
    assert source.class_names == list(views.vocabulary.names)
    assert source.label_rule["fingerprint"] == views.vocabulary.fingerprint()
    assert source.fingerprint() != scenes.fingerprint()


def test_a_vocabulary_that_has_changed_is_read_again(vocabulary):
    assert make_views("catlip", image_size=16, vocabulary=vocabulary).num_classes == 4
    with open(vocabulary, "a") as file:
        file.write("n2958343\t5\tcar.n.01\n")
    assert make_views("catlip", image_size=16, vocabulary=vocabulary).num_classes == 5


def test_views_of_all_sizes_share_what_is_large(vocabulary):
    small, large = (make_views("catlip", image_size=s, vocabulary=vocabulary) for s in (16, 32))
    assert small.vocabulary is large.vocabulary
    assert small._rule.miner is large._rule.miner
