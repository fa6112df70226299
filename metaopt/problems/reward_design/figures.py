"""Figures of reward design: success by training, and the curve of one training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from metaopt.problems.reward_design.training import Training
from metaopt.report.figures import line, new_figure, outer_axis


def draw_success(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the success of each training, its inner seeds as dots, and the best so far.

    Args:
        history: as the inner state of `RewardDesign` has it, at least one entry.
        path: of the figure.
    """
    filed = [entry for entry in history if entry["filed"]]
    numbers = [entry["number"] for entry in filed]
    means = [fmean(entry["success"]) for entry in filed]
    with new_figure(path, 6.4, 3.4) as figure:
        axes = figure.subplots()
        dots = [(entry["number"], success) for entry in history for success in entry["success"]]
        axes.plot(*zip(*dots, strict=True), "o", color="0.6", markersize=4, label="one inner seed")
        mean = {**line(0), "linestyle": "none"}  # no line: each training is from scratch
        axes.plot(numbers, means, marker="o", label="mean of the inner seeds", **mean)
        axes.step(
            numbers, list(accumulate(means, max)), where="post", label="best so far", **line(1)
        )
        axes.set_title("Success under each reward")
        axes.set_ylabel("share of greedy episodes")
        axes.set_ylim(-0.05, 1.05)
        outer_axis(axes, max(numbers), "outer step")
        axes.legend(loc="best")


def draw_curve(training: Training, path: Path) -> None:
    """Write success above, and what each term contributes to the return below, over real steps."""
    steps = training.curve["steps"]
    with new_figure(path, 6.4, 5.2) as figure:
        success, terms = figure.subplots(2, 1, sharex=True)
        success.plot(steps, training.curve["success"], **line(0))
        success.set_title("Success while training under the reward")
        success.set_ylabel("share of greedy episodes")
        success.set_ylim(-0.05, 1.05)
        terms.plot(steps, training.curve["return"], label="return", **line(0))
        for index, (name, values) in enumerate(training.terms.items(), 1):
            terms.plot(steps, values, label=name, **line(index))
        terms.set_title("Designed reward of an episode, and its terms")
        terms.set_ylabel("sum over the episode")
        outer_axis(terms, steps[-1], "real steps of a learner")
        terms.legend(loc="upper left", bbox_to_anchor=(1, 1.05))
