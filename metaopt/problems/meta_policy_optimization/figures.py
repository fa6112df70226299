"""The figure of over-optimisation: the judge's score against the true quality, over updates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metaopt.report.figures import line, new_figure, outer_axis


class Curve(NamedTuple):
    """A run: (updates, true quality less the first policy's, judge's score) after each update."""

    name: str
    points: Sequence[Sequence[float]]


def draw_over_optimisation(curves: Sequence[Curve], path: Path) -> None:
    """Write the judge's score above and the true quality below, a line for each run."""
    with new_figure(path, 6.4, 5.2) as figure:
        score, quality = figure.subplots(2, 1, sharex=True)
        for index, curve in enumerate(curves):
            updates, gained, judged = np.array(curve.points, dtype=float).T
            score.plot(updates, judged, label=curve.name, **line(index))
            quality.plot(updates, gained, label=curve.name, **line(index))
        quality.axhline(0, color="0.55", linewidth=1)
        score.set_title("Judge's score under the rubric in force")
        score.set_ylabel("share of its points")
        quality.set_title("True quality")
        quality.set_ylabel("gain over the first policy")
        outer_axis(quality, max(curve.points[-1][0] for curve in curves), "updates of the policy")
        score.legend(loc="lower right")
