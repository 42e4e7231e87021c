"""Which tokens are which word."""

import pytest

from input_pipeline.text.spans import Word, word_spans
from input_pipeline.text.tokenizers import make_tokenizer


@pytest.fixture
def tokenizer():
    return make_tokenizer("clip")


def test_words_are_the_tokens_that_say_them(tokenizer):
    text = "A  photo of Kiyomizudera, isn't it?"
    spans = word_spans(tokenizer, text, 32)
    [row] = tokenizer([text], 32)
    assert [span.text for span in spans] == text.split()
    assert spans[0] == Word("A", 1, 2)
    for span in spans:
        assert (
            tokenizer.decode(row[span.start : span.stop]).split()
            == tokenizer.decode(
                tokenizer([span.text], 32)[0][1 : 1 + span.stop - span.start]
            ).split()
        )
    assert [a.stop for a in spans[:-1]] == [b.start for b in spans[1:]]
    assert row[spans[-1].stop] == row.max()  # the end of the text
    assert spans[3].stop - spans[3].start > 2  # a rare word, and a comma


def test_what_is_cut_off_is_left_out(tokenizer):
    spans = word_spans(tokenizer, "one two three four five", 5)
    assert [span.text for span in spans] == ["one", "two", "three"]
    assert word_spans(tokenizer, "", 5) == []
