"""Weights along a run, and the hypergradients that moved them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metaopt.engine.protocols import Snapshots


def draw_weights(domains: Sequence[str], snapshots: Snapshots, path: Path) -> Path:
    """Write a figure: the weight of each domain by outer step, and its hypergradient at the end.

    Bars are means over the outer steps with two standard errors, in units of the largest mean;
    a negative one raises the weight.

    Args:
        domains: names.
        snapshots: (outer step, {"weight": (K,), and where there are hypergradients by domain
            "hypergradient": (K,), "z": (K,)}), at least one.
        path: where the figure goes.
    """
    from metaopt.report.figures import house_style, line, new_figure, outer_axis, save

    last = snapshots[-1][1]
    order = last["weight"].argsort(descending=True, stable=True).tolist()
    measured = "z" in last
    with house_style():
        figure = new_figure(9.0 if measured else 5.4, 3.6)
        axes = figure.subplots(1, 1 + measured, squeeze=False)[0]
        steps = np.array([step for step, _ in snapshots], float)
        for style, k in enumerate(order):
            values = [float(snapshot["weight"][k]) for _, snapshot in snapshots]
            marker = "o" if len(steps) <= 25 else None
            axes[0].plot(
                steps, values, label=domains[k], marker=marker, markersize=3, **line(style)
            )
        axes[0].axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
        axes[0].set(title="weight of each domain", ylim=(0, None))
        outer_axis(axes[0], steps[-1])
        if measured:
            _hypergradients(axes[1], domains, order, last)
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center",
            ncols=min(5, len(domains)),
        )  # fmt: skip
        return save(figure, path)


def _hypergradients(
    axes: Any, domains: Sequence[str], order: Sequence[int], last: Mapping[str, Any]
) -> None:
    from metaopt.report.figures import line

    mean, z = last["hypergradient"].numpy()[order], last["z"].numpy()[order]
    largest = max(np.abs(mean).max(), 1e-300)
    error = np.divide(np.abs(mean), np.abs(z), out=np.zeros_like(mean), where=z != 0)
    places = np.arange(len(order))
    colours = [line(i)["color"] for i in range(len(order))]
    axes.barh(places, mean / largest, xerr=2 * error / largest, color=colours, height=0.7)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set(title="mean hypergradient (2 s.e.)", yticks=places, ylim=(len(order) - 0.4, -0.6))
    axes.set_yticklabels([domains[k] for k in order])
    axes.set_xlabel("down: weight rises  <  0  <  weight falls")
    axes.grid(visible=False, axis="y")
