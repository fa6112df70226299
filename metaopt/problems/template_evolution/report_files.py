"""The files of a calibrated judge: judge.json, report.md, report.html and figures/.

They hold templates, counts and numbers; no candidate and no response is ever passed in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.metrics.calibration import CalibratedJudge
from metaopt.problems.template_evolution.figures import Weights, draw_evolution
from metaopt.report.judge_report import Judged, assess
from metaopt.report.page import Block, Figure, Heading, Verbatim, markdown, page
from metaopt.report.table import Table


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
    scoring: Mapping[str, Any] | None = None,
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
        scoring: what the judge was asked, as JSON values; a written score where it is not given.

    Raises:
        ValueError: provenance that is not JSON, or rows that `metaopt.metrics.calibration.measure`
            refuses.
    """
    _check_json(provenance)
    (first, best), assessment = judges, assess(folder, judges, held_out, seed)
    figures = [assessment.figure]
    if any(np.isfinite(value) for _, value in evolution):
        path = folder / "figures" / "evolution.png"
        figures.append(draw_evolution(evolution, objective, weights, path))
    blocks = [
        *assessment.blocks,
        *_evolution(evolution, objective, coverage, weights),
        Heading("Best template"), Verbatim(best.template),
        Heading("First template"), Verbatim(first.template),
        *_provenance(provenance),
    ]  # fmt: skip
    texts = {
        "judge.json": _json(assessment.record, scoring, provenance, criteria),
        "report.md": markdown(title, blocks),
        "report.html": page(title, blocks, folder),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / name for name in texts), *figures]


def _json(
    record: Mapping[str, Any],
    scoring: Mapping[str, Any] | None,
    provenance: Mapping[str, Any],
    criteria: Mapping[str, Any] | None,
) -> str:
    judge, figures = record["judge"], {k: v for k, v in record.items() if k != "judge"}
    content = {
        "judge": judge,
        "scoring": dict(scoring or {"name": "written"}),
        **figures,
        "provenance": dict(provenance),
        **({"criteria": dict(criteria)} if criteria else {}),
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


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
