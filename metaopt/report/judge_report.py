"""What two judges are worth on held-out examples, as JSON values and blocks of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metaopt.metrics.binary import Scores, as_scores
from metaopt.metrics.bootstrap import MIN_QUERIES
from metaopt.metrics.calibration import CalibratedJudge, Numbers, compare, measure
from metaopt.report.judge_figures import Side, draw_reliability
from metaopt.report.page import Block, Figure, Heading
from metaopt.report.table import Table

NAMES = {
    "auroc": "AUROC", "brier": "Brier score", "brier_skill": "Brier skill",
    "kappa": "kappa", "sensitivity": "sensitivity", "specificity": "specificity",
}  # fmt: skip
"""The compared numbers as a report calls them; all but the Brier score are better when higher."""

RATES = {
    "apparent_rate": "share that the judge decides for success",
    "corrected_rate": "corrected for the judge's errors",
    "checked_rate": "true share, from the checker",
}


class Judged(NamedTuple):
    """Examples under a template: a query, an outcome and a score (`None` without one) each."""

    queries: Sequence[Any]
    outcomes: Sequence[int]
    scores: Scores


class Words(NamedTuple):
    """What a report calls the two judges that it compares.

    Args:
        thing: what their templates are.
        last: the later one; the earlier one is the first.
    """

    thing: str = "template"
    last: str = "best"


class Compared(NamedTuple):
    """What two judges measure on the same examples.

    Args:
        before, after: of the first and of the later one.
        difference: the later one's minus the first one's.
    """

    before: Numbers
    after: Numbers
    difference: Numbers


class Assessment(NamedTuple):
    """What two judges are worth on held-out examples.

    Args:
        record: judge and held-out figures of both, and their difference, as JSON values.
        blocks: of a page.
        figure: the reliability diagram, `figures/reliability.png` in the page's folder.
    """

    record: dict[str, Any]
    blocks: list[Block]
    figure: Path


def assess(
    folder: Path,
    judges: Sequence[CalibratedJudge],
    held_out: Sequence[Judged],
    seed: int = 0,
    words: Words = Words(),  # noqa: B008 (it cannot be changed)
) -> Assessment:
    """Measure the first and the later judge on held-out examples, and draw their reliability.

    Args:
        folder: of the page.
        judges: the first and the later one, calibrated on the same examples.
        held_out: other examples, under each of the two.
        seed: of the bootstrap.
        words: what they are called.
    """
    (first, best), queries = judges, held_out[0].queries
    y = np.asarray(held_out[0].outcomes, dtype=float)
    scores = [as_scores(examples.scores) for examples in held_out]
    before = measure(first, scores[0], y, queries, seed)
    after = measure(best, scores[1], y, queries, seed)
    difference = compare(first, scores[0], best, scores[1], y, queries, seed)
    names = [f"{which} {words.thing}" for which in ("First", words.last.capitalize())]
    sides = [Side(name, judge, s, y) for name, judge, s in zip(names, judges, scores, strict=True)]
    record = {
        "judge": best.to_dict(),
        "held_out": after,
        "first": {"judge": first.to_dict(), "held_out": before},
        "difference": difference,
    }
    blocks: list[Block] = [
        *_summary(first, best, Compared(before, after, difference), words),
        *_rates(after, words),
        *_decisions(before, after, words),
        Heading("Reliability"),
        Figure("figures/reliability.png", _RELIABILITY + _left_out(before, after, words)),
    ]
    return Assessment(
        record, blocks, draw_reliability(sides, folder / "figures" / "reliability.png")
    )


def too_few(queries: int) -> str:
    """Return what to say of figures on so few held-out queries that none has an interval."""
    if queries >= MIN_QUERIES:
        return ""
    return (
        f"There are no intervals, which take {MIN_QUERIES} queries: the numbers describe the "
        f"responses to {_counted(queries)}, and say next to nothing of other ones. Hold out more."
    )


def _counted(queries: float | None) -> str:
    return "1 query" if queries == 1 else f"{queries:,.0f} queries"


def verdict(difference: Numbers, words: Words = Words()) -> str:  # noqa: B008
    """Return what the paired differences say of the two judges, in a sentence or three.

    A difference counts only where its interval leaves out 0.
    """
    said: dict[str, list[str]] = {"better": [], "worse": [], "open": [], "undefined": []}
    for name in ("auroc", "brier", "kappa"):
        low, high = difference[f"{name}_low"], difference[f"{name}_high"]
        if low is None or high is None:
            said["undefined"].append(NAMES[name])
        elif low <= 0 <= high:
            said["open"].append(NAMES[name])
        else:
            said["better" if (low > 0) != (name == "brier") else "worse"].append(NAMES[name])
    sentences = [
        f"The {words.last} {words.thing} is {which} than the first in {_list(said[which])}: the "
        "95 % interval of the paired difference, clustered by query, leaves out 0."
        for which in ("better", "worse")
        if said[which]
    ]
    if said["open"]:
        sentences.append(
            "The 95 % interval of the paired difference, clustered by query, includes 0 for "
            f"{_list(said['open'])}: these rows do not tell the two {words.thing}s apart there."
        )
    if said["undefined"]:
        sentences.append(f"There are too few queries to compare {_list(said['undefined'])}.")
    return " ".join(sentences)


def _summary(
    first: CalibratedJudge, best: CalibratedJudge, numbers: Compared, words: Words
) -> Iterator[Block]:
    before, after, difference = numbers
    few = too_few(int(after["queries"] or 0))
    yield (
        f"Measured on {after['n']:,} held-out rows of {_counted(after['queries'])}, of which "
        f"{_number(after['base_rate'])}{_bounds(after, 'base_rate')} succeed. "
        + (few or "Intervals are 95 % percentile bootstraps that resample queries.")
    )
    if first.template == best.template:
        yield (
            f"The {words.last} {words.thing} is the first one: nothing that was tried replaced it."
        )
    else:
        yield verdict(difference, words) + _left_out(before, after, words)
    yield Heading("Before and after")
    yield _before_and_after(first, best, numbers, words)
    yield (
        "Lower is better for the Brier score (of the calibrated probabilities: calibrated_brier in "
        "the log) and the calibration error, higher for the rest. Brier skill is against always "
        "saying the base rate of these rows. Sensitivity, specificity and "
        f"kappa are those of deciding for success at or above the threshold, which maximised "
        "sensitivity + specificity - 1 (Youden) on the fitting rows. The calibration error has ten "
        "bins of equal mass. Coverage is the share of rows with a score: an answer that cannot be "
        "parsed and a failed request have none, and all other numbers leave such rows out. "
        f"Differences are of the {difference['n']:,} rows that both {words.thing}s scored."
    )


def _before_and_after(
    first: CalibratedJudge, best: CalibratedJudge, numbers: Compared, words: Words
) -> Table:
    before, after, difference = numbers
    rows = [
        [
            NAMES[name],
            *(f"{_number(side[name])}{_bounds(side, name)}" for side in (before, after)),
            f"{_number(difference[name], '+.3f')}{_bounds(difference, name, '+.3f')}",
        ]
        for name in NAMES
    ]
    for name in ("ece", "coverage"):
        label = {"ece": "calibration error", "coverage": "coverage"}[name]
        change = _minus(after[name], before[name])
        rows.append([label, _number(before[name]), _number(after[name]), _number(change, "+.3f")])
    rows.append(["(threshold)", _number(first.threshold), _number(best.threshold), ""])
    sides = [f"first {words.thing}", f"{words.last} {words.thing}"]
    header = ["number", *sides, "difference"]
    if _partial(before, after):
        header.append("rows with a score")
        counts = [f"{count:,.0f}" for count in (before["scored"], after["scored"], difference["n"])]
        beside = f"{' / '.join(counts)} of {after['n']:,.0f}"
        whole = {"coverage", "(threshold)"}
        rows = [[*row, f"all {after['n']:,.0f}" if row[0] in whole else beside] for row in rows]
    return Table(header, rows)


def _rates(after: Numbers, words: Words) -> Iterator[Block]:
    yield Heading("Success rate")
    yield (
        "A judge's share of positives is not the success rate. Half of the held-out queries play "
        "rows that nobody has checked; sensitivity and specificity come from the other half "
        "(Rogan and Gladen, 1978). Both are estimated again in each resample."
    )
    rows = [
        [label, f"{_number(after[name])}{_bounds(after, name)}"] for name, label in RATES.items()
    ]
    header = [f"{words.last} {words.thing}, unchecked half", "rate"]
    if _partial(after):
        header.append("rows with a score, both halves")
        rows = [[*row, _scored(after)] for row in rows]
    yield Table(header, rows)
    if after["apparent_rate"] is None:
        yield "The rates are not defined: there are too few held-out queries to halve."
    elif after["corrected_rate"] is None:
        yield (
            "The corrected rate is not defined: sensitivity + specificity is not above 1, so this "
            "judge's decisions say nothing about the success rate."
        )


def _decisions(before: Numbers, after: Numbers, words: Words) -> Iterator[Block]:
    yield Heading("Decisions")
    header: tuple[str, ...] = (
        words.thing, "true positive", "false positive", "false negative", "true negative",
    )  # fmt: skip
    rows = [
        [name, *(f"{side[cell]:,.0f}" for cell in ("tp", "fp", "fn", "tn"))]
        for name, side in (("first", before), (words.last, after))
    ]
    if _partial(before, after):
        header += ("rows with a score",)
        rows = [[*row, _scored(side)] for row, side in zip(rows, (before, after), strict=True)]
    yield Table(header, rows)


def _partial(*sides: Numbers) -> bool:
    """Return whether the figures of a side leave out rows that have no score."""
    return any(side["scored"] != side["n"] for side in sides)


def _scored(side: Numbers) -> str:
    return f"{side['scored']:,.0f} of {side['n']:,.0f}"


def _left_out(before: Numbers, after: Numbers, words: Words) -> str:
    """Return a sentence on the rows that the figures leave out, or nothing."""
    if not _partial(before, after):
        return ""
    return (
        f" Rows without a score are left out: {_scored(before)} rows have one under the first "
        f"{words.thing}, {_scored(after)} under the {words.last}."
    )


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _number(value: float | None, form: str = ".3f") -> str:
    return "not defined" if value is None else format(value, form)


def _bounds(numbers: Numbers, name: str, form: str = ".3f") -> str:
    low, high = numbers[f"{name}_low"], numbers[f"{name}_high"]
    if low is not None and high is not None:
        return f" ({low:{form}} to {high:{form}})"
    return "" if numbers[name] is None else " (no interval)"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


_RELIABILITY = (
    "Above: observed success rate against calibrated probability, in bins of equal mass with "
    "Wilson's 95 % intervals, which take rows as independent. Below: scores of failures and of "
    "successes, each adding up to 1, and the threshold."
)
