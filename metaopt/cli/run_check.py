"""The last lines of `metaopt-check`: is the hypergradient of the configured run worth anything?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate

from metaopt.cli.composing import cause
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.protocols import Estimator
from metaopt.testing.precision import failure
from metaopt.testing.rounding import STEPS, Precision, check_precision
from metaopt.testing.smoothness import Smoothness, check_smoothness
from metaopt.testing.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class RunCheck:
    """What was measured of a run's first outer step.

    Args:
        smoothness, precision: the numbers, or why there are none.
    """

    smoothness: Smoothness | str
    precision: Precision | str

    @property
    def verdicts(self) -> list[Verdict]:
        """What the numbers mean."""
        parts = (self.smoothness, self.precision)
        return [part.verdict for part in parts if not isinstance(part, str)]

    @property
    def failed(self) -> bool:
        """Whether the hypergradient is refused."""
        return any(verdict.level == "error" for verdict in self.verdicts)

    def numbers(self) -> dict[str, Any]:
        """Return what was measured as primitives."""
        parts = {"smoothness": self.smoothness, "precision": self.precision}
        return {k: v if isinstance(v, str) else dataclasses.asdict(v) for k, v in parts.items()}

    def __str__(self) -> str:
        lines = [*_smoothness_lines(self.smoothness), _precision_line(self.precision)]
        return "\n".join([*lines, *map(str, self.verdicts)])


def check_run(problem: GradientProblem, config: Mapping[str, Any], seconds: float) -> RunCheck:
    """Measure smoothness and precision at the first outer step of a config, within a time."""
    node, began = config["estimator"], time.monotonic()

    def make(steps: int) -> Estimator:
        lengths = {"inner_steps": steps} if "inner_steps" in node else {}
        if node.get("truncation"):
            lengths["truncation"] = min(node["truncation"], steps)
        estimator: Estimator = instantiate({**node, **lengths}, _convert_="all")
        return estimator

    steps = max(1, node.get("inner_steps", 1))
    smoothness: Smoothness | str
    precision: Precision | str
    try:
        smoothness = check_smoothness(
            problem, make(steps), instantiate(config["optimizer"], _convert_="all"),
            seconds=2 * seconds / 3, key=config["seed"],
        )  # fmt: skip
    except Exception as error:  # as in the table, the rest is still measured
        smoothness = failure(cause(error))
    try:
        counts = sorted({*(k for k in STEPS if k < steps), steps})
        left = seconds - (time.monotonic() - began)
        precision = check_precision(problem, make, counts, seconds=left, key=config["seed"])
    except Exception as error:
        precision = failure(cause(error))
    return RunCheck(smoothness, precision)


def _smoothness_lines(found: Smoothness | str) -> list[str]:
    if isinstance(found, str):
        return [f"smoothness  not measured: {found}"]
    change = f"F changes by {found.actual:+.2e}"
    if found.predicted is None:
        change += f"; no prediction: {found.missing}"
    elif found.correlation is None:
        change += f", predicted {found.predicted:+.2e}; no time for more retrainings"
    else:
        change += (
            f", predicted {found.predicted:+.2e}; correlation {found.correlation:.2f} over "
            f"{found.retrainings} retrainings"
        )
    lines = [
        f"First outer step of this run: |u| = {found.step:.2g} after K = {found.inner_steps} inner "
        f"steps, retrained in {found.dtype}.",
        f"smoothness  S = {found.at_step:.3f} at u, {found.at_fraction:.3f} at u / 100",
        f"prediction  {change}",
    ]
    if found.adjoint_growth is not None:
        lines.append(f"adjoint     |lambda_0| / |lambda_K| = {found.adjoint_growth:.3g}")
    return lines


def _precision_line(found: Precision | str) -> str:
    if isinstance(found, str):
        return f"precision   not measured: {found}"
    cosines = ", ".join(f"{row.cosine:.3f} at K = {row.inner_steps}" for row in found.rows)
    ratio = f"; norm ratio {found.rows[-1].norm_ratio:.2g}" if found.rows else ""
    skipped = "".join(f"; no time for K = {k}" for k in found.skipped)
    return f"precision   cos({found.dtype}, float64) = {cosines or 'unknown'}{ratio}{skipped}"
