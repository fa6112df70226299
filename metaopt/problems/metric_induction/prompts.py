"""What each role is asked, and what its reply says.

A simulated role reads the same messages (`shown_...`), and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metaopt.llm import user
from metaopt.llm.chat import Message
from metaopt.llm.score_replies import FENCE
from metaopt.problems.metric_induction.metric_set import Metric, parse, render, render_one

EXTRACT = "Split a person's feedback on a run of an agent into its aspects."
JUDGE = "Rate a run of an agent on one metric."
GROUND = "Say which trait of a run each aspect of a person's feedback speaks about."
REWRITE = "Write new metrics that rate runs of an agent."
NONE_YET = "There is no metric yet."

_MARK = r"[\s*_`#>()\[\].-]*"
_MARKS = re.compile(_MARK)
# Of what stands behind the marks of a line (`_bare`): no two runs of marks that meet, so that a
# line is read in linear time, and no number that is too long for `int`.
_ASPECT = re.compile(rf"(?:\d+[.):]{_MARK})?(good|bad)\b{_MARK}:(.+)", re.IGNORECASE)
_RATING = re.compile(
    rf"{_MARK}(?:(?:final|overall)\s+)?(?:rating|score)\b{_MARK}[:=][\s*_`(\[]*([+-]?[01])(?:\.0+)?"
    r"[\s*_`)\].]*",
    re.IGNORECASE,
)
_MATCH = re.compile(
    rf"(?:aspect\s*)?#?(\d{{1,6}})[\s*_`#()\[\].]*(?::|=>?|-{{1,3}}>|\u2192){_MARK}(?:trait\s*)?#?"
    r"(\d{1,6}|none|no(?:\s+trait)?|null)\b.*",
    re.IGNORECASE,
)
_DROP = re.compile(rf"drop\b{_MARK}:(.+)", re.IGNORECASE)
_NO_ASPECT = re.compile(r"\W*(?:none|no aspects?)\W*", re.IGNORECASE)
_FEEDBACK = re.compile(r"<feedback>\n(.*?)\n</feedback>", re.DOTALL)
_TRAJECTORY = re.compile(r"<trajectory>\n(.*?)\n</trajectory>", re.DOTALL)
_LISTED = re.compile(r"^(\d+)\. \((good|bad)\) (.*)$", re.MULTILINE)
_UNCOVERED = re.compile(r"^- \((good|bad)\) (.*)$", re.MULTILINE)
_UNMATCHED = re.compile(r"^- (.+): (\d+) of (\d+)$", re.MULTILINE)
_COUNT = re.compile(r"^Write (?:exactly|at most) (\d+) new metrics", re.MULTILINE)
_MOST = re.compile(r"no more than (\d+) metrics")

ASPECTS, TRAITS = "Aspects of the feedback:", "Traits of the run:"
UNCOVERED, UNMATCHED = "covers:", "Ratings that no feedback speaks of:"


class Aspect(NamedTuple):
    """A behaviour that feedback praises (+1) or criticises (-1), in words."""

    text: str
    sign: int


Ratings = Mapping[str, tuple[int, int]]
"""By the name of a metric: its traits that no aspect is matched to, and all of its traits."""


def word(sign: int) -> str:
    """Return how a sign is written in messages."""
    return "good" if sign > 0 else "bad"


def extracting(feedback: str) -> tuple[Message, ...]:
    """Return the question for the aspects of a feedback."""
    return user(
        f"{EXTRACT} An aspect is one behaviour that the person praises or criticises. Write one "
        "line for each, 'good: <behaviour>' or 'bad: <behaviour>', in the words of the feedback; "
        f"where it has no aspect, write 'none'.\n\n<feedback>\n{feedback}\n</feedback>"
    )


def read_aspects(reply: str) -> list[Aspect] | None:
    """Return the aspects that a reply lists; `None` where it lists none and does not say so."""
    lines = [line for line in reply.splitlines() if line.strip() and not FENCE.fullmatch(line)]
    matches = [match for line in lines if (match := _ASPECT.fullmatch(_bare(line)))]
    aspects = [Aspect(_bare(m[2]).strip(), 1 if m[1].lower() == "good" else -1) for m in matches]
    if not aspects and not (lines and _NO_ASPECT.fullmatch(lines[-1])):
        return None
    return list(dict.fromkeys(aspect for aspect in aspects if aspect.text))


def judging(metric: Metric, trajectory: str) -> tuple[Message, ...]:
    """Return the question for the rating of one trajectory on one metric."""
    return user(
        f"{JUDGE}\n\n{render_one(metric)}\n\n<trajectory>\n{trajectory}\n</trajectory>\n\n"
        "First your reasons, then end with one line 'Rating: +1' if the run shows good behaviour "
        "in the sense of the metric, 'Rating: -1' if it shows bad behaviour, or 'Rating: 0' if the "
        "metric has nothing to do with this run."
    )


def read_rating(reply: str) -> int | None:
    """Return the rating that a reply ends with, -1, 0 or +1; `None` where it states none.

    Other lines that state a rating must state the same one.
    """
    lines = [line for line in reply.replace("\u2212", "-").splitlines() if line.strip()]
    lines = [line for line in lines if not FENCE.fullmatch(line.strip())]
    if not lines or not (last := _RATING.fullmatch(lines[-1])):
        return None
    stated = {int(match[1]) for line in lines if (match := _RATING.fullmatch(line))}
    return int(last[1]) if len(stated) == 1 else None


def grounding(
    aspects: Sequence[Aspect], traits: Sequence[tuple[Metric, int]]
) -> tuple[Message, ...]:
    """Return the question which trait each aspect speaks about.

    Args:
        aspects: of one feedback.
        traits: metrics with a rating of the same trajectory of +1 or -1.
    """
    said = [f"{i}. ({word(a.sign)}) {a.text}" for i, a in enumerate(aspects, 1)]
    rated = [
        f"{i}. ({word(sign)}) {metric.name}: {' '.join(metric.definition.split())}"
        for i, (metric, sign) in enumerate(traits, 1)
    ]
    return user(
        "\n".join([f"{GROUND}\n\n{ASPECTS}", *said, f"\n{TRAITS}", *rated])
        + "\n\nAn aspect can only be matched to a trait that is good where the aspect is good, and "
        "bad where it is bad. Write one line for each aspect: its number, a colon, and the number "
        "of the one trait that says the same, or 'none'; for example '1: 3' or '2: none'."
    )


def read_matches(reply: str, aspects: int, traits: int) -> list[int | None] | None:
    """Return the index of the trait of each aspect, from 0, or `None` for no trait.

    `None` for the reply where an aspect has no line, or two that differ, or a trait that is not
    there.
    """
    stated: dict[int, int | None] = {}
    for line in reply.splitlines():
        if match := _MATCH.fullmatch(_bare(line)):
            number = int(match[1])
            trait = int(match[2]) - 1 if match[2].isdigit() else None
            trait = None if trait == -1 else trait
            if stated.setdefault(number, trait) != trait or (trait or 0) >= traits:
                return None
    if stated.keys() != set(range(1, aspects + 1)):
        return None
    return [stated[number] for number in range(1, aspects + 1)]


def rewriting(
    metrics: Sequence[Metric],
    uncovered: Sequence[Aspect],
    counted: tuple[int, int],
    unmatched: Ratings | None,
    new: int,
    most: int,
) -> tuple[Message, ...]:
    """Return the question for new metrics.

    Args:
        metrics: in force.
        uncovered: aspects that no trait is matched to, or a sample of them.
        counted: how many of the aspects are uncovered, and how many there are.
        unmatched: by the name of a metric; `None` where the rewriter is not shown them and can
            drop nothing.
        new: metrics that it may write.
        most: metrics that a set may have.
    """
    parts = [
        REWRITE,
        f"The metrics in force:\n{render(metrics)}" if metrics else NONE_YET,
        f"{len(uncovered)} of the {counted[0]} aspects, out of {counted[1]}, that no metric "
        f"{UNCOVERED}\n" + "\n".join(f"- ({word(a.sign)}) {a.text}" for a in uncovered),
    ]
    amount = "exactly" if unmatched is None else "at most"
    task = (
        f"Write {amount} {new} new metrics for what these aspects have in common, each as a block "
        "<metric name=\"...\">, a definition of what is rated, lines '- <example>' of the "
        "behaviour, and </metric>. A new metric may not have the name of one in force."
    )
    if unmatched is not None:
        listed = [f"- {name}: {count} of {of}" for name, (count, of) in unmatched.items()]
        parts += ["\n".join([UNMATCHED, *listed])] if listed else []
        task += (
            " A metric whose ratings hardly any feedback speaks of can go: write a line "
            f"'Drop: <its name>'. In the end there are no more than {most} metrics."
        )
    return user("\n\n".join([*parts, task]))


def read_rewrite(reply: str, metrics: Sequence[Metric], drops: bool, most: int) -> str | None:
    """Return the set after the changes that a reply calls for; `None` where it calls for none.

    A new metric that has the name of one in force takes its place. A block that is not whole, two
    new metrics of one name, and more metrics than `most` make no set: part of what was meant would
    be lost.

    Args:
        reply: of the rewriter.
        metrics: in force.
        drops: whether it may drop metrics.
        most: metrics that a set may have.
    """
    try:
        new = {metric.name.lower(): metric for metric in parse(reply)}
        lines = map(_bare, reply.splitlines())
        dropped = {_plain(m[1]) for m in map(_DROP.fullmatch, lines) if m and drops}
        remaining = [m for m in metrics if _plain(m.name) not in dropped]
        after = [m for m in remaining if m.name.lower() not in new] + list(new.values())
        text = render(after)
    except ValueError:
        return None
    changed = sorted(after) != sorted(metrics)
    return text if changed and after and len(after) <= most else None


def shown_feedback(message: str) -> str:
    """Return the feedback that `extracting` shows."""
    return _within(_FEEDBACK, message)


def shown_trajectory(message: str) -> str:
    """Return the trajectory that `judging` shows."""
    return _within(_TRAJECTORY, message)


def shown_aspects(message: str) -> list[Aspect]:
    """Return the aspects that `grounding` lists."""
    return _signed(message.partition(ASPECTS)[2].partition(TRAITS)[0])


def shown_traits(message: str) -> list[Aspect]:
    """Return the traits that `grounding` lists, as texts with signs."""
    return _signed(message.partition(TRAITS)[2])


def shown_uncovered(message: str) -> list[Aspect]:
    """Return the uncovered aspects that `rewriting` shows."""
    part = message.partition(UNCOVERED)[2].partition("\n\n")[0]
    return [Aspect(text, 1 if sign == "good" else -1) for sign, text in _UNCOVERED.findall(part)]


def shown_unmatched(message: str) -> dict[str, tuple[int, int]] | None:
    """Return the counts that `rewriting` shows; `None` where it shows none."""
    _, found, part = message.partition(UNMATCHED)
    if not found:
        return None
    rows = _UNMATCHED.findall(part.partition("\n\n")[0])
    return {name: (int(count), int(of)) for name, count, of in rows}


def shown_limits(message: str) -> tuple[int, int | None]:
    """Return how many metrics `rewriting` asks for, and how many there may be in the end."""
    count, most = _COUNT.search(message), _MOST.search(message)
    return int(count[1]) if count else 1, int(most[1]) if most else None


def _bare(line: str) -> str:
    """Return a line without the marks that it begins with."""
    match = _MARKS.match(line)
    return line[match.end() :] if match else line


def _plain(name: str) -> str:
    """Return a metric's name as it is compared: small letters, no marks or quotes around it."""
    return name.lower().strip(" \t\"'*_`#>()[].-")


def _within(block: re.Pattern[str], message: str) -> str:
    match = block.search(message)
    return match[1] if match else ""


def _signed(part: str) -> list[Aspect]:
    return [Aspect(text, 1 if sign == "good" else -1) for _, sign, text in _LISTED.findall(part)]
