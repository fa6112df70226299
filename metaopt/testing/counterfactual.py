"""How well what is said of training examples predicts training without them: scores, verdicts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metaopt.testing.verdict import Verdict

FOR_CLAIMS = 100
"""Retrainings that a claim of 0.98 and above needs."""

SMOOTH = 0.6
"""S below which nothing is said for the gradient.

Calibrated on 13 settings of `NoisyDigits`: no score below it exceeded 0.53, and above 0.8 none fell
below 0.95."""

PREDICTS, ROUGHLY = 0.85, 0.3
"""Lower ends of an interval from which scores predict retraining, and predict it roughly."""

FAITHFUL = 0.05
"""Relative error of a gradient from differences above which it is not that of the run."""

GRADIENTS, ALIGNMENT, WEIGHTS = "row gradients", "last-checkpoint alignment", "learned weights"


@dataclass(frozen=True)
class Score:
    """The linear datamodeling score of one attribution.

    Args:
        lds: Spearman's correlation over the subsets of the changes of F that are predicted and
            those that retraining gives; NaN where all predictions are the same.
        low, high: ends of its 95 % bootstrap interval over subsets, or `None`.
    """

    lds: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        ends = ["?" if end is None else f"{end:.3f}" for end in (self.low, self.high)]
        return f"{self.lds:.3f} [{ends[0]}, {ends[1]}]"


@dataclass(frozen=True)
class Counterfactual:
    """Predicted and actual effects of leaving out training examples.

    Args:
        inner_steps: K, the inner steps of each training.
        examples: number n of training examples.
        never_drawn: how many of them are in no batch.
        subsets: what is left out of each retraining, (m, n), boolean.
        kind: how the subsets were drawn, in words.
        value: F after training on all.
        changes: d_j = F without subset j - F, (m,).
        effects: by attribution, what it says that leaving out each example adds to F, (n,): of the
            gradient -dF/dw_i; of learned weights w_i - 1; of the alignment <dF/dtheta, dl_i/dtheta>
            at the end of training.
        scores: the score of each attribution.
        smoothness: S over the changes that are predicted: weights of a subset at 1, 1/2 and 0, the
            mean over a few; see `metaopt.testing.smoothness.Smoothness`. `None` without gradient.
        gradient_error: relative error of the gradient from differences of whole runs; `None`
            without gradient.
        missing: why there is no gradient, or empty.
        dtype: what was computed in.
        stacked: whether retrainings ran stacked on a leading axis, else why not.
        trainings: trainings without a graph.
        seconds: what all took.
        adam: whether the inner optimizer is an Adam.
        note: what a reader must know of the problem, or empty.
    """

    inner_steps: int
    examples: int
    never_drawn: int
    subsets: Tensor
    kind: str
    value: float
    changes: Tensor
    effects: Mapping[str, Tensor]
    scores: Mapping[str, Score]
    smoothness: float | None
    gradient_error: float | None
    missing: str
    dtype: str
    stacked: str
    trainings: int
    seconds: float
    adam: bool
    note: str = ""

    def predicted(self, name: str) -> Tensor:
        """Return the changes that an attribution predicts, (m,)."""
        return self.subsets.double() @ self.effects[name]

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What the numbers mean, by attribution; the baseline has none."""
        return {k: self._verdict(k) for k in self.scores if k != ALIGNMENT}

    def _verdict(self, name: str) -> Verdict:
        score, few = self.scores[name], len(self.changes) < FOR_CLAIMS
        if name == GRADIENTS and self.smoothness is not None and self.smoothness < SMOOTH:
            smaller = "a smaller inner learning rate"
            step = f"{smaller} or a larger eps of the inner Adam" if self.adam else smaller
            return Verdict(
                "error", f"do not trust: S = {self.smoothness:.2f}; {step}, tanh or GELU for ReLU"
            )
        if name == GRADIENTS and (self.gradient_error or 0) > FAITHFUL:
            return Verdict(
                "error",
                f"do not trust: the gradient is {100 * (self.gradient_error or 0):.0f} % off "
                f"differences of the run. Look for what a loss detaches or prepare_batch decides; "
                f"in coarse numbers, take a problem that runs in float64",
            )
        subject = name if name in (GRADIENTS, WEIGHTS) else f"the scores {name!r}"
        low = -1.0 if score.low is None or math.isnan(score.lds) else score.low
        if low >= PREDICTS:
            text = f"{subject} predict retraining ({score})"
            if score.lds >= 0.98 and few:
                text += f"; {FOR_CLAIMS} retrainings would allow a claim of 0.98"
            return Verdict("fine", text)
        if low >= ROUGHLY:
            return Verdict("warning", f"{subject} predict retraining roughly ({score})")
        return Verdict("error", f"{subject} do not predict retraining ({score})")

    @property
    def failed(self) -> bool:
        """Whether anything asked about is not to be trusted: attributions, else the gradient."""
        verdicts = self.verdicts
        given = [v for name, v in verdicts.items() if name != GRADIENTS]
        return any(v.level == "error" for v in given or verdicts.values())

    def numbers(self) -> dict[str, Any]:
        """Return what was measured as primitives."""
        left = ("subsets", "changes", "effects", "scores")
        plain = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left
        }
        scores = {k: dataclasses.asdict(v) for k, v in self.scores.items()}
        return plain | {"retrainings": len(self.changes), "scores": scores}
