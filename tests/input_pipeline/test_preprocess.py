"""The preprocess record: what goes into a file comes back, and unknown rules are refused."""

import json

import pytest

from input_pipeline.preprocess import Preprocess


def test_json_round_trip():
    record = Preprocess(32, "clip", 16, resize="squash", mean=(0.1, 0.2, 0.3))
    assert Preprocess.from_json(record.to_json()) == record
    catlip = Preprocess(
        224, interpolation="bilinear", resize_size=232, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    assert Preprocess.from_json(catlip.to_json()) == catlip
    assert catlip.tokenizer is None and catlip.context_length == 0


def test_a_record_of_an_earlier_version():
    record = Preprocess(32, "clip", 16)
    fields = json.loads(record.to_json())
    del fields["resize_size"], fields["crop_rounding"]
    assert Preprocess.from_json(json.dumps(fields)) == record


@pytest.mark.parametrize(
    "field, value",
    [("resize", "longest"), ("interpolation", "nearest"), ("crop_rounding", "up")],
)
def test_unknown_rules(field, value):
    with pytest.raises(ValueError, match=f"{field}='{value}'; choose one of"):
        Preprocess(32, "clip", 16, **{field: value})


@pytest.mark.parametrize("text", [{"tokenizer": "clip"}, {"context_length": 16}])
def test_half_a_text_side(text):
    with pytest.raises(ValueError, match="set both, or neither where the model takes no text"):
        Preprocess(32, **text)


@pytest.mark.parametrize(
    "rule", [{"resize_size": 31}, {"resize_size": 40, "resize": "squash"}], ids=["small", "squash"]
)
def test_a_resize_size_that_cannot_be(rule):
    with pytest.raises(ValueError, match=r"resize_size=.* is for resize='shortest' and at least"):
        Preprocess(32, **rule)
