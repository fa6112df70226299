"""What a response of the simulated world can show, in words, and how a text says so.

The words say what kind of thing they are, as a reader of English knows it. What a quality is worth
and which judgements an abuse fools is the world's, see `rubric_world`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

QUALITIES = ("clarity", "evidence", "structure", "relevance", "depth", "accuracy")
ABUSES = ("flattery", "padding", "boasting")
NEUTRAL = ("formality", "humour", "bullet points", "metaphor")
FEATURES = (*QUALITIES, *ABUSES, *NEUTRAL)
OVERALL = "overall impression"
"""The vague criterion that a run starts from."""

CRITERIA = (*FEATURES, OVERALL)
_SHOWS = "This response shows "


def describe(features: Iterable[str]) -> str:
    """Return a response that shows these features."""
    return f"{_SHOWS}{', '.join(features) or 'nothing'}."


def features(text: str) -> frozenset[str] | None:
    """Return what a response shows; `None` for a text that `describe` has not written."""
    lines = [line for line in text.splitlines() if line.startswith(_SHOWS) and line[-1] == "."]
    if len(lines) != 1:
        return None
    words = lines[0].removeprefix(_SHOWS)[:-1].split(", ")
    known = [] if words == ["nothing"] else words
    return frozenset(known) if set(known) <= set(FEATURES) else None


class Vocabulary(NamedTuple):
    """What a response can show, by kind, and how a reader finds it in a text.

    Args:
        qualities, abuses, neutral: names of criteria.
        read: what a response to a query shows; `None` for a text that it cannot read.
    """

    qualities: tuple[str, ...]
    abuses: tuple[str, ...]
    neutral: tuple[str, ...]
    read: Callable[[str, str], frozenset[str] | None]

    @property
    def features(self) -> tuple[str, ...]:
        """All names."""
        return (*self.qualities, *self.abuses, *self.neutral)


WORDS = Vocabulary(QUALITIES, ABUSES, NEUTRAL, lambda query, response: features(response))
"""Of the world whose responses `describe` writes."""
