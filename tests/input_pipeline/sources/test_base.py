"""What all sources have in common."""

import importlib

import numpy as np
import pytest

from big_vlp.recipes import SCENES_VOCABULARY
from input_pipeline.checks import parts
from input_pipeline.files import listing
from input_pipeline.sources import Source, make_source

SCENES = {"name": "scenes", "size": 30, "image_size": 32}


class Letters(Source):
    """The smallest one that can be."""

    def __len__(self):
        return 3

    def record(self, index):
        assert type(index) is int
        return {"id": "abc"[index]}

    def identity(self):
        return "letters ", b"abc"


def test_all_of_ours_derive_from_it():
    modules = parts.known("input_pipeline.sources").values()
    assert len(modules) > 10
    for module in modules:
        assert issubclass(importlib.import_module(module).Source, Source)


def test_what_is_not_said_has_a_default():
    letters = Letters()
    assert [letters[np.int32(i)]["id"] for i in range(3)] == ["a", "b", "c"]
    assert (letters.class_names, letters.label_rule, letters.weights) == (None, None, None)
    assert list(letters.files()) == [] and letters.sizes() == b""


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range(index):
    with pytest.raises(IndexError, match=f"Index {index} is out of range: there are 3 records"):
        Letters()[index]
    with pytest.raises(TypeError):
        Letters()[0.5]


def test_the_fingerprint_is_that_of_the_identity():
    assert Letters().fingerprint() == listing.fingerprint("letters abc")


def test_fingerprints_are_those_of_data_prepared_long_ago():
    """Written down: shards that are finished, and runs that go on, compare them."""
    found = [
        make_source(**SCENES),
        make_source(**SCENES, fraction=0.3),
        make_source("mixture", sources=[SCENES, {**SCENES, "split": "val"}]),
        make_source(
            "mixture", sources=[{**SCENES, "weight": 1}, {**SCENES, "split": "val", "weight": 2.5}]
        ),
        make_source("field_labels", data=SCENES, field="caption", separator=" "),
        make_source("mined_labels", data=SCENES, vocabulary=SCENES_VOCABULARY),
    ]
    assert [source.fingerprint() for source in found] == [
        *("1e2b93ec725675b6", "84b03678ffadb7c4", "d2f6b222a1a05633"),
        *("d5cea4f3cce572c8", "c43be5c524db81df", "3f110fa12911e682"),
    ]


def test_those_in_front_of_another_pass_on_what_is_known_of_it(tmp_path):
    (tmp_path / "class").mkdir()
    for name in "ab":
        (tmp_path / "class" / f"{name}.png").write_bytes(make_source(**SCENES)[0]["image"])
    folders = make_source("folders", path=tmp_path)
    part = make_source("folders", path=tmp_path, fraction=1.0)
    assert list(part.files()) == list(folders.files()) != []
    assert part.class_names == folders.class_names == ["class"]
    labelled = {"name": "mined_labels", "data": SCENES, "vocabulary": SCENES_VOCABULARY}
    weighted = [{**labelled, "weight": 1}, {**labelled, "weight": 3}]
    data = {"name": "mixture", "sources": weighted}
    named = make_source("field_labels", data=data, field="caption", separator=" ")
    assert named.label_rule == make_source(**labelled).label_rule is not None
    assert (named.weights, named.lengths) == ([1, 3], [30, 30])


def test_a_source_without_the_base_is_told_so(tmp_path, monkeypatch):
    (tmp_path / "loose_source.py").write_text("class Source:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = "The Source of loose_source must derive from input_pipeline.sources.Source"
    with pytest.raises(ValueError, match=message):
        make_source("loose_source")
