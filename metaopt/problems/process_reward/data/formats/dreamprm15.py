"""DreamPRM-1.5: a conversation in which each turn gives a step and is answered + or -."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from metaopt.data.row_texts import text
from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import flag, identifier, listed, texts

HEADING = "### Question:\n"
SOLUTION = "\n\n### Solution Process:\n"


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
