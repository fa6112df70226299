"""The two writers of the canary world: one varies prompts, one rewrites rubrics.

Both read nothing but their message, as a language model would: the first follows the order of the
prompts it is shown, the second the alignment of the templates and, where it sees them, the
responses that the judge got wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from metaopt.llm.chat import Message
from metaopt.llm.rubric import Rubric, parse
from metaopt.problems.template_evolution.prompts import Example, shown_examples, shown_templates

_SHOWN = re.compile(r"^\[(?:none|[\d.]+)\] (query \d+: .*)$", re.MULTILINE)
_COUNT = re.compile(r"Write (\d+) new prompts")

TOKENS = tuple(
    first + second
    for first in ("ba", "do", "fi", "ku", "le", "mo")
    for second in ("nar", "sil", "tup", "vek")
)
"""What prompts are made of; none of them means anything."""

TRAIT = re.compile(r"([a-z]+) (\d\.\d\d)")
"""A trait of a response, with its level."""


def vary(role: str, messages: Sequence[Message], key: int) -> str:
    """Return new prompts: a shown one, better ranks likelier, crossed with another and mutated."""
    text = messages[-1]["content"]
    shown = [line.partition(": ") for line in _SHOWN.findall(text)]
    if not shown:
        return "there is nothing to vary"
    count = int(_COUNT.search(text)[1])  # type: ignore[index]
    draw = np.random.default_rng(key)
    rank = 0.6 ** np.arange(len(shown))
    lines = []
    for _ in range(count):
        i, j = draw.choice(len(shown), size=2, p=rank / rank.sum())
        first, second = shown[i][2].split(), shown[j][2].split()
        cross = draw.random(len(first)) < 0.3
        tokens = [b if c else a for a, b, c in zip(first, second, cross, strict=True)]
        for _ in range(1 + int(draw.random() < 0.3)):
            tokens[draw.integers(len(tokens))] = TOKENS[draw.integers(len(TOKENS))]
        lines.append(f"- {shown[i][0]}: {' '.join(tokens)}")
    return "\n".join(lines)


def rewrite(role: str, messages: Sequence[Message], key: int) -> str:
    """Return a rubric near one of those shown; towards the examples where there are some."""
    text = messages[-1]["content"]
    templates, examples = shown_templates(text), shown_examples(text)
    draw = np.random.default_rng(key)
    if examples:
        rubric = parse(templates[0][0])
        weights = _towards(dict(rubric.weights), examples, draw)
        strictness = rubric.strictness + 0.3 * draw.standard_normal()
    else:
        rank = 0.6 ** np.arange(len(templates))
        rubric = parse(templates[draw.choice(len(templates), p=rank / rank.sum())][0])
        weights = dict(rubric.weights)
        for name in draw.choice(list(weights), size=2, replace=False):
            weights[str(name)] += draw.standard_normal()
        strictness = rubric.strictness + 0.7 * draw.standard_normal()
    rewritten = Rubric(weights, float(strictness), rubric.preamble)
    return f"<template>\n{rewritten.render()}\n</template>"


def _towards(
    weights: dict[str, float], examples: Sequence[Example], draw: np.random.Generator
) -> dict[str, float]:
    """Return weights moved along the difference of the mean traits of successes and failures."""
    traits = [{n: float(v) for n, v in TRAIT.findall(e.response)} for e in examples]
    signs = np.array([1.0 if e.outcome else -1.0 for e in examples])
    for name in weights:
        values = np.array([t.get(name, 0.5) for t in traits]) - 0.5
        sides = [values[signs == s].mean() * s for s in (1.0, -1.0) if (signs == s).any()]
        weights[name] += 4 * float(np.sum(sides)) + 0.4 * draw.standard_normal()
    return weights
