"""What the four roles of template evolution are asked, and how their answers are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from metaopt.llm import user
from metaopt.llm.chat import Message


class Example(NamedTuple):
    """A response on which a judge and the truth can be compared.

    Args:
        response: the text that was judged.
        score: the judge's score, or `None` when it gave none.
        outcome: whether the response met its objective.
    """

    response: str
    score: float | None
    outcome: bool


def judging(template: str, query: str, response: str) -> tuple[Message, ...]:
    """Return the question to the judge: template, objective, response; never the prompt."""
    return user(f"{template}\n\nObjective: {query}\n\nResponse:\n{response}")


def checking(query: str, response: str) -> tuple[Message, ...]:
    """Return the question to the checker."""
    return user(
        f"Objective: {query}\n\nResponse:\n{response}\n\n"
        "Does the response meet the objective? Answer with one word: yes or no."
    )


def read_verdict(text: str | None) -> bool | None:
    """Return what the checker's answer says; `None` when it is neither yes nor no."""
    word = (text or "").strip().rstrip(".").lower()
    return {"yes": True, "no": False}.get(word)


def prompting(
    query: str, shown: Sequence[tuple[str, float | None]], count: int, instruction: str
) -> tuple[Message, ...]:
    """Return the question to the optimizer: the best (prompt, score) pairs, best first."""
    lines = [f"[{'none' if s is None else f'{s:.1f}'}] {prompt}" for prompt, s in shown]
    return user(
        f"{instruction}\nObjective: {query}\n\nPrompts tried with their scores, best first:\n"
        + "\n".join(lines)
        + f"\n\nWrite {count} new prompts, each on a line of its own that starts with '- '."
    )


def read_prompts(text: str, count: int) -> list[str]:
    """Return up to `count` different prompts of the optimizer's answer, in its order."""
    lines = [line.strip()[2:].strip() for line in text.splitlines() if line.strip()[:2] == "- "]
    return list(dict.fromkeys(line for line in lines if line))[:count]


def rewriting(
    templates: Sequence[tuple[str, float]], examples: Sequence[Example]
) -> tuple[Message, ...]:
    """Return the question to the template model.

    Args:
        templates: (template, alignment) pairs, best first; alignment is higher for better.
        examples: responses that the first of them misjudged; empty for a blind rewriter.
    """
    shown = [f"<template alignment={a:.1f}>\n{t}\n</template>" for t, a in templates]
    parts = [
        "A judge scores responses by a template. Alignment says how well its scores agreed with "
        "the true outcomes when it was used, from 0 to 100. Templates tried, best first:",
        *shown,
    ]
    if examples:
        parts.append("Responses that the judge with the first template misjudged most:")
        parts += [
            f"<response outcome={'success' if e.outcome else 'failure'} "
            f"score={'none' if e.score is None else f'{e.score:.1f}'}>\n{e.response}\n</response>"
            for e in examples
        ]
    parts.append(
        "Write one better template, of the same form and with the same last two lines, between "
        "<template> and </template>."
    )
    return user("\n".join(parts))


def quotes(text: str, responses: Sequence[str], length: int = 24) -> bool:
    """Return whether the text repeats `length` characters of a response in a row."""
    return any(
        response[i : i + length] in text
        for response in responses
        for i in range(len(response) - length + 1)
    )


_TEMPLATE = re.compile(r"<template[^>]*>\n(.*?)\n</template>", re.DOTALL)
_SHOWN = re.compile(r"<template alignment=([\d.]+)>\n(.*?)\n</template>", re.DOTALL)
_RESPONSE = re.compile(
    r"<response outcome=(success|failure) score=(none|[\d.]+)>\n(.*?)\n</response>", re.DOTALL
)


def read_template(text: str) -> str | None:
    """Return the last template of the rewriter's answer, or `None`."""
    templates = _TEMPLATE.findall(text)
    return templates[-1].strip() if templates and templates[-1].strip() else None


def shown_templates(text: str) -> list[tuple[str, float]]:
    """Return the (template, alignment) pairs of what `rewriting` wrote."""
    return [(template, float(alignment)) for alignment, template in _SHOWN.findall(text)]


def shown_examples(text: str) -> list[Example]:
    """Return the examples of what `rewriting` wrote."""
    return [
        Example(response, None if score == "none" else float(score), outcome == "success")
        for outcome, score, response in _RESPONSE.findall(text)
    ]
