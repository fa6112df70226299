"""What judge and meta judge are asked, and how the meta judge's rubrics are read.

A rewrite has three steps. Of each rollout the meta judge writes an analysis, then from the analysis
a refined rubric; then it merges all refined rubrics into one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from metaopt.llm import user
from metaopt.llm.chat import Message
from metaopt.llm.rubric import parse_weights
from metaopt.llm.rubric_items import Item, has_items, parse_items, render_items
from metaopt.problems.meta_policy_optimization.item_scores import PREAMBLE, render

MOST_ITEMS = 12
"""Items that a merged rubric may have."""

ANALYSE = "Analyse how well a rubric has served to grade a response."
REFINE = "Refine a rubric after an analysis of how it was used."
MERGE = "Merge the refinements of a rubric, each made after another response, into one."

_CRITERIA = (
    "Write it between <rubric> and </rubric>, in the form of the current one: a line "
    "'- <criterion>: <weight>' for each criterion, in lower-case words and with a weight of two "
    "decimals, such as +5.00 or -4.00."
)
_ITEMS = (
    "Write it between <rubric> and </rubric>, in the form of the current one: a block for each "
    "item, which is a line '<item points=5>'; then, in at most 300 words, what is judged, what "
    "earns all, half and none of the points, and a short example; then a line '</item>'. Points "
    "are whole numbers, negative ones for what is to be deducted."
)
# Up to the next tag, so that a reply of nothing but opening tags is searched once, not for each.
_RUBRIC = re.compile(r"<rubric>[^\S\n]*\n((?:(?!</?rubric>).)*)\n[^\S\n]*</rubric>", re.DOTALL)
_RESPONSE = re.compile(r"<response score=(none|[-\d.]+)>\n(.*?)\n</response>", re.DOTALL)
_QUERY = re.compile(r"\n\nTask: (.*?)\n\n<rubric>\n", re.DOTALL)
_ANALYSIS = re.compile(r"<analysis>\n(.*?)\n</analysis>", re.DOTALL)
_VOTES = re.compile(r"A criterion that is new needs (\d+) of them")


def judging(rubric: str, query: str, response: str) -> tuple[Message, ...]:
    """Return the question to the judge."""
    return user(f"{rubric}\n\nTask: {query}\n\nResponse:\n{response}")


def judged(message: str) -> tuple[str, str, str]:
    """Return the rubric, the query and the response of what `judging` wrote."""
    rubric, _, rest = message.partition("\n\nTask: ")
    query, _, response = rest.partition("\n\nResponse:\n")
    return rubric, query, response


def judging_item(item: str, weight: float, query: str, response: str) -> tuple[Message, ...]:
    """Return the question to the judge about one item."""
    most = f"{abs(weight):g}"
    none, fully = ("not met", "fully met") if weight > 0 else ("not the case", "fully the case")
    block = render_items([Item(item, abs(weight))])
    return user(
        f"{PREAMBLE}\n{block}\n\nTask: {query}\n\nResponse:\n{response}\n\n"
        f"Judge the response by this item alone: first your reasons, then end with one line: "
        f"Score: <a whole number from 0 ({none}) to {most} ({fully})>"
    )


def asking(criterion: str, weight: float, query: str, response: str) -> tuple[Message, ...]:
    """Return the question whether a response meets one criterion, to be answered yes or no.

    The same whatever its weight, which the probability of yes is multiplied with.
    """
    return user(
        f"Task: {query}\n\nResponse:\n{response}\n\nDoes the response meet this criterion: "
        f"{criterion}? Answer Yes or No."
    )


def analysing(
    rubric: str, query: str, response: str | None, score: float | None
) -> tuple[Message, ...]:
    """Return the question for an analysis; without a response, the one of a blind rewriter."""
    parts = [ANALYSE, f"Task: {query}", f"<rubric>\n{rubric}\n</rubric>"]
    if response is not None:
        stated = "none" if score is None else f"{score:.3f}"
        parts.append(f"<response score={stated}>\n{response}\n</response>")
    parts.append(
        "A policy is being trained to score high under this rubric. What does the response do well "
        "that the rubric does not ask for? What does it do to score high without being good? Which "
        "criteria have nothing to do with how good a response is? Say for each what the rubric "
        "should change."
    )
    return user("\n\n".join(parts))


def refining(rubric: str, analysis: str) -> tuple[Message, ...]:
    """Return the question for a refined rubric."""
    return user(
        f"{REFINE}\n\n<rubric>\n{rubric}\n</rubric>\n\n<analysis>\n{analysis}\n</analysis>\n\n"
        f"Make the changes that the analysis calls for and no others. {_form(rubric)}"
    )


def merging(rubric: str, refinements: Sequence[str], votes: int) -> tuple[Message, ...]:
    """Return the question for the merged rubric.

    Args:
        rubric: the current one.
        refinements: of it.
        votes: refinements that must have a new criterion.
    """
    each = "\n".join(f"<rubric>\n{refinement}\n</rubric>" for refinement in refinements)
    return user(
        f"{MERGE}\n\nThe current rubric:\n<rubric>\n{rubric}\n</rubric>\n\n"
        f"{len(refinements)} refinements of it:\n{each}\n\n"
        f"Keep what most of them agree on, and say what means the same only once. A criterion that "
        f"is new needs {votes} of them; one that half of them have dropped goes; at most "
        f"{MOST_ITEMS} criteria stay. {_form(rubric)}"
    )


def _form(rubric: str) -> str:
    """Return what a rubric in the form of another one looks like."""
    return _ITEMS if has_items(rubric) else _CRITERIA


def shown_rubrics(text: str) -> list[str]:
    """Return the rubrics that a message shows, in their order."""
    return _RUBRIC.findall(text)


def shown_query(text: str) -> str:
    """Return the query that `analysing` shows."""
    match = _QUERY.search(text)
    return match[1] if match else ""


def shown_response(text: str) -> str | None:
    """Return the response that `analysing` shows, or `None`."""
    match = _RESPONSE.search(text)
    return match and match[2]


def shown_analysis(text: str) -> str:
    """Return the analysis that `refining` shows."""
    match = _ANALYSIS.search(text)
    return match[1] if match else ""


def votes_needed(text: str) -> int:
    """Return the votes that `merging` asks of a new criterion."""
    match = _VOTES.search(text)
    return int(match[1]) if match else 1


def read_rubric(text: str, free: bool = False, most: int = MOST_ITEMS) -> str | None:
    """Return the last rubric of a reply in the form of a run's rubrics, or `None` without one.

    A line that begins like an item and is none, an item that is stated twice, a block without an
    end, and more items than `most` make none: part of what was meant would be lost.

    Args:
        text: of the reply.
        free: whether it must have free items, or criteria.
        most: items that it may have.
    """
    rubrics = _RUBRIC.findall(text)
    if not rubrics or has_items(rubrics[-1]) != free:
        return None
    if free:
        return _read_items(rubrics[-1], most)
    weights = parse_weights(rubrics[-1])
    lines = sum(line.lstrip().startswith(("- ", "* ")) for line in rubrics[-1].splitlines())
    if lines != len(weights) or lines > most:
        return None
    try:
        return render(weights)
    except ValueError:
        return None


def _read_items(text: str, most: int) -> str | None:
    try:
        items = parse_items(text)
        return render(dict(items), free=True) if len(items) <= most else None
    except ValueError:
        return None
