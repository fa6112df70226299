"""Columns of a row, checked: every function raises a ValueError that names column and value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metaopt.data.row_texts import checked_text, list_in, literal, shown, text

MISSING: Any = object()


class Renaming:
    """Gives the columns of rows the names that the formats know.

    Args:
        columns: {column of a format: its name in the source}; rows without it stay as they are.

    Attributes:
        unused: those of which no row has had the column so far.
    """

    def __init__(self, columns: Mapping[str, str] | None = None) -> None:
        self.columns = dict(columns or {})
        self.unused = dict(self.columns)

    def __call__(self, row: Any) -> Any:
        """Return the row under the formats' names."""
        if not isinstance(row, Mapping):
            return row
        names = {key: name for key, name in self.columns.items() if name in row}
        for key in names:
            self.unused.pop(key, None)
        # The source's names go: with them a row could be taken for another format.
        rest = {key: value for key, value in row.items() if key not in names.values()}
        return rest | {key: row[name] for key, name in names.items()}

    def said(self, row: Any) -> str:
        """Return which columns of a row have another name in the source, for a message."""
        known = self.columns.items() if isinstance(row, Mapping) else ()
        names = [f"{key!r} is {name!r}" for key, name in known if name in row]
        return f" (in the source {', '.join(names)})" if names else ""

    def refuse_unused(self) -> None:
        """Raise a `ValueError` where no row of any source had a column that is to be renamed."""
        if self.unused:
            listed = ", ".join(f"{key}: {name}" for key, name in self.unused.items())
            raise ValueError(
                f"columns={{{listed}}}: no row has such a column; give {{column of a format: its "
                f"name in the source}}."
            )


def optional(row: Mapping[str, Any], column: str) -> str:
    """Return a column with a text, or "" where it is missing or null."""
    return "" if row.get(column) is None else text(row, column)


def listed(row: Mapping[str, Any], column: str, default: Any = MISSING) -> Sequence[Any]:
    """Return a column with a list, or the default where it is missing or null.

    A text that is a list in JSON or in Python, as csv has it, is that list.
    """
    value = row.get(column)
    if isinstance(value, str) and (parsed := list_in(value)) is not None:
        row = {**row, column: parsed}
    items: Sequence[Any] = _checked(
        row, column, "a list", default, lambda value: isinstance(value, (list, tuple))
    )
    return items


def texts(row: Mapping[str, Any], column: str, default: Any = MISSING) -> tuple[str, ...]:
    """Return a column with a list of texts, or the default where it is missing or null."""
    return tuple(checked_text(x, column) for x in listed(row, column, default))


def mapping(row: Mapping[str, Any], column: str) -> Mapping[str, Any]:
    """Return a column with an object."""
    fields: Mapping[str, Any] = _checked(
        row, column, "an object", MISSING, lambda value: isinstance(value, Mapping)
    )
    return fields


def _checked(
    row: Mapping[str, Any], column: str, legal: str, default: Any, fits: Callable[[Any], bool]
) -> Any:
    """Return a column's value if it fits, or the default where it is missing or null."""
    value = row.get(column)
    if value is None and default is not MISSING:
        return default
    if not fits(value):
        raise ValueError(f"{column!r} must be {legal}; got {shown(row, column)}")
    return value


def count(value: Any, name: str) -> int | None:
    """Return a count, or `None` for null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise ValueError(f"{name!r} must be a whole number or null; got {value!r:.60}")
    return int(value)


def share(value: Any, name: str) -> float | None:
    """Return a number in [0, 1], or `None` for null."""
    if value is None:
        return None
    if not isinstance(value, (bool, int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name!r} must be in [0, 1], true, false or null; got {value!r:.60}")
    return float(value)


def index(row: Mapping[str, Any], column: str, length: int, none: Any) -> int | None:
    """Return a column with a position in a list, or `None` for the value that means none."""
    value = literal(row.get(column, MISSING))  # csv has only texts
    if value is none or (none is not None and value == none):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < length:
        hint = ", which is none; are the steps counted from 1?" if value == length else ""
        raise ValueError(
            f"{column!r} must be {none} or a step's index, 0 to {length - 1}; "
            f"got {shown(row, column)}{hint}"
        )
    return value


def identifier(row: Mapping[str, Any], column: str = "id") -> str:
    """Return a column with a text or a number as a text, or "" where it is missing or null."""
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{column!r} must be a text or a number; got {shown(row, column)}")
    return checked_text(str(value), column)
