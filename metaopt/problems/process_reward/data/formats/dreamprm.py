"""DreamPRM's training rows: one for each prefix of a chain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from metaopt.problems.process_reward.data.formats.chain import Chain
from metaopt.problems.process_reward.data.formats.columns import (
    count,
    identifier,
    optional,
    others,
    share,
    text,
)
from metaopt.problems.process_reward.data.formats.numbered import bare
from metaopt.problems.process_reward.data.formats.refusals import each

COLUMNS = ("id", "sid", "input", "add", "image_path", "dataset", "score", "times", "accuracy")
TOLERANCE = 1e-3
"""Largest difference of `accuracy` and score / times, which the release rounds."""


class Prefix(NamedTuple):
    """One row: the first steps of a chain.

    Args:
        question: what the rows of one question share: domain, name, text and image.
        number: the row's `sid`; `None` where it has none.
        add: the text of the steps.
        label: share of rollouts that ended right.
        score: how many.
        times: of how many.
        id: the row's `id` as it stands.
        columns: what else the row holds.
    """

    question: tuple[str, str, str, str]
    number: int | None
    add: str
    label: float
    score: int | None
    times: int | None
    id: Any
    columns: dict[str, Any]


def prefix(row: Mapping[str, Any]) -> Prefix:
    """Return the prefix of a row of DreamPRM's train.json (Cao et al., NeurIPS 2025).

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
    number = count(row.get("sid"), "sid")
    return Prefix(question, number, add, label, score, times, row.get("id"), others(row, COLUMNS))


def from_dreamprm(prefixes: Iterable[Prefix]) -> list[Chain]:
    """Return the chains of prefixes, in the order of their first rows.

    Prefixes of one question belong to one chain while each begins with the one before; a step is
    what a prefix adds to it. Where rows of a chain are missing, a step is the text of several.
    """
    found: dict[tuple[str, ...], list[Prefix]] = {}
    for one in prefixes:
        found.setdefault(one.question, []).append(one)
    chains: list[Chain] = []
    for rows in found.values():
        rows.sort(key=lambda one: len(one.add) if one.number is None else one.number)
        open_: list[list[Prefix]] = []
        for one in rows:
            for chain in open_:
                last = chain[-1]
                later = one.number is None or last.number is None or one.number > last.number
                if later and one.add.startswith(last.add) and len(one.add) > len(last.add):
                    chain.append(one)
                    break
            else:
                open_.append([one])
        chains += map(_chain, open_)
    return chains


def _chain(rows: Sequence[Prefix]) -> Chain:
    before = ["", *(one.add for one in rows)]
    split = [bare(one.add[len(b) :]) for one, b in zip(rows, before, strict=False)]
    counted = any(one.times is not None for one in rows)
    domain, name, question, image = rows[0].question
    kept = {
        "id": rows[0].id,
        "spaces": [space for _, space in split],
        "sids": [one.number for one in rows],
        "columns": [one.columns for one in rows],
    }
    return Chain(
        question,
        tuple(step for step, _ in split),
        tuple(one.label for one in rows),
        tuple(one.score for one in rows) if counted else (),
        tuple(one.times for one in rows) if counted else (),
        qid=name,
        domain=domain,
        images=(image,) if image else (),
        extra={"dreamprm": kept},
    )


def to_dreamprm(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return one row per step with a label, the rows of a chain together.

    Counts that say something else than the label (`harden` rounds it) are left out.

    Raises:
        ValueError: chains without a label, with an empty first step, or with several images.
    """

    def rows(chain: Chain) -> list[dict[str, Any]]:
        if not any(chain.mask):
            raise ValueError("has no step with a label")
        if not chain.steps[0].strip():
            raise ValueError("its first step is empty")
        kept = chain.extra.get("dreamprm", {})
        count = len(chain.steps)
        if len(kept.get("spaces", ())) != count:
            kept = {}
        spaces = kept.get("spaces", [["", ""]] + [["\n\n", ""]] * (count - 1))
        sids = kept.get("sids", range(1, count + 1))
        columns = kept.get("columns", [{}] * count)
        add = ""
        found = []
        for i, (step, (lead, trail)) in enumerate(zip(chain.steps, spaces, strict=True)):
            add += lead + step + trail
            own = {
                "id": own_id(chain, kept),
                "sid": sids[i],
                "input": chain.prompt,
                "add": add,
                "image_path": own_image(chain),
                "dataset": chain.domain,
                "accuracy": chain.labels[i],
            }
            label = chain.labels[i]
            if chain.rollouts and _counted(label, chain.successes[i], chain.rollouts[i]):
                own |= {"score": chain.successes[i], "times": chain.rollouts[i]}
            if label is not None:
                found.append({**own, **columns[i]})
        return found

    return [row for found in each(chains, rows) for row in found]


def _counted(label: float | None, score: int | None, times: int | None) -> bool:
    """Return whether the label is the share of right rollouts, as `prefix` reads it."""
    if label is None or score is None or not times:
        return False
    return abs(label - score / times) <= TOLERANCE


def own_id(chain: Chain, kept: Mapping[str, Any]) -> Any:
    """Return the name of the question, as a number where it was read as one."""
    given = kept.get("id")
    return given if given is not None and str(given) == chain.qid else chain.qid


def own_image(chain: Chain) -> str:
    """Return the path of the one image, or ""."""
    if len(chain.images) > 1:
        raise ValueError(f"a row has one image; got {len(chain.images)}")
    return chain.images[0] if chain.images else ""
