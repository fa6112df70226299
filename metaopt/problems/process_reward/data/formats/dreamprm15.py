"""DreamPRM-1.5: a conversation in which each turn gives a step and is answered + or -."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metaopt.problems.process_reward.data.formats.chain import Chain, signs
from metaopt.problems.process_reward.data.formats.columns import (
    flag,
    identifier,
    listed,
    others,
    text,
    texts,
)
from metaopt.problems.process_reward.data.formats.dreamprm import own_id
from metaopt.problems.process_reward.data.formats.refusals import each

COLUMNS = ("id", "image", "conversations")
HEADING = "### Question:\n"
SOLUTION = "\n\n### Solution Process:\n"
SYSTEM = (
    "You supervise a solution step by step. Answer + where it is right up to and with the step "
    "that was shown, and - where it is not."
)


def from_dreamprm15(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a conversation of DreamPRM-1.5, with a label for each answer.

    The first turn is the question and the first step under "### Solution Process:", as in
    VisualPRM400K, or the question alone, with the first step in a turn after it.

    Raises:
        ValueError: says which column or turn is malformed.
    """
    question, steps, answers, kept = _turns(listed(row, "conversations"))
    image = row.get("image")
    kept |= {"id": row.get("id"), "columns": others(row, COLUMNS), "image": image}
    if isinstance(image, str):
        images: tuple[str, ...] = (text(row, "image"),) if image else ()
    else:
        images = texts(row, "image", ())
    return Chain(
        question,
        tuple(steps),
        tuple(float(answer == "+") for answer in answers),
        qid=identifier(row),
        images=images,
        extra={"dreamprm15": kept},
    )


def from_dreamprm15_meta(row: Mapping[str, Any]) -> Chain:
    """Return the chain of a row of DreamPRM-1.5's meta-set: an outcome, and no label of any step.

    Every answer there is "+", a place to score: what is right is `true_false`.

    Raises:
        ValueError: says which column or turn is malformed, a "-" among them.
    """
    chain = from_dreamprm15(others(row, ("true_false",)))
    if 0.0 in chain.labels:
        raise ValueError(
            "a row with 'true_false' answers '+' at every step; its labels are in no turn"
        )
    return Chain(
        chain.prompt,
        chain.steps,
        outcome=flag(row, "true_false"),
        qid=chain.qid,
        images=chain.images,
        extra=chain.extra,
    )


def _turns(turns: Sequence[Any]) -> tuple[str, list[str], list[str], dict[str, Any]]:
    """Return the question, the steps, the answers, and how they were laid out."""
    said: list[tuple[str, str]] = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or turn.get("from") not in ("system", "human", "gpt"):
            raise ValueError(
                f"conversations[{number}] must be {{'from': system, human or gpt, 'value': text}}"
            )
        try:
            said.append((turn["from"], text(turn, "value")))
        except ValueError as reason:
            raise ValueError(f"conversations[{number}]: {reason}") from None
    system = said.pop(0)[1] if said and said[0][0] == "system" else None
    if not said or said[0][0] != "human":
        raise ValueError("conversations must begin with a human turn, the question")
    first = said.pop(0)[1]
    alone = not said or said[0][0] == "human"
    question, cut, step = first.partition(SOLUTION)
    if not alone and not cut:
        raise ValueError(f"the first human turn has no step: {SOLUTION.strip()!r} is not in it")
    if not alone:
        said.insert(0, ("human", step))
    pairs = [who for who, _ in said]
    if pairs != ["human", "gpt"] * (len(said) // 2):
        raise ValueError("after the question each human turn must have one gpt turn after it")
    answers = [value for _, value in said[1::2]]
    if set(answers) - {"+", "-"}:
        raise ValueError(
            f"a gpt turn must be + or -; got {sorted(set(answers) - {'+', '-'})!r:.60}"
        )
    question = first if alone else question
    headed = question.startswith(HEADING)
    kept = {"system": system, "alone": alone, "headed": headed}
    question = question.removeprefix(HEADING)
    return question, [value for _, value in said[0::2]], answers, kept


def to_dreamprm15(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return conversations, laid out as they were read, or as VisualPRM400K's.

    Raises:
        ValueError: chains with an unknown or soft label.
    """
    return each(chains, lambda chain: _row(chain, ["-+"[right] for right in signs(chain)]))


def to_dreamprm15_meta(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return rows of DreamPRM-1.5's meta-set, "+" at every step; labels have no place there.

    Raises:
        ValueError: chains with an unknown outcome.
    """

    def row(chain: Chain) -> dict[str, Any]:
        if chain.outcome is None:
            raise ValueError("its outcome is unknown")
        return {**_row(chain, ["+"] * len(chain.steps)), "true_false": chain.outcome}

    return each(chains, row)


def _row(chain: Chain, answers: Sequence[str]) -> dict[str, Any]:
    default = {"system": SYSTEM, "alone": not chain.steps, "headed": True, "image": None}
    kept = chain.extra.get("dreamprm15", default)
    question = HEADING * kept["headed"] + chain.prompt
    humans = list(chain.steps)
    alone = kept["alone"] or not humans
    if not alone:
        humans[0] = question + SOLUTION + humans[0]
    turns = [("system", kept["system"])] if kept["system"] is not None else []
    turns += [("human", question)] if alone else []
    for human, answer in zip(humans, answers, strict=True):
        turns += [("human", human), ("gpt", answer)]
    image: Any = list(chain.images)
    if isinstance(kept["image"], str) or (kept["image"] is None and len(image) < 2):
        image = image[0] if image else kept["image"]
    return {
        "id": own_id(chain, kept),
        "image": image,
        "conversations": [{"from": who, "value": value} for who, value in turns],
        **kept.get("columns", {}),
    }
