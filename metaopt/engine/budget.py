"""The ledger: what a run has spent, by unit, and the limits that end it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral

from metaopt.engine.annotations import LARGEST, fits

UNITS = {
    "inner_steps": "inner steps",
    "gradients": "gradients",
    "hvps": "products",
    "evaluations": "evaluations",
    "environment_steps": "environment steps",
    "trainings": "trainings",
    "lm_calls": "model calls",
    "lm_requests": "model requests",
    "tokens": "tokens",
}
"""Units of cost, in a table's order, with their names there.

Gradients are of the inner or the outer loss, products are with a Hessian or a mixed second
derivative, evaluations are losses without a gradient, trainings are whole inner trainings of a
problem that trains several in one outer step, model calls are answers of language models
and model requests all that was sent to them, failed tries included; tokens are both ways.
"""

SUMS = {"oracle_calls": {"gradients": 1.0, "hvps": 1.5}}
"""Further limits, by what a unit counts in them: with these, methods that spend different units are
compared at equal cost. A product takes the time of about 1.5 gradients."""

NAMES = {**UNITS, "oracle_calls": "oracle calls"}


class Ledger:
    """Sums costs by unit and says when a limit is reached.

    Args:
        limits: largest total by unit, or by a sum of `SUMS` such as `oracle_calls`, gradients and
            1.5 times the products; the run stops after the step that reaches one. `None` is no
            limit.

    Raises:
        ValueError: a unit that is not in `UNITS` or `SUMS`, or a negative amount.
    """

    def __init__(self, limits: Mapping[str, float | None] | None = None) -> None:
        if not isinstance(limits, (Mapping, type(None))):
            raise ValueError(
                f"limits must be amounts by unit, such as {{'tokens': 1e6}}; got {limits!r}."
            )
        _check_units(limits or {}, "limits", NAMES)
        self.limits = {unit: most for unit, most in (limits or {}).items() if most is not None}
        self.spent: dict[str, float] = {}
        _check_amounts(self.limits, "limits", ", or null for no limit")

    def charge(self, cost: Mapping[str, float]) -> None:
        """Add `cost` to what was spent."""
        _check_units(cost, "cost", UNITS)
        _check_amounts(cost, "cost")
        for unit, amount in cost.items():
            number = int(amount) if isinstance(amount, Integral) else float(amount)  # of numpy, too
            self.spent[unit] = self.spent.get(unit, 0) + number

    @property
    def exhausted(self) -> str | None:
        """The first unit whose limit is reached, or `None`."""
        return next((u for u, most in self.limits.items() if self._total(u) >= most), None)

    def _total(self, unit: str) -> float:
        counted = SUMS.get(unit, {unit: 1.0})
        return sum(factor * self.spent.get(u, 0) for u, factor in counted.items())


def _check_units(units: Iterable[str], name: str, legal: Iterable[str]) -> None:
    for unit in units:
        if unit not in legal:
            raise ValueError(f"{name} names the unit {unit!r}; units are {', '.join(legal)}.")


def _check_amounts(amounts: Mapping[str, float], name: str, otherwise: str = "") -> None:
    for unit, amount in amounts.items():
        if type(amount) in (int, float) and 0 <= amount < LARGEST:
            continue  # charged in each outer step, and `fits` takes its time
        if not fits(amount, float) or amount < 0:
            raise ValueError(
                f"{name}[{unit!r}] must be a finite number >= 0{otherwise}; got {amount!r}."
            )
