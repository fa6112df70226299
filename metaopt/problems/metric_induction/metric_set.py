"""A set of metrics as a text, the outer variable: each has a name, a definition and examples.

    <metric name="checks its result">
    Whether the agent tests its result before it answers.
    - It ran the code once more.
    </metric>

The order of the metrics says nothing: whatever is asked of a model, they are in that of their
texts, so that a permutation changes no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_OPEN = r"<metric(?:\s+(?:name|title)\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s>\"']+))?\s*>"
# Up to the next tag, so that a text of opening tags alone is searched once, not for each of them.
_BLOCK = re.compile(rf"{_OPEN}((?:(?!</?metric\b).)*)</metric>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?metric\b", re.IGNORECASE)
_EXAMPLE = re.compile(r"[-*\u2022]\s+(.*)")
_NAME_LABEL = re.compile(r"\W*name\W*:[\s*_]*", re.IGNORECASE)
_LABEL = re.compile(r"\W*(?:definition|examples?)\W*:[\s*_]*", re.IGNORECASE)
LONGEST_NAME = 80


class Metric(NamedTuple):
    """What a judge rates an agent's trajectory by.

    Args:
        name: one line, by which a rewriter refers to it.
        definition: what is rated, in one or more lines.
        examples: of the behaviour, a line each.
    """

    name: str
    definition: str
    examples: tuple[str, ...] = ()


def render(metrics: Iterable[Metric]) -> str:
    """Return the metrics as text, which `parse` reads back; no metric is the empty text.

    One that is there twice, word for word, is written once.

    Raises:
        ValueError: a name or a definition without words or with a tag, or a name that is given
            twice, is longer than `LONGEST_NAME` or has a quotation mark or a line break.
    """
    distinct: dict[str, Metric] = {}
    for metric in metrics:
        name, definition = metric.name.strip(), metric.definition.strip()
        if not name or not definition or _TAG.search(" ".join([definition, *metric.examples])):
            raise ValueError(
                f"a metric needs a name and a definition without a tag such as </metric>; got "
                f"{name[:80]!r}, {definition[:80]!r}."
            )
        if len(name) > LONGEST_NAME or re.search(r"[\"\n\r<>]", name):
            raise ValueError(
                f"a metric's name is one line of at most {LONGEST_NAME} characters without "
                f"quotation marks and tags; got {name[:100]!r}."
            )
        clean = Metric(name, definition, tuple(" ".join(e.split()) for e in metric.examples))
        if distinct.setdefault(name, clean) != clean:
            raise ValueError(f"the name {name!r} is given to two metrics.")
    return "\n".join(map(render_one, distinct.values()))


def render_one(metric: Metric) -> str:
    """Return one metric as text."""
    lines = [metric.definition, *(f"- {example}" for example in metric.examples)]
    return f'<metric name="{metric.name}">\n' + "\n".join(lines) + "\n</metric>"


def parse(text: str) -> list[Metric]:
    """Return the metrics that a text has blocks of, in their order; what stands between is skipped.

    A definition may have more lines; those that begin with a bullet are examples. Where a block
    has no attribute, its first line is the name.

    Raises:
        ValueError: a block without a name, a definition or an end, and what `render` refuses.
    """
    metrics = [_metric(name, body) for name, body in _BLOCK.findall(text)]
    tags = len(_TAG.findall(text))
    if tags != 2 * len(metrics):
        raise ValueError(
            f'each <metric name="..."> needs its </metric>; got {len(metrics)} whole metrics and '
            f"{tags} tags."
        )
    render(metrics)
    return list(dict.fromkeys(metrics))


def canonical(metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics in the order of their texts, in which models are shown them."""
    return sorted(metrics)


def _metric(name: str, body: str) -> Metric:
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    name = name.strip("\"' ")
    if not name and lines:
        name, lines = _unlabelled(_NAME_LABEL, lines[0]).strip(" *#\"':"), lines[1:]
    definition, examples = [], []
    for line in lines:
        if example := _EXAMPLE.fullmatch(line):
            examples.append(" ".join(example[1].split()))
        elif words := _unlabelled(_LABEL, line).strip():
            definition.append(words)
    return Metric(name.strip(), "\n".join(definition), tuple(e for e in examples if e))


def _unlabelled(label: re.Pattern[str], line: str) -> str:
    """Return a line without the label that it begins with: "for example: ..." stays."""
    match = label.match(line)
    return line[match.end() :] if match else line
