"""Texts in the columns of a row, checked: every function raises a ValueError that names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shown(row: Mapping[str, Any], column: str) -> str:
    """Return the start of the column's value."""
    return repr(row[column])[:60] if column in row else "no such column"


def text(row: Mapping[str, Any], column: str) -> str:
    """Return a column with a text."""
    return checked_text(row.get(column), column, shown(row, column))


def checked_text(value: Any, name: str, seen: str = "") -> str:
    """Return a value that is a text and can be written."""
    if not isinstance(value, str):
        raise ValueError(f"{name!r} must be a text; got {seen or repr(value)[:60]}")
    return writable(value, name)


def writable(value: str, name: str) -> str:
    """Return a text that can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} holds half of a surrogate pair") from None
    return value
