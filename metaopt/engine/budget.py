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
    "lm_calls": "model calls",
    "lm_requests": "model requests",
    "tokens": "tokens",
}
"""Units of cost, in a table's order, with their names there.

Gradients are of the inner or the outer loss, products are with a Hessian or a mixed second
derivative, evaluations are losses without a gradient, model calls are answers of language models
and model requests all that was sent to them, failed tries included; tokens are both ways.
"""


class Ledger:
    """Sums costs by unit and says when a limit is reached.

    Args:
        limits: largest total by unit; the run stops after the step that reaches one. `None` is
            no limit.

    Raises:
        ValueError: a unit that is not in `UNITS`, or a negative amount.
    """

    def __init__(self, limits: Mapping[str, float | None] | None = None) -> None:
        if not isinstance(limits, (Mapping, type(None))):
            raise ValueError(
                f"limits must be amounts by unit, such as {{'tokens': 1e6}}; got {limits!r}."
            )
        _check_units(limits or {}, "limits")
        self.limits = {unit: most for unit, most in (limits or {}).items() if most is not None}
        self.spent: dict[str, float] = {}
        _check(self.limits, "limits", ", or null for no limit")

    def charge(self, cost: Mapping[str, float]) -> None:
        """Add `cost` to what was spent."""
        _check(cost, "cost")
        for unit, amount in cost.items():
            number = int(amount) if isinstance(amount, Integral) else float(amount)  # of numpy, too
            self.spent[unit] = self.spent.get(unit, 0) + number

    @property
    def exhausted(self) -> str | None:
        """The first unit whose limit is reached, or `None`."""
        reached = (u for u, most in self.limits.items() if self.spent.get(u, 0) >= most)
        return next(reached, None)


def _check_units(units: Iterable[str], name: str) -> None:
    for unit in units:
        if unit not in UNITS:
            raise ValueError(f"{name} names the unit {unit!r}; units are {', '.join(UNITS)}.")


def _check(amounts: Mapping[str, float], name: str, otherwise: str = "") -> None:
    _check_units(amounts, name)
    for unit, amount in amounts.items():
        if type(amount) in (int, float) and 0 <= amount < LARGEST:
            continue  # charged in each outer step, and `fits` takes its time
        if not fits(amount, float) or amount < 0:
            raise ValueError(
                f"{name}[{unit!r}] must be a finite number >= 0{otherwise}; got {amount!r}."
            )
