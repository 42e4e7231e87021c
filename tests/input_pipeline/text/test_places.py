"""Where images stand in texts."""

import pytest

from input_pipeline.text.places import place


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
    assert place(texts, count) == expected


@pytest.mark.parametrize(
    "text, count", [("<image> <image>", 1), ("<image 3>", 2), ("<image 0>", 1)]
)
def test_more_than_there_are(text, count):
    with pytest.raises(ValueError, match=rf"says <image.*>, but it has {count} images"):
        place([text], count)
