"""One row of a source as a preference pair; a `ValueError` says what is wrong, quoting nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import product, takewhile
from typing import Any, NamedTuple

from metaopt.data.row_texts import list_in, literal, writable
from metaopt.problems.reward_model.data.dialogue import ALIASES, common_prompt, turns
from metaopt.problems.reward_model.data.pair import Message, Pair, Text, exchanged

SYNONYMS = {
    "prompt": {"question", "query", "instruction", "input", "problem", "context"},
    "chosen": {"better", "preferred", "winner", "good", "positive", "accepted", "response_w"},
    "rejected": {"worse", "dispreferred", "loser", "bad", "negative", "declined", "response_l"},
}
"""Names that columns of one meaning have elsewhere, for messages only."""

COLUMNS = ("prompt", "chosen", "rejected", "margin", "strength", "section")
"""Columns of pairs. Chosen and rejected are needed; a source without `prompt` (or `messages`, the
prompt as a list of {role, content}) has it in both answers; `subset` is read as `section`."""

LIST = re.compile(r"""\s*\[\s*['"].*\]\s*""", re.DOTALL)
TURNS = re.compile(r"""\s*\[[\s\[]*\{\s*['"](role|content|from|value)['"]""")
"""How a text begins that is meant as a list of texts, or of turns."""


class Row(NamedTuple):
    """What a row says.

    Args:
        pairs: one; or all pairs of a chosen and a rejected answer, where it has several.
        tie: neither answer is preferred.
        cast: an answer was a number or a boolean and was cast to text.
    """

    pairs: tuple[Pair, ...]
    tie: bool = False
    cast: bool = False


def read(row: Any, cells: bool = True) -> Row:
    """Return what a row says, by the columns it has.

    PandaLM: instruction, input, response1, response2, annotator1, ...: 0 for a tie, or 1 or 2.
    LLMBar: input, output_1, output_2, label: 1 or 2.
    JudgeBench: question, response_A, response_B, label: A>B, B>A or, a tie, A=B.
    Pairs: TRL's columns, an answer plain text or a list of {role, content}. A list of texts, or of
    lists of {role, content}, is several answers (as in RewardBench 2 and RM-Bench), each of which
    makes a pair with each of the other side. A text that is a list of {role, content} in JSON or in
    Python is read as the list, and in csv one that is a list of texts.

    Args:
        row: {column: value}.
        cells: whether the row is of csv, in which a list can only be a text.

    Raises:
        ValueError: the row is malformed.
    """
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError(f"is {_kind(row)}, not an object; a row is {{column: value}}")
    if "chosen" in row or "rejected" in row:
        _refuse_labels(row)
        sides = [_answers(row.get(name), name, cells) for name in ("chosen", "rejected")]
        return Row(tuple(_pair(row, chosen, rejected) for chosen, rejected in product(*sides)))
    if "response1" in row or "response2" in row:
        return _pandalm(row)
    if "output_1" in row or "output_2" in row:
        return _llmbar(row)
    if "response_A" in row or "response_B" in row:
        return _judge_bench(row)
    raise ValueError(_no_format(row))


def _no_format(row: Mapping[str, Any]) -> str:
    """Return which columns a row has, those of the formats, and how to rename them."""
    names = ", ".join(str(name)[:30] for name in list(row)[:10])
    given = {
        column: next((name for name in row if str(name).lower() in alike), "NAME")
        for column, alike in SYNONYMS.items()
    }
    renamed = ", ".join(f"{k}: {v}" for k, v in given.items() if k != "prompt" or v != "NAME")
    return (
        f"has no column 'chosen'; columns are {names}. Formats: chosen, rejected (and prompt); "
        f"instruction, response1, response2, annotator1 (PandaLM); input, output_1, output_2, "
        f"label (LLMBar); question, response_A, response_B, label (JudgeBench). "
        f"columns={{{renamed}}} gives the names in the source"
    )


def _answers(value: Any, column: str, cells: bool) -> list[Text]:
    """Return the answers of one side, at least one."""
    value = _parsed(value, column, cells)
    several = isinstance(value, (list, tuple)) and isinstance(next(iter(value), None), (str, list))
    answers = [_text(answer, column) for answer in (value if several else [value])]
    if not all(answers):
        raise ValueError(f"{column!r} is empty")
    if len({_stripped(answer) for answer in answers}) < len(answers):
        raise ValueError(f"{column!r} has an answer twice")
    return answers


def _refuse_labels(row: Mapping[str, Any]) -> None:
    """Refuse answers that are names of columns, or their last letters: A of response_A."""
    others = [str(name).casefold() for name in row if name not in COLUMNS]
    labels = {*others, *(name[-1] for name in others if name[-2:-1] in ("_", "-"))}
    given = [row.get(name) for name in ("chosen", "rejected")]
    if all(isinstance(value, str) and value.strip().casefold() in labels for value in given):
        raise ValueError(
            "'chosen' and 'rejected' name other columns; they must hold the answers themselves"
        )


def _pair(row: Mapping[str, Any], chosen: Text, rejected: Text) -> Pair:
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("'chosen' and 'rejected' are not of the same kind")
    asked = "messages" if row.get("prompt") is None else "prompt"
    prompt: Text
    if row.get(asked) is None:
        prompt, chosen, rejected = common_prompt(chosen, rejected)
    else:
        prompt = _text(row[asked], asked)
        if isinstance(prompt, str) and not isinstance(chosen, str):
            first = Message("user", prompt)
            prompt = () if chosen[0] == rejected[0] == first else (first,)
            if not prompt:
                prompt, chosen, rejected = common_prompt(chosen, rejected)
        elif isinstance(chosen, str) and not isinstance(prompt, str):
            chosen, rejected = ((Message("assistant", str(side)),) for side in (chosen, rejected))
    section = row.get("section", row.get("subset"))
    margin = _number(row, "margin")
    if margin is not None and margin < 0:
        raise ValueError("'margin' must be 0 or more, what chosen is better by; got less")
    pair = Pair(
        prompt,
        chosen,
        rejected,
        margin,
        _number(row, "strength"),
        section if isinstance(section, str) else "",
    )
    return _checked(pair, "chosen", "rejected")


def _pandalm(row: Mapping[str, Any]) -> Row:
    names = "response1", "response2"
    cast = [name for name in names if isinstance(row.get(name), (bool, int, float))]
    row = {**row, **{name: str(row[name]) for name in cast}}
    pair = _two_answers(row, names, "instruction", "input")
    votes = [literal(row[name]) for name in sorted(row) if name.startswith("annotator")]
    if not votes or any(isinstance(vote, bool) or vote not in (0, 1, 2) for vote in votes):
        raise ValueError("'annotator1', ... must be 0 (a tie), 1 or 2")
    wins, losses = votes.count(1), votes.count(2)
    if 2 * losses > len(votes):
        pair, wins, losses = exchanged(pair), losses, wins
    pair = pair._replace(strength=(wins - losses) / len(votes))
    return Row((pair,), tie=2 * wins <= len(votes), cast=bool(cast))


def _llmbar(row: Mapping[str, Any]) -> Row:
    pair = _two_answers(row, ("output_1", "output_2"), "input")
    label = literal(row.get("label"))
    if isinstance(label, bool) or label not in (1, 2):
        raise ValueError("'label' must be 1 or 2")
    return Row((pair if label == 1 else exchanged(pair),))


def _judge_bench(row: Mapping[str, Any]) -> Row:
    pair = _two_answers(row, ("response_A", "response_B"), "question")
    label = row.get("label")
    if label not in ("A>B", "B>A", "A=B", "B=A"):
        raise ValueError("'label' must be A>B, B>A or A=B")
    return Row((exchanged(pair) if label == "B>A" else pair,), tie="=" in label)


def _two_answers(
    row: Mapping[str, Any], answers: tuple[str, str], question: str, more: str = ""
) -> Pair:
    """Return the pair of the columns' texts as conversations, the answers as they stand."""
    asked = [_said(row.get(question), question)]
    if row.get(more) is not None:
        asked.append(_said(row[more], more))
    asked = [part for part in asked if part.strip()]
    if not asked:
        raise ValueError(f"{question!r} is empty")
    first, second = ((Message("assistant", _said(row.get(name), name)),) for name in answers)
    return _checked(Pair((Message("user", "\n\n".join(asked)),), first, second), *answers)


def _parsed(value: Any, column: str, cells: bool = False) -> Any:
    """Return the list that a text stands for, where it is one of turns or, in csv, of texts."""
    if not isinstance(value, str):
        return value
    turns, texts = TURNS.match(value), cells and LIST.fullmatch(value)
    items = list_in(value) if turns or texts else None
    if items and all(isinstance(item, str) for item in items):
        return items
    flat = [turn for item in items or () for turn in (item if isinstance(item, list) else [item])]
    if flat and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in flat):
        return items
    if turns or texts:
        raise ValueError(
            f"{column!r} begins as a list and is none of texts or of {{role, content}} in JSON or "
            f"in Python"
        )
    return value


def _text(value: Any, column: str) -> Text:
    value = _parsed(value, column)
    if not isinstance(value, (list, tuple)):
        return _said(value, column)
    for turn in value:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            # Texts alone do not say whose turn each is: they may as well be alternatives.
            raise ValueError(f"{column!r} must be a text or a list of {{role, content}}")
    return tuple(
        Message(ALIASES.get(turn["role"], turn["role"]), _said(turn.get("content"), column))
        for turn in value
    )


def _said(value: Any, column: str) -> str:
    if value is None:
        raise ValueError(f"{column!r} is missing")
    if not isinstance(value, str):
        raise ValueError(f"{column!r} is {_kind(value)}, not a text")
    return writable(value, column)


def _number(row: Mapping[str, Any], column: str) -> float | None:
    value = literal(row.get(column))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{column!r} must be a finite number; got {_kind(value)}")
    return float(value)


def _checked(pair: Pair, chosen: str, rejected: str) -> Pair:
    """Return the pair, whose answers come from the columns `chosen` and `rejected`."""
    first, second = _stripped(pair.chosen), _stripped(pair.rejected)
    if first == second:  # first, since two equal dialogues leave nothing but their prompt
        raise ValueError(f"{chosen!r} and {rejected!r} are equal")
    for words, column in ((first, chosen), (second, rejected)):
        if not words or not words[-1]:
            raise ValueError(f"{column!r} is empty")
    spoken = [turns(pair.prompt, side) for side in (pair.chosen, pair.rejected)]
    for said, column in zip(spoken, (chosen, rejected), strict=True):
        if said and said[-1].role != "assistant":
            raise ValueError(f"{column!r} must end with the assistant's turn, its answer")
        if said and not said[-1].content:
            raise ValueError(f"{column!r} is empty")
    both = list(zip(*spoken, strict=False))
    common = sum(1 for _ in takewhile(lambda at: at[0] == at[1], both))
    if any(turn.role in ("user", "system") for at in both[common : common + 1] for turn in at):
        raise ValueError(f"{chosen!r} and {rejected!r} answer different questions")
    return pair


def _stripped(text: Text) -> str | tuple[str, ...]:
    return text.strip() if isinstance(text, str) else tuple(m.content.strip() for m in text)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
