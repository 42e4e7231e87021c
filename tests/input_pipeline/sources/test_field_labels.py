"""Labels made of a text field."""

import pytest

from input_pipeline.sources import make_source

SCENES = {"name": "scenes", "size": 30, "image_size": 32}


@pytest.fixture(scope="module")
def source():
    # Every scene's caption begins with a word; that serves as a category.
    return make_source("field_labels", data=SCENES, field="caption", separator=" ")


def test_the_first_part_of_the_field_is_the_class(source):
    scenes = make_source(**SCENES)
    assert len(source) == len(scenes)
    assert source.class_names == sorted(set(source.class_names))
    for i in range(len(source)):
        record = source[i]
        first = record["captions"]["caption"][0].split(" ")[0]
        assert source.class_names[record["label"]] == first
        assert record["image"] == scenes[i]["image"]


def test_a_split_takes_the_classes_of_another(source):
    few = {**SCENES, "size": 3}
    held_out = make_source(
        "field_labels", data=few, field="caption", separator=" ", classes_of=SCENES
    )
    assert held_out.class_names == source.class_names
    assert [held_out[i]["label"] for i in range(3)] == [source[i]["label"] for i in range(3)]


def test_a_class_that_training_lacks():
    other = {**SCENES, "size": 1}
    with pytest.raises(ValueError, match=r"names the classes .* lacks"):
        # The whole caption as the class: no two are alike.
        make_source("field_labels", data=SCENES, field="caption", separator="@", classes_of=other)


def test_a_missing_field():
    with pytest.raises(ValueError, match=r"no text in field 'category'.*--captions"):
        make_source("field_labels", data=SCENES, field="category")


def test_the_labels_are_part_of_the_fingerprint(source):
    other = make_source("field_labels", data=SCENES, field="caption", separator="@")
    assert other.fingerprint() != source.fingerprint()
