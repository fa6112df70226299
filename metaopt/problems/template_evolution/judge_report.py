"""The product of a template search: a calibrated judge, its figures on held-out examples, a report.

Written are judge.json, report.md, report.html and figures/. They hold templates, counts and
numbers; no candidate and no response is ever passed in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metaopt.metrics.binary import Scores, as_scores
from metaopt.metrics.bootstrap import MIN_QUERIES
from metaopt.metrics.calibration import CalibratedJudge, Numbers, compare, measure
from metaopt.problems.template_evolution.judge_figures import (
    Side,
    Weights,
    draw_evolution,
    draw_reliability,
)
from metaopt.problems.template_evolution.scoring import Scoring, WrittenScore
from metaopt.report.page import (
    Block,
    Figure,
    Heading,
    Verbatim,
    markdown,
    page,
)
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


def write_report(
    folder: Path,
    judges: Sequence[CalibratedJudge],
    held_out: Sequence[Judged],
    evolution: Sequence[tuple[int, float]],
    provenance: Mapping[str, Any],
    title: str = "Calibrated judge",
    objective: str = "objective",
    weights: Weights | None = None,
    seed: int = 0,
    criteria: Mapping[str, Any] | None = None,
    coverage: float | None = None,
    scoring: Scoring | None = None,
) -> list[Path]:
    """Write the judge and its report into `folder`, and return the paths of the files.

    Args:
        folder: made where it is missing.
        judges: the judge under the first and under the best template, calibrated on the same
            examples.
        held_out: other examples, which no template was chosen or calibrated on, under each of the
            two: every number of the report is measured on them.
        evolution: (outer step, objective) of each template tried, in order; lower is better. No
            figure is drawn where none is finite.
        provenance: where the judge comes from, as JSON values: models, data, seeds, versions.
        title: heading of the report.
        objective: name of the outer objective.
        weights: (outer step, criteria weights of the best template so far), where templates are
            weighted rubrics.
        seed: of the bootstrap.
        criteria: how a judge made of criteria standardises them, so that it can be loaded.
        coverage: least share of examples with a score under a template tried, or `None`.
        scoring: what the judge was asked, a written score where it is not given.

    Raises:
        ValueError: provenance that is not JSON, or rows that `metaopt.metrics.calibration.measure`
            refuses.
    """
    _check_json(provenance)
    (first, best), queries = judges, held_out[0].queries
    y = np.asarray(held_out[0].outcomes, dtype=float)
    scores = [as_scores(examples.scores) for examples in held_out]
    before = measure(first, scores[0], y, queries, seed)
    after = measure(best, scores[1], y, queries, seed)
    difference = compare(first, scores[0], best, scores[1], y, queries, seed)
    sides = [Side("First template", first, scores[0], y), Side("Best template", best, scores[1], y)]
    figures = [draw_reliability(sides, folder / "figures" / "reliability.png")]
    if any(np.isfinite(value) for _, value in evolution):
        path = folder / "figures" / "evolution.png"
        figures.append(draw_evolution(evolution, objective, weights, path))
    record = {
        "judge": best.to_dict(),
        "scoring": (scoring or WrittenScore()).to_dict(),
        "held_out": after,
        "first": {"judge": first.to_dict(), "held_out": before},
        "difference": difference,
        "provenance": dict(provenance),
        **({"criteria": dict(criteria)} if criteria else {}),
    }
    blocks = [
        *_summary(first, best, before, after, difference),
        *_rates(after),
        *_decisions(before, after),
        Heading("Reliability"),
        Figure("figures/reliability.png", _RELIABILITY + _left_out(before, after)),
        *_evolution(evolution, objective, coverage, weights),
        Heading("Best template"), Verbatim(best.template),
        Heading("First template"), Verbatim(first.template),
        *_provenance(provenance),
    ]  # fmt: skip
    texts = {
        "judge.json": json.dumps(record, indent=2, allow_nan=False) + "\n",
        "report.md": markdown(title, blocks),
        "report.html": page(title, blocks, folder),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / name for name in texts), *figures]


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


def verdict(difference: Numbers) -> str:
    """Return what the paired differences say of the two templates, in a sentence or three.

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
        f"The best template is {which} than the first in {_list(said[which])}: the 95 % interval "
        "of the paired difference, clustered by query, leaves out 0."
        for which in ("better", "worse")
        if said[which]
    ]
    if said["open"]:
        sentences.append(
            "The 95 % interval of the paired difference, clustered by query, includes 0 for "
            f"{_list(said['open'])}: these rows do not tell the two templates apart there."
        )
    if said["undefined"]:
        sentences.append(f"There are too few queries to compare {_list(said['undefined'])}.")
    return " ".join(sentences)


def _summary(
    first: CalibratedJudge,
    best: CalibratedJudge,
    before: Numbers,
    after: Numbers,
    difference: Numbers,
) -> Iterator[Block]:
    few = too_few(int(after["queries"] or 0))
    yield (
        f"Measured on {after['n']:,} held-out rows of {_counted(after['queries'])}, of which "
        f"{_number(after['base_rate'])}{_bounds(after, 'base_rate')} succeed. "
        + (few or "Intervals are 95 % percentile bootstraps that resample queries.")
    )
    if first.template == best.template:
        yield "The best template is the first one: nothing that was tried replaced it."
    else:
        yield verdict(difference) + _left_out(before, after)
    yield Heading("Before and after")
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
    header = ["number", "first template", "best template", "difference"]
    if _partial(before, after):
        header.append("rows with a score")
        counts = [f"{count:,.0f}" for count in (before["scored"], after["scored"], difference["n"])]
        beside = f"{' / '.join(counts)} of {after['n']:,.0f}"
        whole = {"coverage", "(threshold)"}
        rows = [[*row, f"all {after['n']:,.0f}" if row[0] in whole else beside] for row in rows]
    yield Table(header, rows)
    yield (
        "Lower is better for the Brier score (of the calibrated probabilities: calibrated_brier in "
        "the log) and the calibration error, higher for the rest. Brier skill is against always "
        "saying the base rate of these rows. Sensitivity, specificity and "
        f"kappa are those of deciding for success at or above the threshold, which maximised "
        "sensitivity + specificity - 1 (Youden) on the fitting rows. The calibration error has ten "
        "bins of equal mass. Coverage is the share of rows with a score: an answer that cannot be "
        "parsed and a failed request have none, and all other numbers leave such rows out. "
        f"Differences are of the {difference['n']:,} rows that both templates scored."
    )


def _rates(after: Numbers) -> Iterator[Block]:
    yield Heading("Success rate")
    yield (
        "A judge's share of positives is not the success rate. Half of the held-out queries play "
        "rows that nobody has checked; sensitivity and specificity come from the other half "
        "(Rogan and Gladen, 1978). Both are estimated again in each resample."
    )
    rows = [
        [label, f"{_number(after[name])}{_bounds(after, name)}"] for name, label in RATES.items()
    ]
    header = ["best template, unchecked half", "rate"]
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


def _decisions(before: Numbers, after: Numbers) -> Iterator[Block]:
    yield Heading("Decisions")
    header: tuple[str, ...] = (
        "template", "true positive", "false positive", "false negative", "true negative",
    )  # fmt: skip
    rows = [
        [name, *(f"{side[cell]:,.0f}" for cell in ("tp", "fp", "fn", "tn"))]
        for name, side in (("first", before), ("best", after))
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


def _left_out(before: Numbers, after: Numbers) -> str:
    """Return a sentence on the rows that the figures leave out, or nothing."""
    if not _partial(before, after):
        return ""
    return (
        f" Rows without a score are left out: {_scored(before)} rows have one under the first "
        f"template, {_scored(after)} under the best."
    )


def _evolution(
    evolution: Sequence[tuple[int, float]], objective: str, coverage: float | None, weights: Any
) -> Iterator[Block]:
    finite = [(step, value) for step, value in evolution if np.isfinite(value)]
    if not finite:
        return
    missing = len(evolution) - len(finite)
    (start, first), (lowest, least) = finite[0], min(finite, key=lambda trial: trial[1])
    yield Heading("Evolution of the template")
    yield (
        f"{len(evolution):,} outer steps, a template each. The outer objective, "
        f"{objective}, is lower when better: {first:.4g} at step {start:,}, {least:.4g} at its "
        f"lowest, at step {lowest:,}, each measured in its step's own inner run."
        + (f" Not drawn, for want of a finite objective: {missing:,}." if missing else "")
        + (
            f" It leaves out examples without a score, of which a template had up to "
            f"{100 * (1 - coverage):.3g} %."
            if coverage is not None and coverage < 1
            else ""
        )
    )
    more = " Below: the criteria weights of the best template so far." if weights else ""
    yield Figure("figures/evolution.png", f"Objective of each template tried.{more}")


def _provenance(provenance: Mapping[str, Any]) -> Iterator[Block]:
    if provenance:
        yield Heading("Provenance")
        yield Table(("what", "value"), list(_flat(provenance)))


def _check_json(provenance: Mapping[str, Any]) -> None:
    try:
        json.dumps(provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"provenance must hold JSON values (texts, finite numbers, lists, mappings): {error}."
        ) from error


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node if isinstance(node, str) else json.dumps(node)


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
