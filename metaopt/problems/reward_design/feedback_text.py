"""What is known of a reward, as text for the coder: process, trajectory and preference feedback.

Each is a title and lines `name: number, number, ...`, in words that a language model reads and
`read_sections` reads back. The kinds are those of CARD (Sun et al., 2025), the words are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Table = Mapping[str, Sequence[float]]
"""Numbers by name, as many of each."""

PROCESS = "Progress of the training under this reward"
TRAJECTORY = "Under this reward, the trained policy's episode of the {which} return"
REJECTED = "This reward was rated on recorded episodes"
PREFERENCE = {
    "success": "The successful episode that this reward rates lowest",
    "failure": "The failed episode that this reward rates highest",
}

SUM = "sum of "
"""What precedes a term in the curve."""

_NUMBER = r"-?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|inf|nan)"
_TITLE = re.compile(r"(.+) \((.*)\):")
_ROW = re.compile(rf"(\S.*): ({_NUMBER}(?:, {_NUMBER})*)")


class Episode(NamedTuple):
    """One episode as a coder is shown it.

    Args:
        success: what the environment says of it.
        length: its steps.
        total: what the reward gives for it: the return, or the mean of a step.
        table: each quantity at some of its steps, which are its first row.
    """

    success: bool
    length: int
    total: float
    table: Table


def process_feedback(curve: Table, terms: Table) -> str:
    """Return the training's curve: success, length and return, then the sum of each term.

    Args:
        curve: "steps", "success", "length" and "return", at most ten points of each.
        terms: what each term has added to the return, its weight included, by its text.
    """
    rows = {**curve, **{SUM + term: values for term, values in terms.items()}}
    count = max(map(len, rows.values()), default=0)
    return "\n".join([f"{PROCESS} (mean episode at {count} points of it):", *_lines(rows)])


def trajectory_feedback(highest: Episode, lowest: Episode) -> str:
    """Return two episodes of the trained policy, quantity by quantity."""
    sections = []
    for which, episode in (("highest", highest), ("lowest", lowest)):
        facts = f"{_outcome(episode)}, return {_number(episode.total)}, {episode.length} steps"
        sections.append(_section(TRAJECTORY.format(which=which), facts, episode))
    return "\n\n".join(sections)


def preference_feedback(
    share: float, threshold: float, worst_success: Episode, best_failure: Episode, per: str
) -> str:
    """Return why a reward failed the test on recorded episodes, with the two that it confuses.

    Args:
        share: of successes, or of pairs, that are ordered correctly.
        threshold: the share that the test asks for.
        worst_success, best_failure: rated lowest and highest.
        per: what rates are of: "step", the mean of a step, or "episode", the sum.
    """
    rate = {"step": "mean reward of a step", "episode": "return"}[per]
    words = (
        f"{REJECTED}, by its {rate}: {share:.0%} of the comparisons put a successful episode above "
        f"a failed one, and {threshold:.0%} are needed."
    ).replace("%", " %")
    sections = [words]
    for outcome, episode in (("success", worst_success), ("failure", best_failure)):
        facts = f"{outcome}, {rate} {_number(episode.total)}, {episode.length} steps"
        sections.append(_section(PREFERENCE[outcome], facts, episode))
    return "\n\n".join(sections)


class Section(NamedTuple):
    """A title with its table, as a message shows it.

    Args:
        title: without what is in its brackets.
        success: of an episode; `None` of anything else.
        table: numbers by name.
    """

    title: str
    success: bool | None
    table: dict[str, list[float]]


def read_sections(text: str) -> list[Section]:
    """Return the sections of a message, in their order; one that is damaged ends where it is."""
    sections: list[Section] = []
    open_section = False
    for line in text.splitlines():
        if title := _TITLE.fullmatch(line):
            outcome = title[2].partition(",")[0]
            success = {"success": True, "failure": False}.get(outcome)
            sections.append(Section(title[1], success, {}))
            open_section = True
        elif open_section and (row := _ROW.fullmatch(line)):
            sections[-1].table[row[1]] = [float(value) for value in row[2].split(", ")]
        else:
            open_section = False
    return sections


def _section(title: str, facts: str, episode: Episode) -> str:
    return "\n".join([f"{title} ({facts}):", *_lines(episode.table)])


def _outcome(episode: Episode) -> str:
    return "success" if episode.success else "failure"


def _lines(table: Table) -> list[str]:
    return [f"{name}: {', '.join(map(_number, values))}" for name, values in table.items()]


def _number(value: float) -> str:
    """Return four digits, or a whole number as it is."""
    value = float(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.4g}"
