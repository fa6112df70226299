"""Mirror descent on the simplex: exponentiated gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.ranges import check_ranges
from metaopt.optimizers.descent import hypergradient


class MirrorDescent:
    """p <- (1 - s) p exp(-lr g) / sum p exp(-lr g) + s / K along the last axis of every tensor.

    g is the hypergradient and K the length of the axis. The entries stay positive and sum to 1,
    so phi must start there: weights of domains, a mixture. Axes before the last one are
    independent simplices. An entry is never rounded to 0, from which no step leads back: it ends
    at the smallest normal number of its dtype, 1e-38 in float32. One that starts at 0 stays there
    unless `smoothing` lifts it.

    Args:
        lr: step size, > 0; with `normalise` the change of log p in a typical step.
        smoothing: weight s of the uniform distribution in the result, in [0, 1).
        average: whether the solution is the mean of all p after a step, not the last p.
        normalise: whether g is divided by the root mean square of all entries of all hypergradients
            of its tensor so far, so that lr does not depend on the scale of the losses.

    References: Kivinen and Warmuth, Information and Computation 132, 1997; with smoothing and
    average, Xie et al., DoReMi, NeurIPS 2023; Fan et al., DoGE, ICML 2024; without, on the worst
    group, Sagawa et al., group DRO, ICLR 2020.

    Example:
        >>> mirror = MirrorDescent(lr=1.0)
        >>> mirror.init({"weights": torch.tensor([0.5, 0.5])})
        >>> mirror.tell(Feedback(0.0, {"weights": torch.tensor([1.0, -1.0])}))
        >>> mirror.solution
        {'weights': tensor([0.1192, 0.8808])}
    """

    needs_gradient = True
    stacks = True

    def __init__(
        self,
        lr: float,
        smoothing: float = 0.0,
        average: bool = False,
        normalise: bool = False,
    ) -> None:
        self.lr, self.smoothing = lr, smoothing
        check_ranges(self, "lr > 0", "0 <= smoothing < 1")
        self.average, self.normalise = average, normalise
        self._outer: Tree = {}
        self._sum: Tree = {}
        self._square: Tree = {}
        self._steps = 0

    @property
    def couples(self) -> str | None:
        """The setting by which rows of a tensor depend on each other, or `None`."""
        return "normalise" if self.normalise else None

    def init(self, outer: Any) -> None:
        """Copy phi.

        Raises:
            TypeError: phi is not a dict of floating-point tensors.
            ValueError: a tensor is not on the simplex.
        """
        for name, value in tree.named_tensors(outer, "MirrorDescent").items():
            _require_simplex(name, value)
        self._outer, self._steps = tree.clone(outer), 0
        self._sum = tree.zeros_like(outer)
        self._square = {k: torch.zeros_like(tree.sums(v)) for k, v in outer.items()}

    def ask(self, key: int) -> Tree:
        """Return p, the last one; it shares memory with the optimizer."""
        return self._outer

    @torch.no_grad()
    def tell(self, feedback: Feedback) -> None:
        """Take a step.

        Raises:
            TypeError: the feedback has no gradient.
        """
        grad = hypergradient(feedback, "MirrorDescent")
        self._steps += 1
        for name, p in self._outer.items():
            step = self.lr * grad[name]
            if self.normalise:
                square = self._square[name]
                square += tree.means(grad[name].square())
                size = (square / self._steps).sqrt()
                step = step / tree.across(torch.where(size > 0, size, torch.ones_like(size)), p)
            new = torch.softmax(p.log() - step, -1)
            # An entry that underflows to 0 could never rise again; one that was 0 is to stay so.
            tiny = torch.finfo(new.dtype).tiny
            new = torch.where(p > 0, new.clamp_min(tiny), new)
            p.copy_(torch.lerp(new, torch.full_like(new, 1 / p.shape[-1]), self.smoothing))
            self._sum[name] += p

    @property
    def solution(self) -> Tree:
        """The last p, or with `average` the mean of all p after a step."""
        if not self.average or self._steps == 0:
            return self._outer
        return tree.scale(self._sum, 1 / self._steps)

    def state_dict(self) -> dict[str, Any]:
        """Return p, its sum, the squares of the hypergradients and the number of steps."""
        return {
            "outer": self._outer,
            "sum": self._sum,
            "square": self._square,
            "steps": self._steps,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._outer, self._sum = tree.clone(state["outer"]), tree.clone(state["sum"])
        self._square, self._steps = tree.clone(state["square"]), state["steps"]


def _require_simplex(name: str, value: Tensor) -> None:
    if value.ndim == 0 or value.shape[-1] < 2:
        raise ValueError(
            f"MirrorDescent needs at least 2 entries along the last axis; {name!r} has shape "
            f"{tuple(value.shape)}. Use optimizer=adam for other outer variables."
        )
    total = value.sum(-1)
    if bool((value < 0).any()) or not torch.allclose(total, torch.ones_like(total), atol=1e-4):
        raise ValueError(
            f"MirrorDescent needs entries >= 0 that sum to 1 along the last axis; {name!r} has a "
            f"least entry of {float(value.min()):g} and sums from {float(total.min()):g} to "
            f"{float(total.max()):g}. Use optimizer=adam for other outer variables."
        )
