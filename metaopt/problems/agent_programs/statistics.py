"""What held-out questions say of a program and of its control."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metaopt.metrics.bootstrap import clustered_intervals
from metaopt.problems.agent_programs.workers import Flags, Ints


class Measured(NamedTuple):
    """Shares of right answers, mean calls, and their paired difference.

    Args:
        accuracy, calls: of the program.
        control_accuracy, control_calls: of the control, on the same questions.
        gain: accuracy minus that of the control.
        gain_interval: 95 % bootstrap interval of the gain over questions, `None` for fewer than
            six.
    """

    accuracy: float
    calls: float
    control_accuracy: float
    control_calls: float
    gain: float
    gain_interval: tuple[float, float] | None

    def named(self) -> dict[str, float]:
        """Return the numbers by their names in the log."""
        numbers = self._asdict()
        ends = numbers.pop("gain_interval")
        return numbers if ends is None else {**numbers, "gain_low": ends[0], "gain_high": ends[1]}


def measured(right: Flags, calls: Ints, control: Flags, control_calls: Ints) -> Measured:
    """Return the figures of a program and its control on the same questions.

    Args:
        right, calls: of the program, (N,).
        control, control_calls: of the control, (N,).
    """
    difference = right.astype(float) - control.astype(float)

    def gain(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"gain": weights @ difference / weights.sum(1)}

    low, high = clustered_intervals(gain, np.arange(len(right)))["gain"]
    ends = None if low is None or high is None else (low, high)
    return Measured(
        float(right.mean()), float(calls.mean()), float(control.mean()),
        float(control_calls.mean()), float(difference.mean()), ends,
    )  # fmt: skip
