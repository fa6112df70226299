"""The command `metaopt-check`: hypergradients of a problem against the exact one, as a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from metaopt.backends.betty import BettyHypergradient
from metaopt.cli import folders, retrain_check
from metaopt.cli.composing import cause
from metaopt.cli.loading import composing
from metaopt.cli.problem_config import composed, made
from metaopt.cli.run_check import check_run
from metaopt.engine.budget import UNITS
from metaopt.engine.protocols import Estimator
from metaopt.estimators.conjugate_gradient import ConjugateGradient
from metaopt.estimators.implicit import Implicit
from metaopt.estimators.neumann import Neumann
from metaopt.estimators.unroll import Unroll
from metaopt.files.errors import ConfigError
from metaopt.report.table import Table
from metaopt.testing.check import Row, check_hypergradient
from metaopt.testing.reference import ClosedForm

OPTIONS = ("steps", "warm_steps", "directions", "seconds", "json")

USAGE = """metaopt-check [--config-dir CONF] problem=<name> [key=value ...]

Print how far each estimator is from the exact hypergradient of a differentiable
problem, with the seconds and the memory of a call; then, for the run that the
keys configure, whether retraining follows the hypergradient over one outer step
and whether the problem's precision is enough for it. The exit code is 1 where
it is not. --config-dir finds a problem of your own, as for metaopt. Keys are
those of metaopt, and

  estimator=a,b    the estimators to check; all of configs/estimator by default.
                   The run is that of the first one, or by default of the
                   problem's own
  steps=N          most inner steps to the start, and through the reference
  warm_steps=N     outer steps before the rows marked warm (20)
  directions=N     random directions in which the whole run is differenced (2; 0
                   for none)
  seconds=N        most time for the lines below the table (30; 0 for none)
  json=FILE        write all numbers to a file as well

With --retrain N it is another check: do gradients of example weights, or
learned weights, predict training without some of the examples? Its options:
`metaopt-check --retrain`."""


HEADINGS = (
    "estimator", "start", "cosine", "error", "error, best scale", "error, differences",
    "error, closed form", "ms", "peak KiB", "cost",
)  # fmt: skip

LEGEND = (
    "error: |g - r| / |r| with the reference r above; best scale: min over s of |s g - r| / |r|, "
    "for estimators that carry a learning rate or a curvature.\n"
    "differences: central differences of the whole run along random directions, which share no "
    "code with the estimators.\n"
    "unroll is exact for the K steps of the run; its row compares it with the derivative through "
    "the steps of r.\n"
    "warm: after {warm} outer steps. ms: one call. peak KiB: largest live tensor storage made by "
    "one call. cost: gradients + products with a second derivative."
)


def main(arguments: Sequence[str]) -> int:
    """Compare estimators with the exact hypergradient of the problem that the overrides name.

    A problem with a closed form gets three rows of converged estimators as well, and betty-ml,
    where it is installed, a row for each of its defaults.
    """
    arguments = folders.use(arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    if retrain_check.asked(arguments):
        return retrain_check.main(arguments)
    split = [a.partition("=") for a in arguments]
    options = {k: v for k, _, v in split if k in OPTIONS}
    chosen = [v for k, _, v in split if k == "estimator"]
    overrides = [a for a in arguments if a.partition("=")[0] not in (*options, "estimator")]
    if "json" in options and not Path(options["json"]).absolute().parent.is_dir():
        raise ConfigError(f"json={options['json']} names a file in a folder that is not there.")
    names = chosen[-1].split(",") if chosen else [*folders.groups()["estimator"]]
    seconds = _count(options, "seconds", 30)
    with composing():
        own = composed([*overrides, *(f"estimator={n}" for n in names[:1] if chosen)])
        problem = made(own, "metaopt-check")
        configs = {n: composed([*overrides, f"estimator={n}"]) for n in names}
    try:
        estimators = {n: instantiate(c["estimator"], _convert_="all") for n, c in configs.items()}
        closed = isinstance(problem, ClosedForm)
        # With a closed form, until the gradient has fallen so far that nothing else is left.
        steps = _count(options, "steps", 5_000 if closed else 100)
        warm_steps = _count(options, "warm_steps", 20)
        rows = check_hypergradient(
            problem, {**estimators, **(_converged(steps) if closed else {}), **_betty()},
            steps=steps, warm_steps=warm_steps, directions=_count(options, "directions", 2),
            key=own["seed"],
            reference_steps=None if problem.warm_start else own["inner_steps"],
            optimizer=lambda: instantiate(own["optimizer"], _convert_="all"),
        )  # fmt: skip
    except InstantiationException as error:
        raise cause(error) from None
    show(rows, type(problem).__name__, warm_steps)
    run = check_run(problem, own, seconds) if seconds else None
    if run is not None:
        print(run)
    if "json" in options:
        numbers = {} if run is None else run.numbers()
        numbers = {"rows": [dataclasses.asdict(row) for row in rows], **numbers}
        Path(options["json"]).write_text(json.dumps(numbers, indent=2) + "\n")
    return int(run is not None and run.failed)


def _count(options: Mapping[str, str], name: str, default: int) -> int:
    text = options.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"{name} must be a whole number >= 0; got {text!r}.")
    return int(text)


def _converged(steps: int) -> dict[str, Estimator]:
    """Return estimators run until they are exact, for a problem that can say whether they are."""
    return {
        "unroll, converged": Unroll(steps, schedule="segments"),
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


def show(rows: Sequence[Row], name: str, warm_steps: int) -> None:
    """Print rows as lines of plain columns, without the columns that are empty."""
    measured = [_cells(row) for row in rows if row.refused is None]
    filled = [heading for heading in HEADINGS if any(cells[heading] for cells in measured)]
    if rows:
        print(f"{name}. Reference r: {rows[0].reference}.")
    print(Table(filled, [[cells[h] for h in filled] for cells in measured], words=2).text())
    print(LEGEND.format(warm=warm_steps))
    for line in _refusals(rows):
        print(line)


def _refusals(rows: Sequence[Row]) -> list[str]:
    """Return why estimators were refused, a reason that several share once.

    Most sentences begin with the estimator's class, which is where those of one reason differ.
    """
    reasons: dict[str, list[Row]] = {}
    for row in rows:
        if row.refused is not None:
            reasons.setdefault(row.refused.partition(" ")[2], []).append(row)
    lines = []
    for predicate, refused in reasons.items():
        names, sentences = ", ".join(r.estimator for r in refused), {r.refused for r in refused}
        lines.append(f"{names}: {sentences.pop() if len(sentences) == 1 else f'each {predicate}'}")
    return lines


def _cells(row: Row) -> dict[str, str]:
    """Return the entries of a row by heading; one without a value is empty."""
    spent = [_amount(row.cost[u], u) for u in ("gradients", "hvps", "evaluations") if u in row.cost]
    cosine = "" if row.cosine is None else f"{row.cosine:.4f}"
    errors = (row.error, row.scaled_error, row.difference_error, row.closed_error)
    values = (
        row.estimator, "warm" if row.warm else "cold", cosine,
        *("" if e is None else f"{e:.1e}" for e in errors),
        f"{1e3 * (row.seconds or 0):,.2f}", f"{(row.peak_bytes or 0) / 1024:,.0f}",
        ", ".join(spent),
    )  # fmt: skip
    return dict(zip(HEADINGS, values, strict=True))


def _amount(amount: float, unit: str) -> str:
    text = f"{amount:,.0f}"
    return f"{text} {UNITS[unit].removesuffix('s') if text == '1' else UNITS[unit]}"
