"""What few-shot learning draws: one sinusoid, and what the network makes of it step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.engine.protocols import Report, Snapshots, Tree
from metaopt.problems.few_shot.tasks import Sinusoids
from metaopt.report.figures import line, new_figure

POINTS = torch.linspace(-5, 5, 100)


class AdaptationReport(Report):
    """Draws adaptation on the first test task, at the end of a run.

    Args:
        tasks: the sinusoids.
        curves: returns outputs at points of a task from phi, by the number of steps.
    """

    def __init__(
        self, tasks: Sinusoids, curves: Callable[[Tree, Tensor, Tensor], dict[int, Tensor]]
    ) -> None:
        self.tasks, self.curves = tasks, curves

    def snapshot(self, outer: Tree, inner: Any) -> dict[str, Any]:
        """Return the sinusoid, its support set and the outputs by number of steps."""
        points = POINTS.to(next(iter(outer.values())))
        task = self.tasks.test[0].to(points)
        x, y = self.tasks.support(task)
        truth = self.tasks.at(task, points)[1]
        outputs = self.curves(outer, task, points)
        return {
            "support": torch.cat([x, y], 1),
            "truth": truth.flatten(),
            "steps": list(outputs),
            "outputs": torch.stack(list(outputs.values())),
        }

    def figures(self, snapshots: Snapshots, folder: Path) -> list[Path]:
        """Draw the last snapshot."""
        if not snapshots:
            return []
        step, last = snapshots[-1]
        path = folder / "adaptation.png"
        with new_figure(path, 6.4, 3.6) as figure:
            axes = figure.subplots()
            x = POINTS.numpy()
            axes.plot(x, last["truth"].cpu().numpy(), color="black", label="sinusoid")
            for i, (steps, outputs) in enumerate(zip(last["steps"], last["outputs"], strict=True)):
                label = f"after {steps} step{'s' * (steps != 1)}" if steps else "start"
                # From the eighth on lines are dashed: the network's, beside the sinusoid.
                axes.plot(x, outputs.cpu().numpy(), label=label, **line(i + 7))
            axes.plot(
                *last["support"].cpu().T.numpy(),
                "o",
                color="black",
                ms=5,
                label=f"{self.tasks.shots} shots",
            )
            axes.set(title=f"A test sinusoid after {step:,} outer steps", xlabel="x", ylabel="y")
            figure.legend(loc="outside right upper")
        return [path]
