"""Texts and tables that fit the width of a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

GAP = 2
"""Columns of the terminal between two of a table."""

NARROWEST = 8
"""Columns that the first one of a table gets on any terminal."""


def shortened(text: str, width: int, both_ends: bool = False) -> str:
    """Return a text that is as wide as given at most, with an ellipsis where it is cut.

    Args:
        text: on one line.
        width: in columns of a terminal.
        both_ends: whether the middle is cut, for names that differ at their end.

    Example:
        >>> shortened("estimator=unroll,seed=3", 15), shortened("estimator=unroll,seed=3", 15, True)
        ('estimator=unro…', 'estim…ll,seed=3')
    """
    if cell_len(text) <= width:
        return text
    if width < 2:
        return ""
    most = 2 * (width - 1) // 3 if both_ends else 0
    end = text[len(text) - most :]
    while cell_len(end) > most:  # of characters that take two columns
        end = end[1:]
    return set_cell_size(text, width - 1 - cell_len(end)) + "…" + end


def rounded(name: str) -> str:
    """Return a cell's name with its drawn numbers to four digits; the folder has all of them.

    Example:
        >>> rounded("estimator=unroll,outer_lr=0.012906392710974313,problem.noise=0.25")
        'estimator=unroll,outer_lr=0.01291,problem.noise=0.25'
    """
    return re.sub(r"\b\d+\.\d{7,}(e[-+]?\d+)?", lambda number: f"{float(number[0]):.4g}", name)


class Column(NamedTuple):
    """A column of a table that fits a terminal.

    Args:
        texts: one for each line.
        least: the columns of the terminal that it needs, where its texts may be shortened.
        optional: whether it may be left out.
        both_ends: see `shortened`.
        right: whether its texts end below each other.
    """

    texts: Sequence[str]
    least: int | None = None
    optional: bool = False
    both_ends: bool = False
    right: bool = False


def fitted(columns: Sequence[Column], width: int) -> list[list[str]]:
    """Return the cells of each line, padded to the widths of their columns.

    What need not be shortened is whole. Optional columns are left out, the last one first, where
    the others have not what they need; what room is left goes to the first columns that lack some.

    Args:
        columns: of equally many texts; one of empty texts is left out.
        width: of the terminal.
    """
    wanted = [max(map(cell_len, column.texts), default=0) for column in columns]
    least = [
        w if c.least is None else min(w, c.least) for c, w in zip(columns, wanted, strict=True)
    ]
    shown = [i for i, w in enumerate(wanted) if w]
    while (room := _room(width, [least[i] for i in shown])) < 0:
        optional = [i for i in shown if columns[i].optional]
        if not optional:
            break
        shown.remove(optional[-1])
    widths = dict(zip(shown, (least[i] for i in shown), strict=True))
    for i in shown:
        more = max(min(wanted[i] - least[i], room), 0)
        widths[i], room = widths[i] + more, room - more
    if room < 0:  # on a terminal that is too narrow for any of this
        widths[shown[0]] = max(widths[shown[0]] + room, min(NARROWEST, wanted[shown[0]]))
    rows = range(len(columns[0].texts)) if columns else ()
    return [[_padded(columns[i], row, widths[i]) for i in shown] for row in rows]


def _room(width: int, widths: Sequence[int]) -> int:
    return width - sum(widths) - GAP * max(len(widths) - 1, 0)


def _padded(column: Column, row: int, width: int) -> str:
    text = shortened(column.texts[row], width, column.both_ends)
    return " " * (width - cell_len(text)) + text if column.right else set_cell_size(text, width)
