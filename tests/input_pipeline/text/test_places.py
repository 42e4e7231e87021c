"""Where images stand in texts."""

import pytest

from input_pipeline.text.places import Numbers, named, place


def numbered(texts, count):
    numbers = Numbers(count)
    return [numbers.given(text) for text in texts]


@pytest.mark.parametrize(
    "texts, count, expected",
    [
        (["no <image>"], 0, [["no <image>"]]),
        (["a", "b"], 2, [[0, 1, "a"], ["b"]]),
        (["see <image> and <image>.", "ok"], 2, [["see", 0, "and", 1, "."], ["ok"]]),
        (["<image><image>\nwhich?"], 2, [[0, 1, "\nwhich?"]]),
        (["", "<image> a cat <image> a dog"], 2, [[], [0, "a cat", 1, "a dog"]]),
        # Numbers may come in any order, and again; what nobody names stands in front.
        (
            ["like <image 3>? <image 1>, not <image 3>"],
            3,
            [[1, "like", 2, "?", 0, ", not <image 3>"]],
        ),
        (["<image 2> or <image>"], 2, [[1, "or", 0]]),
    ],
)
def test_images_stand_where_the_text_has_them(texts, count, expected):
    if count:
        texts = numbered(texts, count)
        assert numbered(texts, count) == texts
    assert place(texts, range(count)) == expected
    assert place(texts, range(count), in_text=False)[0] == [*range(count), *filter(None, texts[:1])]


def test_numbers_go_on_from_text_to_text():
    assert numbered(["<image 2>", "a <image>", "<image>"], 3) == [
        "<image 2>",
        "a <image 1>",
        "<image 3>",
    ]
    numbers = Numbers(3)  # one of several is drawn
    assert numbers.given_each(["<image>", "or <image>"]) == ["<image 1>", "or <image 1>"]
    assert numbers.given("<image>") == "<image 2>" and numbers.given_each([]) == []
    assert named(["<image 3> and <image 1>", "<image>"]) == {0, 2}


def test_images_that_are_not_shown_stay_text():
    assert place(["a <image 1> b <image 2>"], [1]) == [["a <image 1> b", 1]]


@pytest.mark.parametrize(
    "text, count", [("<image> <image>", 1), ("<image 3>", 2), ("<image 0>", 1)]
)
def test_more_than_there_are(text, count):
    with pytest.raises(ValueError, match=rf"says <image.*>, but it has {count} images"):
        numbered([text], count)
