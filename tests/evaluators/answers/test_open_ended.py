"""Questions without choices: how they are asked, and which answers are right."""

import pytest

from evaluators.answers.shared import open_ended


@pytest.mark.parametrize(
    "text, answers, right",
    [
        ("8", ["8"], True),
        ("8.0", ["8"], True),
        ("8.004", ["8"], True),  # two decimals count
        ("8.01", ["8"], False),
        ("The answer is 8", ["7", "8"], True),
        ("It is 1,234 dollars", ["1234"], True),
        ("It is 1,234.5 dollars", ["1234.5"], False),  # which MMMU's script does not find
        ("x = 2e3", ["2000"], True),
        ("12 dogs", ["1"], False),
        ("It is a Red Dog.", ["red dog"], True),
        ("a dogged one", ["dog"], True),  # as in MMMU's script
        ("the result is cat, so dog", ["cat"], False),  # what comes behind "so" is the answer
        ("first 4 = 5\nso it = 6", ["5"], False),  # "=" counts in the last line
        ("first 4 = 5\nso it = 6", ["6"], True),
        ("b", ["b"], True),
        ("abc", ["b"], False),  # a single letter stands alone
        ("", ["dog"], False),
        ("nan", ["nan"], False),
    ],
)
def test_texts(text, answers, right):
    assert open_ended.is_right(text, answers, "text") is right


@pytest.mark.parametrize(
    "text, answer, answer_type, precision, right",
    [
        ("14", "14", "integer", None, True),
        ("There are 3 rows, so 14.", "14", "integer", None, True),
        ("14.9", "14", "integer", None, True),  # what is behind the point is lost
        ("1,400", "1400", "integer", None, True),
        ("-5", "5", "integer", None, False),
        ("none", "0", "integer", None, False),
        ("0.64", "0.6", "float", 1.0, True),
        ("0.66", "0.6", "float", 1.0, False),
        ("It costs $1.45.", "1.45", "float", 2.0, True),
        (".5", "0.5", "float", 1.0, True),
        ("1e400", "1", "integer", None, False),
        ("[1, 2.0, 3]", "[1, 2, 3]", "list", None, True),
        ("Between [1] and: [2007, 2008].", "[2007, 2008]", "list", None, True),
        ("[2008, 2007]", "[2007, 2008]", "list", None, False),
        ("2007, 2008", "[2007, 2008]", "list", None, False),
        ("2007,2008", "2008", "integer", None, True),
        ("1,23456", "23456", "integer", None, True),
        ("1,234,5678", "5678", "integer", None, True),
        ("1,234,567.5, it is", "1234567.5", "float", 1.0, True),
        ("\u22125", "-5", "integer", None, True),
        ("\u22125", "5", "integer", None, False),
        ("7\u22125", "5", "integer", None, True),  # which it is not between two numbers
        ("[\u22121, 2]", "[-1, 2]", "list", None, True),
        ("[the cat]", "[1]", "list", None, False),
    ],
)
def test_numbers_and_lists(text, answer, answer_type, precision, right):
    assert open_ended.is_right(text, [answer], answer_type, precision) is right
