"""Model cards: what a reader has to know about a model that is written to a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""Of a model on the hub."""


class Proportion(NamedTuple):
    """A share of test examples with its confidence interval.

    Args:
        value: the share, in [0, 1].
        low, high: ends of the interval.
        examples: number of test examples, >= 1.
        level: of the interval, in (0, 1).
    """

    value: float
    low: float
    high: float
    examples: int
    level: float = 0.95

    def __str__(self) -> str:
        return (
            f"{self.value:.4f} ({100 * self.level:g} % interval {self.low:.4f} to {self.high:.4f}, "
            f"n = {self.examples})"
        )


class ModelCard(NamedTuple):
    """Data, figures, origin and licence of a model.

    Args:
        data: what it was trained and tested on, in a sentence.
        figures: by name, from data the model was not trained on: numbers, or shares with their
            interval.
        base: id of the model it started from, or "" for none.
        licence: identifier for the hub, or "".
        notes: further paragraphs in Markdown.

    Example:
        >>> card = ModelCard("10,000 pairs", {"accuracy": Proportion(0.7, 0.68, 0.72, 2_000)})
        >>> card.check()
    """

    data: str
    figures: Mapping[str, float | Proportion]
    base: str = ""
    licence: str = ""
    notes: str = ""

    def check(self) -> None:
        """Raise a `ValueError` for a card without data or figures, or with impossible entries."""
        if not self.data.strip() or not self.figures:
            raise ValueError(
                f"a card needs data and figures; got {self.data!r} and {dict(self.figures)}."
            )
        if self.base and not ID.fullmatch(self.base):
            raise ValueError(
                f"a card names the model that it is made of by its id of the hub, such as "
                f"owner/name, since nobody else has the path {self.base!r}; leave base empty."
            )
        for name, x in self.figures.items():
            if not isinstance(x, Proportion):
                continue
            if not 0 <= x.low <= x.value <= x.high <= 1 or x.examples < 1 or not 0 < x.level < 1:
                raise ValueError(
                    f"a card needs 0 <= low <= value <= high <= 1, examples >= 1 and a level in "
                    f"(0, 1); {name} has {tuple(x)}."
                )

    def page(
        self,
        title: str,
        meaning: str,
        usage: str,
        tags: Sequence[str],
        library: Mapping[str, str],
        rows: Mapping[str, object] = {},
    ) -> str:
        """Return the README of the model's folder: front matter, table, and Python to load it.

        Args:
            title: of the page.
            meaning: what the model's output means, in Markdown.
            usage: Python that loads the model and scores with it.
            tags: for the hub.
            library: further front matter, such as {"library_name": "transformers"}.
            rows: of the table, after the card's figures.
        """
        matter = {**library, "base_model": self.base, "license": self.licence}
        front = "\n".join(f"{key}: {value}" for key, value in matter.items() if value)
        tagged = "\n".join(f"- {tag}" for tag in tags)
        cells = {"data": " ".join(self.data.split()).replace("|", "\\|")}
        for name, x in self.figures.items():
            cells[name] = str(x) if isinstance(x, Proportion) else f"{x:.4g}"
        table = "\n".join(f"| {name} | {value} |" for name, value in {**cells, **rows}.items())
        notes = f"\n{self.notes.strip()}\n" if self.notes.strip() else ""
        return (
            f"---\n{front}\ntags:\n{tagged}\n---\n\n# {title}\n\n{meaning.strip()}\n\n"
            f"| | |\n|---|---|\n{table}\n\n```python\n{usage.strip()}\n```\n{notes}"
        )
