"""Fields of records."""

import pytest

from evaluators.shared.records import captions_of


def test_captions_are_lists_of_an_existing_field():
    record = {"id": "7", "captions": {"raw": ["a"], "long": "a dog", "none": []}}
    assert captions_of(record, "raw") == ["a"]
    with pytest.raises(ValueError, match=r"'7'.*'short'.*\['raw', 'long', 'none'\]"):
        captions_of(record, "short")
    for field in ("long", "none"):
        with pytest.raises(ValueError, match="list of strings"):
            captions_of(record, field)
