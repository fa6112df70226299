"""DreamPRM and DreamPRM-1.5: training rows with step labels, and meta rows with outcomes.

A training row of DreamPRM (Cao et al., NeurIPS 2025) is one prefix of a chain; one of DreamPRM-1.5
(Cao et al., 2025) is a conversation in which each turn gives a step and is answered + or -.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from metaopt.data.row_texts import flag, text
from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import (
    count,
    identifier,
    listed,
    optional,
    share,
    texts,
)

TOLERANCE = 1e-3
"""Largest difference of `accuracy` and score / times, which the release rounds."""

ANSWER = re.compile(r"^[ \t]*(?:[#>*_-]+[ \t]*)*final answer", re.MULTILINE | re.IGNORECASE)

HEADING = "### Question:\n"
SOLUTION = "\n\n### Solution Process:\n"


class Prefix(NamedTuple):
    """One training row: the first steps of a chain.

    Args:
        question: what the rows of one question share: domain, name, text and image.
        number: the row's `sid`; `None` where it has none.
        add: the text of the steps.
        label: share of rollouts that ended right.
        score: how many.
        times: of how many.
    """

    question: tuple[str, ...]
    number: int | None
    add: str
    label: float
    score: int | None
    times: int | None


def from_prefix(row: Mapping[str, Any]) -> Prefix:
    """Return the prefix of a row of DreamPRM's train.json.

    Raises:
        ValueError: says which column is malformed; `accuracy` must be score / times to within
            0.001 where all three are there.
    """
    score, times = count(row.get("score"), "score"), count(row.get("times"), "times")
    label = share(row.get("accuracy"), "accuracy")
    if (score is None) != (times is None):
        raise ValueError("'score' and 'times' must be given together")
    if score is not None and times is not None:
        if not 0 <= score <= times or times == 0:
            raise ValueError(f"'score' must be 0 to 'times' (1 or more); got {score} of {times}")
        if label is None:
            label = score / times
        if abs(label - score / times) > TOLERANCE:
            raise ValueError(f"'accuracy' is {label}, but score / times is {score} / {times}")
    if label is None:
        raise ValueError("has neither 'accuracy' nor 'score' and 'times'")
    add = text(row, "add")
    if not add.strip():
        raise ValueError("'add' is empty: the response has no such step")
    question = (
        optional(row, "dataset"),
        identifier(row),
        text(row, "input"),
        optional(row, "image_path"),
    )
    return Prefix(question, count(row.get("sid"), "sid"), add, label, score, times)


def join_prefixes(prefixes: Iterable[Prefix]) -> list[Chain]:
    """Return the chains of prefixes, in the order of their first rows.

    Prefixes of one question belong to one chain while each begins with the one before; a step is
    what a prefix adds to it. Where rows of a chain are missing, a step is the text of several.
    """
    by_question: dict[tuple[str, ...], list[Prefix]] = {}
    for prefix in prefixes:
        by_question.setdefault(prefix.question, []).append(prefix)
    chains: list[Chain] = []
    for rows in by_question.values():
        rows.sort(key=lambda prefix: len(prefix.add) if prefix.number is None else prefix.number)
        growing: list[list[Prefix]] = []
        for prefix in rows:
            for chain in growing:
                last = chain[-1]
                later = prefix.number is None or last.number is None or prefix.number > last.number
                if later and prefix.add.startswith(last.add) and len(prefix.add) > len(last.add):
                    chain.append(prefix)
                    break
            else:
                growing.append([prefix])
        chains += map(_chain, growing)
    return chains


def _chain(rows: Sequence[Prefix]) -> Chain:
    starts = [0, *(len(prefix.add) for prefix in rows)]
    counted = any(prefix.times is not None for prefix in rows)
    domain, name, question, image = rows[0].question
    return Chain(
        question,
        tuple(p.add[start:].strip() for p, start in zip(rows, starts, strict=False)),
        tuple(prefix.label for prefix in rows),
        tuple(prefix.score for prefix in rows) if counted else (),
        tuple(prefix.times for prefix in rows) if counted else (),
        qid=name,
        domain=domain,
        images=(image,) if image else (),
    )


def from_dreamprm_meta(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a row of DreamPRM's meta.json: an outcome, and no label of any step.

    `input` holds the question and the response, or the question alone where `response` is a column
    of its own. A step begins at a line "Step 1", "Step 2", ...; the line "Final answer" and what
    follows are not a step. A row whose response is missing has no steps: in the released file 372
    of 500 are so, every one of the wrong chains among them, and `meta_set` refuses them.

    Raises:
        ValueError: says which column is malformed.
    """
    outcome = flag(row, "true_false")
    given = text(row, "input")
    apart = row.get("response") is not None
    whole = text(row, "response") if apart else given
    starts = _headings(whole)
    end = len(whole)
    if starts:
        answer = ANSWER.search(whole, starts[-1])
        end = answer.start() if answer else end
    bounds = [*starts, end]
    image = optional(row, "image_path")
    return Chain(
        given if apart else whole[: bounds[0]].strip(),
        tuple(whole[a:b].strip() for a, b in pairwise(bounds)),
        outcome=outcome,
        qid=identifier(row),
        images=(image,) if image else (),
    )


def _headings(text: str) -> list[int]:
    """Return where steps 1, 2, 3, ... begin: at the start of a line, marked up or not."""
    starts: list[int] = []
    while True:
        heading = re.compile(
            rf"^[ \t]*(?:[#>*_-]+[ \t]*)*step[\s:]*{len(starts) + 1}\b",
            re.MULTILINE | re.IGNORECASE,
        )
        match = heading.search(text, starts[-1] + 1 if starts else 0)
        if match is None:
            return starts
        starts.append(match.start())


def from_dreamprm15(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a conversation of DreamPRM-1.5, with a label for each answer.

    The first turn is the question and the first step under "### Solution Process:", as in
    VisualPRM400K, or the question alone, with the first step in a turn after it.

    Raises:
        ValueError: says which column or turn is malformed.
    """
    question, steps, answers = _turns(listed(row, "conversations"))
    image = row.get("image")
    if isinstance(image, str):
        images: tuple[str, ...] = (text(row, "image"),) if image else ()
    else:
        images = texts(row, "image", ())
    labels = tuple(float(answer == "+") for answer in answers)
    return Chain(question, tuple(steps), labels, qid=identifier(row), images=images)


def from_dreamprm15_meta(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a row of DreamPRM-1.5's meta-set: an outcome, and no label of any step.

    Every answer there is "+", a place to score: what is right is `true_false`.

    Raises:
        ValueError: says which column or turn is malformed, a "-" among them.
    """
    chain = from_dreamprm15(row)
    if 0.0 in chain.labels:
        raise ValueError(
            "a row with 'true_false' answers '+' at every step; its labels are in no turn"
        )
    return replace(chain, labels=(), outcome=flag(row, "true_false"))


def _turns(turns: Sequence[Any]) -> tuple[str, list[str], list[str]]:
    """Return the question, the steps and the answers."""
    rest: list[tuple[str, str]] = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or turn.get("from") not in ("system", "human", "gpt"):
            raise ValueError(
                f"conversations[{number}] must be {{'from': system, human or gpt, 'value': text}}"
            )
        try:
            rest.append((turn["from"], text(turn, "value")))
        except ValueError as reason:
            raise ValueError(f"conversations[{number}]: {reason}") from None
    if rest and rest[0][0] == "system":
        rest.pop(0)
    if not rest or rest[0][0] != "human":
        raise ValueError("conversations must begin with a human turn, the question")
    first = rest.pop(0)[1]
    alone = not rest or rest[0][0] == "human"
    question, cut, step = first.partition(SOLUTION)
    if not alone and not cut:
        raise ValueError(f"the first human turn has no step: {SOLUTION.strip()!r} is not in it")
    if not alone:
        rest.insert(0, ("human", step))
    if [speaker for speaker, _ in rest] != ["human", "gpt"] * (len(rest) // 2):
        raise ValueError("after the question each human turn must have one gpt turn after it")
    answers = [value for _, value in rest[1::2]]
    if set(answers) - {"+", "-"}:
        raise ValueError(
            f"a gpt turn must be + or -; got {sorted(set(answers) - {'+', '-'})!r:.60}"
        )
    question = (first if alone else question).removeprefix(HEADING)
    return question, [value for _, value in rest[0::2]], answers
