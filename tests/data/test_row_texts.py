"""What a text of csv stands for."""

from __future__ import annotations

import pytest

from metaopt.data.row_texts import literal


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", 1), (" 2.0 ", 2), ("0.5", 0.5), ("-1e3", -1000), ("True", True), ("false", False),
        ("", None), ("null", None), ("None of these", "None of these"), ("nan", "nan"),
        ("[1]", "[1]"), ('"1"', '"1"'), (True, True), (0.25, 0.25), (None, None), ([1], [1]),
    ],
)  # fmt: skip
def test_numbers_and_truth_values_are_read(value: object, expected: object) -> None:
    result = literal(value)
    assert result == expected
    assert type(result) is type(expected)
