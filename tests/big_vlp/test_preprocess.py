"""The preprocess record: what goes into a file comes back, and unknown rules are refused."""

import pytest

from big_vlp.preprocess import Preprocess


def test_json_round_trip():
    record = Preprocess(32, "clip", 16, resize="squash", mean=(0.1, 0.2, 0.3), activation="gelu")
    assert Preprocess.from_json(record.to_json()) == record


@pytest.mark.parametrize("field, value", [("resize", "longest"), ("interpolation", "bilinear")])
def test_unknown_rules(field, value):
    with pytest.raises(ValueError, match=f"{field}='{value}'; choose one of"):
        Preprocess(32, "clip", 16, **{field: value})
