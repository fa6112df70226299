"""A titled grid of strings and the three ways to print it: Markdown, LaTeX, a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
}


@dataclass(frozen=True)
class Grid:
    """A title, a header, and rows as wide as the header; the first `names` columns are words."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1

    @property
    def sides(self) -> list[str]:
        """The alignment of each column, "l" or "r"."""
        return ["l" if at < self.names else "r" for at in range(len(self.header))]


def markdown(grid: Grid) -> str:
    """Return the grid as a Markdown table under a heading."""
    marks = ["---" if side == "l" else "---:" for side in grid.sides]
    lines = [_line(grid.header), _line(marks), *(_line(row) for row in grid.rows)]
    return "\n".join([f"## {grid.title}", "", *lines])


def _line(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"


def latex(grid: Grid) -> str:
    """Return the grid as a LaTeX table; it needs the package booktabs."""
    body = [_latex_line(row) for row in grid.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(grid.title)}}}",
            rf"\begin{{tabular}}{{{''.join(grid.sides)}}}",
            r"\toprule",
            _latex_line(grid.header),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_line(row: Sequence[str]) -> str:
    line = " & ".join(escape(cell) for cell in row) + r" \\"
    return "{}" + line if line.startswith("[") else line  # \\[ would read as a length


def escape(text: str) -> str:
    """Return the text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def terminal(grid: Grid) -> Table:
    """Return the grid as a table of rich."""
    table = Table(title=grid.title, title_justify="left", box=box.SIMPLE_HEAD)
    for name, side in zip(grid.header, grid.sides, strict=True):
        table.add_column(name, justify="left" if side == "l" else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*row)
    return table
