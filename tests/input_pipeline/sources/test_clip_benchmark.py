"""DataComp's tasks as they are published: labels, groups, captions, and what may be missing."""

import pickle

import numpy as np
import pytest

from input_pipeline.sources import make_source
from tests.input_pipeline.sources.toy_task import array, image, write_tar, write_task


def labelled(label, level=0, **more):
    return {"png": image(level), "cls": str(label).encode(), **more}


def open_task(folder, **options):
    return make_source("clip_benchmark", path=folder, **options)


@pytest.fixture
def task(tmp_path):
    """Twelve tars, whose names in order of letters are not their order."""
    tars = [[labelled(n % 2, n), labelled(1, 100 + n)] for n in range(12)]
    return write_task(tmp_path / "wds_task_test", tars)


def test_labels_in_the_order_of_the_tars(task):
    source = open_task(task)
    assert len(source) == 24
    assert (source.class_names, source.templates) == (["red cat", "dog"], ["a {}.", "the {}"])
    assert [source[i]["label"] for i in range(0, 24, 2)] == [0, 1] * 6
    assert source[4]["image"] == image(2) and source[5]["image"] == image(102)
    assert [source[i]["id"] for i in (0, 23)] == ["0/s0000000", "11/s0000001"]
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in (7, 3)] == source.records([7, 3])
    assert copy.fingerprint() == source.fingerprint()
    part = open_task(task, fraction=0.999999)
    assert part.templates == source.templates


def test_another_split_or_label_is_other_data(task):
    before = open_task(task).fingerprint()
    assert open_task(task, groups=["region"]).fingerprint() != before
    (task / "classnames.txt").write_text("cat\n\nhound\n")
    assert open_task(task).fingerprint() != before
    assert open_task(task).class_names == ["cat", "", "hound"]
    with pytest.raises(FileNotFoundError, match=r"train/nshards.txt does not exist.*split 'train'"):
        open_task(task, split="train")


def test_numbers_beside_an_image(tmp_path):
    kinds = [{"npy": array([2, 2016, 7])}, {"npy": array([0.0, 1.0, 1.0])}]
    folder = write_task(tmp_path / "a", [[labelled(0, **more) for more in kinds]])
    source = open_task(folder, groups=["region", "year"])
    assert [source[i]["groups"] for i in (0, 1)] == [
        {"region": 2, "year": 2016},
        {"region": 0, "year": 1},
    ]
    assert open_task(folder, npy="labels")[1]["labels"] == [1, 2]
    with pytest.raises(ValueError, match=r"Record '0/s0000000'.*3 values, fewer than"):
        open_task(folder, groups=list("abcd"))[0]
    with pytest.raises(ValueError, match="npy='what'"):
        open_task(folder, npy="what")


def test_captions_and_files_without_lists(tmp_path):
    text = {"jpg": image(kind="JPEG"), "txt": b"a cat\n\n two dogs \n"}
    source = open_task(write_task(tmp_path / "a", [[text]], class_names=(), templates=()))
    assert source[0]["captions"] == {"txt": ["a cat", "two dogs"]}
    assert source.class_names is None and source.templates is None
    assert "label" not in source[0]


def test_what_is_broken_is_named(task):
    write_tar(task / "test" / "0.tar", [labelled("cat"), {"cls": b"1"}])
    source = open_task(task)
    assert len(source) == 23  # without the one that has no image
    with pytest.raises(ValueError, match=r"Record '0/s0000000': the .cls cannot be read.*cat"):
        source[0]
    assert isinstance(source.records([0, 1])[0], ValueError)
    (task / "test" / "3.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 12 tars .*missing, such as .*3.tar"):
        open_task(task)
    (task / "test" / "3.tar").write_bytes((task / "test" / "4.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"3.tar: not a complete, uncompressed tar"):
        open_task(task)
    (task / "test" / "nshards.txt").write_text("many")
    with pytest.raises(ValueError, match="holds no number of tars"):
        open_task(task)


def test_an_array_that_needs_pickle_is_refused(tmp_path):
    sample = labelled(0, npy=array(np.array([{"a": 1}], object)))
    source = open_task(write_task(tmp_path / "a", [[sample]]))
    with pytest.raises(ValueError, match=r"the .npy cannot be read"):
        source[0]


@pytest.mark.parametrize("data", [b"", array([1, 2])[:-3], b"PK\x03\x04"])
def test_an_array_that_was_cut_short_names_its_record(tmp_path, data):
    source = open_task(write_task(tmp_path / "a", [[labelled(0, npy=data)]]))
    with pytest.raises(ValueError, match=r"Record '0/s0000000': the .npy cannot be read"):
        source[0]


def test_a_list_that_is_empty_is_named(task):
    (task / "classnames.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"classnames.txt is empty. Download it again"):
        open_task(task)
