"""A table of texts, as Markdown, LaTeX, plain text, or a table of rich for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_LATEX = str.maketrans(
    {
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
)


def _escape_pipe(cell: str) -> str:
    return cell.replace("|", r"\|")


@dataclass(frozen=True)
class Table:
    """A header and rows as wide as it; the first `words` columns are aligned to the left.

    Where they are not the first ones, `words` is the set of their numbers.

    Example:
        >>> print(Table(["method", "accuracy"], [["MetaRM", "0.71"]]).text())
        method  accuracy
        MetaRM      0.71
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    words: int | Set[int] = 1

    def markdown(self, escape: Callable[[str], str] = _escape_pipe) -> str:
        """Return a Markdown table, under a heading where there is a title."""
        marks = ["---" if self.left(i) else "---:" for i in range(len(self.header))]
        rows = [[escape(cell) for cell in row] for row in (self.header, *self.rows)]
        lines = [f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:])]
        return "\n".join([f"## {self.title}", "", *lines] if self.title else lines)

    def latex(self) -> str:
        """Return a LaTeX table; it needs the package booktabs."""
        sides = "".join("l" if self.left(i) else "r" for i in range(len(self.header)))
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{self.title.translate(_LATEX)}}}",
                rf"\begin{{tabular}}{{{sides}}}",
                r"\toprule",
                _latex_line(self.header),
                r"\midrule",
                *(_latex_line(row) for row in self.rows),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )

    def text(self) -> str:
        """Return lines of aligned columns, two spaces apart."""
        rows = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if self.left(i) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )

    def rich(self) -> RichTable:
        """Return a table of rich, which wraps long cells in a narrow terminal."""
        from rich import box
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        for i, name in enumerate(self.header):
            table.add_column(name, justify="left" if self.left(i) else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def left(self, column: int) -> bool:
        """Return whether a column is aligned to the left."""
        words = range(self.words) if isinstance(self.words, int) else self.words
        return column in words


def _latex_line(row: Sequence[str]) -> str:
    line = " & ".join(cell.translate(_LATEX) for cell in row) + r" \\"
    return "{}" + line if line.startswith("[") else line  # \\[ would read as a length
