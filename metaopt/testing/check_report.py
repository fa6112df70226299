"""The table of `metaopt-check`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from metaopt.backends.betty import BettyHypergradient
from metaopt.engine.budget import UNITS
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.protocols import Estimator, OuterOptimizer
from metaopt.estimators.implicit import Implicit
from metaopt.estimators.solvers import ConjugateGradient, Neumann
from metaopt.estimators.unroll import Unroll
from metaopt.testing.check import ClosedForm, Row, check_hypergradient

HEADINGS = (
    "estimator", "start", "cosine", "error", "error, best scale", "error, closed form",
    "ms", "peak KiB", "cost",
)  # fmt: skip

_SHOWN = {"gradients", "hvps", "evaluations"}

LEGEND = (
    "error: |g - r| / |r| with the reference r above; best scale: min over s of |s g - r| / |r|, "
    "for estimators that carry a learning rate or a curvature.\n"
    "warm: after {warm} outer steps. ms: one call. peak KiB: largest live tensor storage made by "
    "one call. cost: gradients + products with a second derivative."
)


def report(
    problem: GradientProblem,
    estimators: Mapping[str, Estimator],
    *,
    steps: int | None = None,
    reference_steps: int | None = None,
    warm_steps: int = 20,
    optimizer: Callable[[], OuterOptimizer] | None = None,
    json_file: Path | None = None,
    key: int = 0,
) -> list[Row]:
    """Check the estimators, print the table and return its rows.

    A problem with a closed form gets three rows of converged estimators as well, and betty-ml,
    where it is installed, a row for each of its defaults.

    Args:
        steps: most inner steps to the start; `None` for 5,000 with a closed form (until the
            gradient has fallen to 1e-10) and 100 without.
        json_file: where to write the rows, or `None`.
        problem, estimators, reference_steps, warm_steps, optimizer, key: see `check_hypergradient`.
    """
    closed = isinstance(problem, ClosedForm)
    most = steps if steps is not None else (5_000 if closed else 100)
    rows = check_hypergradient(
        problem, {**estimators, **(_converged(most) if closed else {}), **_betty()},
        steps=most, reference_steps=reference_steps, warm_steps=warm_steps, optimizer=optimizer,
        key=key,
    )  # fmt: skip
    show(rows, type(problem).__name__, warm_steps)
    if json_file is not None:
        text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2)
        json_file.write_text(text + "\n")
    return rows


def show(rows: Sequence[Row], name: str, warm_steps: int) -> None:
    """Print rows: a table on a terminal, lines of plain columns in a pipe."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    measured = [_cells(row) for row in rows if row.refused is None]
    filled = [name for name in HEADINGS if any(cells[name] for cells in measured)]
    table = Table(box=None, pad_edge=False)
    for heading in filled:
        words = heading in ("estimator", "start", "cost")
        table.add_column(heading, justify="left" if words else "right")
    for cells in measured:
        table.add_row(*(cells[heading] for heading in filled))
    if rows:
        console.print(f"{name}. Reference r: {rows[0].reference}.", soft_wrap=True)
    console.print(table)
    console.print(LEGEND.format(warm=warm_steps), soft_wrap=True)
    for row in rows:
        if row.refused is not None:
            console.print(f"{row.estimator}: {row.refused}", soft_wrap=True, markup=False)


def _converged(steps: int) -> dict[str, Estimator]:
    """Return estimators run until they are exact, for a problem that can say whether they are."""
    return {
        "unroll, converged": Unroll(steps, segments="auto"),
        "cg, converged": Implicit(ConjugateGradient(steps, 0.0, 1e-12, warm_start=False)),
        "neumann, converged": Implicit(Neumann(steps)),
    }


def _betty() -> dict[str, Estimator]:
    if find_spec("betty") is None:
        return {}
    return {
        "betty's darts": BettyHypergradient("darts"),
        "betty's neumann": BettyHypergradient("neumann"),
        "betty's cg": BettyHypergradient("cg"),
    }


def _cells(row: Row) -> dict[str, str]:
    """Return the entries of a row by heading; one without a value is empty."""
    closed = "" if row.closed_error is None else f"{row.closed_error:.1e}"
    spent = [_amount(row.cost[unit], unit) for unit in UNITS if unit in _SHOWN & row.cost.keys()]
    values = (
        row.estimator, "warm" if row.warm else "cold", f"{row.cosine:.4f}", f"{row.error:.1e}",
        f"{row.scaled_error:.1e}", closed, f"{1e3 * (row.seconds or 0):,.2f}",
        f"{(row.peak_bytes or 0) / 1024:,.0f}", ", ".join(spent),
    )  # fmt: skip
    return dict(zip(HEADINGS, values, strict=True))


def _amount(amount: float, unit: str) -> str:
    text = f"{amount:,.0f}"
    return f"{text} {UNITS[unit].removesuffix('s') if text == '1' else UNITS[unit]}"
