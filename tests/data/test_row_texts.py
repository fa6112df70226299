"""What a text of csv stands for."""

from __future__ import annotations

import pytest

from metaopt.data.row_texts import list_in, literal


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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('["a", null]', ["a", None]), ("['a', None]", ["a", None]), (" [1, 2]", [1, 2]),
        ("['a', \n 'b']", ["a", "b"]), ("['a' 'b']", None), ("['a'\n 'b']", None), ("[a]", None),
        ("{'a': 1}", None), ("[" * 10**5, None), ("", None), ("[open('x')]", None),
    ],
)  # fmt: skip
def test_lists_are_read_in_json_and_in_python(value: str, expected: object) -> None:
    assert list_in(value) == expected
