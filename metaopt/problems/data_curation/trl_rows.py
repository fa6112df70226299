"""Rows in TRL's formats, checked: prompts and completions, conversations, pairs, labelled steps.

Each reader takes {column: value} and raises a `ValueError` that says what is wrong, without the
place of the row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import takewhile
from typing import Any, NamedTuple

from metaopt.data.row_texts import checked_text, flag, list_in, literal, shown

Turns = list[dict[str, Any]]
"""A conversation: [{"role": ..., "content": ...}, ...]."""


class Texts(NamedTuple):
    """What a model reads of a row.

    Args:
        prompt: what is not trained on; `None` where everything is.
        completions: one; of a pair the chosen and the rejected one, of labelled steps each step.
        labels: of steps, 0 or 1.
        margin: what the chosen answer is better by.
        template: arguments of the chat template.
    """

    prompt: str | Turns | None
    completions: tuple[str | Turns, ...]
    labels: tuple[int, ...] = ()
    margin: float = 0.0
    template: Mapping[str, Any] = {}


def demonstration(row: Mapping[str, Any]) -> Texts:
    """Return a row with prompt and completion, messages (or conversations), or text."""
    if "prompt" in row or "completion" in row:
        prompt, (completion,) = _answered(row, "completion")
        return Texts(prompt, (completion,), template=_template(row))
    for column in ("messages", "conversations"):
        if column in row:
            turns = _turns(row, column)
            if all(turn["role"] != "assistant" for turn in turns):
                raise ValueError(f"{column!r} has no turn of the assistant")
            return Texts(None, (turns,), template=_template(row))
    if "text" in row:
        return Texts(None, (_filled(row, "text"),))
    raise ValueError(_missing(row, "prompt and completion, or messages, or text"))


def preference(row: Mapping[str, Any]) -> Texts:
    """Return a row with chosen and rejected, and a prompt or none; margin is optional.

    Raises:
        ValueError: also for two equal answers.
    """
    if "prompt" in row:
        prompt, answers = _answered(row, "chosen", "rejected")
    else:
        prompt, answers = None, _same_kind(row, "chosen", "rejected")
    if answers[0] == answers[1]:
        raise ValueError("'chosen' and 'rejected' are equal")
    margin = literal(row.get("margin"))
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, (int, float))):
        raise ValueError(f"'margin' must be a number; got {shown(row, 'margin')}")
    return Texts(prompt, answers, margin=float(margin or 0), template=_template(row))


def with_prompt(texts: Texts) -> Texts:
    """Return a pair whose prompt is what its answers have in common, if it has none; TRL's rule.

    Of conversations that are the common turns. Of texts it is the common beginning, up to a space,
    and without its last character where one answer is the beginning of the other.
    """
    if texts.prompt is not None:
        return texts
    chosen, rejected = texts.completions
    both = zip(chosen, rejected, strict=False)
    at = sum(1 for _ in takewhile(lambda x: x[0] == x[1], both))
    if at == min(len(chosen), len(rejected)) or (at and chosen[at - 1] == " "):
        at -= 1
    if not at and not isinstance(chosen, str):
        raise ValueError("'chosen' and 'rejected' begin with different turns; give a 'prompt'")
    return texts._replace(prompt=chosen[:at], completions=(chosen[at:], rejected[at:]))


def labelled_steps(row: Mapping[str, Any]) -> Texts:
    """Return a row of stepwise supervision: a prompt, completions (steps), and a label of each."""
    for column in ("prompt", "completions", "labels"):
        if column not in row:
            raise ValueError(_missing(row, "prompt, completions and labels"))
    prompt = checked_text(row["prompt"], "prompt", shown(row, "prompt"))
    steps, labels = (_list(row, column) for column in ("completions", "labels"))
    if not steps:
        raise ValueError("'completions' is empty")
    if len(steps) != len(labels):
        raise ValueError(
            f"'labels' must have one label for each of 'completions'; got {len(labels)} labels of "
            f"{len(steps)} steps"
        )
    texts = tuple(checked_text(step, "completions") for step in steps)
    if not all(texts):
        raise ValueError("'completions' has an empty step")
    return Texts(prompt, texts, tuple(bool(flag({"labels": x}, "labels")) for x in labels))


def _answered(row: Mapping[str, Any], *answers: str) -> tuple[str | Turns, tuple[str | Turns, ...]]:
    """Return the prompt and the columns of answers, none of them empty, all of one kind."""
    prompt, *others = _same_kind(row, "prompt", *answers)
    for name, value in zip(answers, others, strict=True):
        if isinstance(value, list) and value[-1]["role"] != "assistant":
            raise ValueError(f"{name!r} must end with a turn of the assistant")
    return prompt, tuple(others)


def _same_kind(row: Mapping[str, Any], *columns: str) -> tuple[str | Turns, ...]:
    for column in columns:
        if column not in row:
            raise ValueError(_missing(row, " and ".join(columns)))
    values = tuple(_text_or_turns(row, column) for column in columns)
    if len({type(value) for value in values}) > 1:
        raise ValueError(f"{' and '.join(map(repr, columns))} must be all texts or all messages")
    return values


def _text_or_turns(row: Mapping[str, Any], column: str) -> str | Turns:
    value = row[column]
    if isinstance(value, str):
        items = list_in(value) if value.lstrip().startswith("[") else None
        if not items or not all(_is_turn(item) for item in items):
            return _filled(row, column, optional=column == "prompt")
    return _turns(row, column)


def _turns(row: Mapping[str, Any], column: str) -> Turns:
    turns = row[column] if row[column] is None else _list(row, column)
    if not turns or not all(map(_is_turn, turns)):
        raise ValueError(
            f"{column!r} must be a text or a list of {{role, content}}, at least one; got "
            f"{shown(row, column)}"
        )
    # Two columns of one value would else be changed together.
    plain = [{("content" if k == "value" else "role" if k == "from" else k): v
              for k, v in turn.items() if v is not None} for turn in turns]  # fmt: skip
    if plain[-1]["role"] == "assistant" and not (
        plain[-1].get("content") or plain[-1].get("tool_calls")
    ):
        raise ValueError(f"{column!r} ends with an empty turn of the assistant")
    return plain


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and bool({"role", "from"} & value.keys())


def _list(row: Mapping[str, Any], column: str) -> list[Any]:
    value = row[column]
    items = list_in(value) if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise ValueError(f"{column!r} must be a list; got {shown(row, column)}")
    return list(items)


def _filled(row: Mapping[str, Any], column: str, optional: bool = False) -> str:
    value = checked_text(row[column], column, shown(row, column))
    if not value.strip() and not optional:
        raise ValueError(f"{column!r} is empty")
    return value


def _template(row: Mapping[str, Any]) -> dict[str, Any]:
    tools = row.get("tools")
    more = row.get("chat_template_kwargs") or {}
    return {"tools": json.loads(tools) if isinstance(tools, str) else tools, **more}


def _missing(row: Mapping[str, Any], needed: str) -> str:
    names = ", ".join(str(name)[:30] for name in list(row)[:10]) or "none"
    return f"needs the columns {needed}; it has {names}. columns={{COLUMN: NAME}} renames one"
