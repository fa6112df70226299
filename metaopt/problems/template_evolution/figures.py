"""The figure of a template search: objective and criteria weights over outer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.metrics.binary import Array
from metaopt.report.figures import PALETTE, line, new_figure

Weights = Sequence[tuple[int, Mapping[str, float]]]
"""Weights of the criteria by outer step."""


def draw_evolution(
    tried: Sequence[tuple[int, float]],
    objective: str,
    weights: Weights | None,
    path: Path,
) -> Path:
    """Write the objective of each tried template over outer steps, and the best so far.

    Args:
        tried: (outer step, objective), lower is better; those that are not finite are left out.
        objective: its name.
        weights: (outer step, criteria weights of the best template so far): a second panel, with
            dots at these steps where they are not all. A criterion that a template lacks has
            weight 0.
        path: where the figure goes.
    """
    rows = 2 if weights else 1
    with new_figure(path, 6.4, 2.8 * rows) as figure:
        panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        _objective(panels[0], tried, objective)
        if weights:
            _weights(panels[1], weights)
        panels[-1].set_xlabel("outer step")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
    return path


def _objective(axes: Any, tried: Sequence[tuple[int, float]], objective: str) -> None:
    points = np.array(sorted(tried), dtype=float).reshape(-1, 2)
    steps, values = points[np.isfinite(points[:, 1])].T
    at, first = np.unique(steps[::-1], return_index=True)
    best = np.minimum.accumulate(values)[::-1][first]
    axes.scatter(steps, values, s=16, color=PALETTE[5], linewidths=0, label="tried")
    axes.step(*_held(at, best), where="post", color=PALETTE[0], label="best so far")
    axes.set_title("Objective of the templates (lower is better)")
    axes.set_ylabel(objective)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _weights(axes: Any, weights: Weights) -> None:
    criteria = list(dict.fromkeys(name for _, template in weights for name in template))
    steps = np.array([step for step, _ in weights], dtype=float)
    for index, name in enumerate(criteria):
        values = [template.get(name, 0.0) for _, template in weights]
        axes.step(*_held(steps, values), where="post", label=name, **line(index))
        if np.any(np.diff(steps, prepend=0) > 1):  # between two dots it may have changed earlier
            axes.plot(steps, values, "o", markersize=4, color=line(index)["color"])
    axes.set_title("Criteria weights of the best template")
    axes.set_ylabel("weight")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1.05), labelspacing=0.25)


def _held(steps: Array, values: Any) -> tuple[Array, Array]:
    """Return the points with the last value held for half a step, so that a step plot shows it."""
    return np.append(steps, steps[-1:] + 0.5), np.append(values, values[-1:])
