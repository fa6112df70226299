"""Values in the columns of a row: texts, checked, and what a text of csv stands for."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any


def shown(row: Mapping[str, Any], column: str) -> str:
    """Return the start of the column's value."""
    return repr(row[column])[:60] if column in row else "no such column"


def text(row: Mapping[str, Any], column: str) -> str:
    """Return a column with a text."""
    return checked_text(row.get(column), column, shown(row, column))


def checked_text(value: Any, name: str, quoted: str = "") -> str:
    """Return a value that is a text and can be written; a ValueError names it otherwise."""
    if not isinstance(value, str):
        raise ValueError(f"{name!r} must be a text; got {quoted or repr(value)[:60]}")
    return writable(value, name)


def writable(value: str, name: str) -> str:
    """Return a text that can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} holds half of a surrogate pair") from None
    return value


def joined(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return the text of several columns, joined by newlines; what is no text stands as JSON.

    Raises:
        ValueError: a column is missing or null, or holds what cannot be written.
    """
    parts = []
    for column in columns:
        value = row.get(column)
        if value is None:
            names = ", ".join(str(name)[:30] for name in list(row)[:10])
            raise ValueError(f"has no text in column {column!r}; columns are {names}")
        if not isinstance(value, str):
            value = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
        parts.append(writable(value, column))
    return "\n".join(parts)


def truth(value: Any) -> Any:
    """Return true or false for yes or no in any case, else what `literal` does."""
    word = value.strip().lower() if isinstance(value, str) else ""
    return word == "yes" if word in ("yes", "no") else literal(value)


def flag(row: Mapping[str, Any], column: str, optional: bool = False) -> bool | None:
    """Return a column with true, false, yes, no, 1 or 0; `None` where it is null and may be.

    A column that is missing counts as null.
    """
    value = truth(row.get(column))  # csv has only texts
    if value is None and optional:
        return None
    if not isinstance(value, int) or value not in (0, 1):
        legal = "true, false, yes, no, 1, 0 or null" if optional else "true, false, yes, no, 1 or 0"
        raise ValueError(f"{column!r} must be {legal}; got {shown(row, column)}")
    return bool(value)


def list_in(value: str) -> list[Any] | None:
    """Return the list that a text is in JSON or, as pandas writes it, in Python; `None` for none.

    What numpy writes has no commas: Python would join its texts, so it is none.
    """
    value = value.strip()
    for parse in (json.loads, _python):
        try:
            items = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return items if isinstance(items, list) else None
    return None


def _python(value: str) -> Any:
    parsed = ast.literal_eval(value)
    kinds = [t.type for t in tokenize.generate_tokens(io.StringIO(value).readline)
             if t.type != tokenize.NL]  # fmt: skip
    if (tokenize.STRING, tokenize.STRING) in pairwise(kinds):
        raise ValueError("texts without a comma between them")
    return parsed


def literal(value: Any) -> Any:
    """Return the number, true, false or null that a text stands for; other values as they are.

    csv has only texts: "1" and "1.0" are 1, "True" is true, and an empty text is null. A column
    that is meant to hold a text must not be read by this: the answer "42" would become a number.
    """
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value.strip().lower() or "null")
    except ValueError:
        return value
    if isinstance(parsed, float) and parsed.is_integer():
        return int(parsed)
    return value if isinstance(parsed, (str, list, dict)) else parsed
