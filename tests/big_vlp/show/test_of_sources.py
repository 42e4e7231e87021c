"""Pictures of what a model finds, and of where it errs."""

import io
import types

import numpy as np
import pytest
from PIL import Image

from big_vlp.api.errors import ModelError
from big_vlp.pictures.figures import RIGHT, WRONG
from big_vlp.show import mistakes, retrieval
from big_vlp.show.__main__ import main
from tests.evaluators.shared.toy import ToySource

CAPTIONS = ["red", "green", "blue", "red"]


class Towers:
    """Features of image i and of each text are given."""

    can = ("encode_image", "encode_text", "similarity")

    def __init__(self, images, texts):
        self.images, self.texts = np.float32(images), texts

    def encode_image(self, images):
        return self.images[[level_of(image) // 2 for image in images]]

    def encode_text(self, texts):
        return np.float32([self.texts[text] for text in texts])


def level_of(image):
    return Image.open(io.BytesIO(image)).getpixel((0, 0))[0]


@pytest.fixture
def found(monkeypatch):
    """Image 2 is taken for red and 3 for green; images are read two at a time."""
    monkeypatch.setattr(retrieval, "READ_AT_ONCE", 2)
    model = Towers(
        [[1, 0], [0, 1], [0.8, 0.6], [0.6, 0.8]],
        {"red": [1, 0], "green": [0, 1], "blue": [-1, 0], "yellow": [0.6, 0.8]},
    )
    source = ToySource({"caption": [[text] for text in CAPTIONS]})
    return source, lambda **given: retrieval.search(model, source, "caption", **given)


def test_the_nearest_come_first_and_those_that_carry_the_text_are_right(found):
    _, search = found
    one = search(asked=["red", "yellow"], queries=4, top=2)
    assert one.texts == ["red", "green", "blue", "yellow"]
    (red, images), (yellow, others) = one.by_text
    assert (red, yellow) == (0, 3)
    assert [(hit.number, hit.is_right) for hit in images] == [(0, True), (2, False)]
    # Nothing says of which images a text of the user's is.
    assert [(hit.number, hit.is_right) for hit in others] == [(3, None), (2, None)]
    assert others[0].cosine == pytest.approx(1)
    texts = {row: [(hit.number, hit.is_right) for hit in hits] for row, hits in one.by_image}
    assert texts == {
        0: [(0, True), (1, False)],
        1: [(1, True), (0, False)],
        2: [(0, False), (1, False)],
        3: [(1, False), (0, True)],  # and never "yellow", which no image carries
    }


def test_the_images_that_are_asked_give_the_texts(found):
    _, search = found
    one = search(queries=2)
    assert len(one.by_image) == 2
    assert {one.texts[number] for number, _ in one.by_text} == {
        CAPTIONS[row] for row, _ in one.by_image
    }
    assert [row for row, _ in search(queries=4, seed=1).by_image] != [
        row for row, _ in search(queries=4, seed=2).by_image
    ]


def share_of(png, colour):
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (pixels == wanted).all(axis=-1).mean()


def test_right_answers_are_framed(found):
    source, search = found
    pictures = [
        retrieval.draw(search(asked=[text]), source, "a title") for text in ("red", "yellow")
    ]
    shares = [share_of(picture, RIGHT) for picture in pictures]
    assert shares[0] > shares[1] > 0  # the texts of images are marked in both


NAMES = ["cat", "dog", "$5"]
LABELS = [0, 1, 2, 0]
PROBABILITIES = np.float32([[0.9, 0.1, 0], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]])


def zero_shot_model(asked):
    """Image i has row i."""

    def zero_shot(images, names, templates):
        asked.append((names, list(templates)))
        return PROBABILITIES[[level_of(image) // 2 for image in images]]

    return types.SimpleNamespace(can=("zero_shot",), zero_shot=zero_shot)


def classifier(names=NAMES):
    def classify(images, top):
        rows = PROBABILITIES[[level_of(image) // 2 for image in images]]
        return [sorted(zip(NAMES, row), key=lambda one: -one[1])[:top] for row in rows]

    return types.SimpleNamespace(can=("classify",), classify=classify, class_names=tuple(names))


def labelled(**more):
    return ToySource({"caption": [["?"]] * 4}, LABELS, class_names=NAMES, **more)


@pytest.mark.parametrize("kind", ["zero-shot", "head"])
def test_the_most_confident_mistake_comes_first(kind, monkeypatch):
    monkeypatch.setattr(mistakes, "READ_AT_ONCE", 3)
    asked = []
    model = classifier() if kind == "head" else zero_shot_model(asked)
    source = labelled()
    found = mistakes.classify(model, source)
    assert (found.accuracy, found.images, found.classes) == (0.25, 4, 3)
    assert [(one.number, one.true, one.predicted) for one in found.mistakes] == [
        (2, "$5", "dog"),
        (3, "cat", "$5"),
        (1, "dog", "cat"),
    ]
    both = [(one.true_probability, one.probability) for one in found.mistakes]
    np.testing.assert_allclose(both, [(0.1, 0.8), (0.1, 0.7), (0.3, 0.6)], rtol=1e-6)
    assert asked in ([], [(NAMES, ["a photo of a {}."])] * 2)
    one, all_ = (mistakes.draw(found, source, "a title", top) for top in (1, 3))
    assert 0 < share_of(one, WRONG) < share_of(all_, WRONG)


def test_prompts_are_those_given_or_of_the_source():
    asked, source = [], labelled()
    mistakes.classify(zero_shot_model(asked), source, ["a", "b", "c"], ["my {}"])
    source.templates = ["its {}"]
    mistakes.classify(zero_shot_model(asked), source)
    assert asked == [(["a", "b", "c"], ["my {}"]), (NAMES, ["its {}"])]


def test_ids_make_no_prompts():
    source = labelled()
    source.class_names = ["n01440764", "n01443537", "n01484850"]
    with pytest.raises(ValueError, match="no names but ids"):
        mistakes.classify(zero_shot_model([]), source)
    names = ["tench", "goldfish", "shark"]
    assert mistakes.classify(zero_shot_model([]), source, names).classes == 3


def test_what_is_no_number_is_a_mistake(monkeypatch):
    model = types.SimpleNamespace(
        can=("zero_shot",), zero_shot=lambda images, *_: np.full((len(images), 3), np.nan)
    )
    assert mistakes.classify(model, labelled()).accuracy == 0


@pytest.mark.parametrize(
    "model, given, message",
    [
        (classifier(["dog", "cat", "$5"]), {}, "not the 3 of the source"),
        (classifier(), {"templates": ["a {}"]}, "without class names and templates"),
        (types.SimpleNamespace(can=("segment",)), {}, "classifies nothing"),
    ],
)
def test_what_cannot_be_predicted(model, given, message):
    with pytest.raises(ModelError, match=message):
        mistakes.classify(model, labelled(), **given)


def test_no_mistakes_are_drawn_too():
    none = mistakes.Classified([], 1.0, 4, 3)
    assert share_of(mistakes.draw(none, labelled(), "a title"), WRONG) == 0


@pytest.mark.parametrize(
    "command, options, message",
    [
        ("retrieval", ["--caption-field", "caption", "--top", "0"], "give 1 or more"),
        ("retrieval", ["--caption-field", "caption", "--output", "no/a.png"], "no such directory"),
        ("mistakes", ["--class-names", "imagenet1"], "imagenet1k"),
        ("mistakes", [], "no model directory"),
    ],
)
def test_what_cannot_be_shown(command, options, message, capsys):
    given = [command, "--model", "nowhere", "--input", "scenes:size=2,image_size=32", *options]
    try:
        status = main(given)
    except SystemExit as ended:  # of the parser
        status = ended.code
    assert status == 1
    assert message in capsys.readouterr().err
