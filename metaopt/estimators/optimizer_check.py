"""What estimators refuse of an inner optimizer that is made of phi."""

from __future__ import annotations

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.hyperparameters import learned
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree


def optimizers(loop: InnerLoop, phi: Tree, steps: int) -> list[InnerOptimizer]:
    """Return how the first and the last step of a run are taken.

    Raises:
        ValueError: they are not of one kind, with the same moments, or one of them reads phi and no
            derivative leads from there to it.
    """
    made = [_made(loop, phi, k) for k in dict.fromkeys((0, max(steps - 1, 0)))]
    first, last = (_kind(optimizer) for optimizer in (made[0], made[-1]))
    if first != last:
        raise ValueError(
            f"{type(loop.problem).__name__}.inner_optimizer returns {last} for step {steps - 1}, "
            f"and {first} for the first: they must be the same in all steps."
        )
    return made


def _kind(optimizer: InnerOptimizer) -> str:
    moments = ", ".join(optimizer.init({"": torch.zeros(1)})) or "no moments"
    return f"{type(optimizer).__name__} with {moments}"


def _made(loop: InnerLoop, phi: Tree, step: int) -> InnerOptimizer:
    reads = _Reads(phi)
    optimizer = loop.optimizer(reads, step)
    slopes = _slopes(optimizer, phi)
    for name in sorted(reads.names & phi.keys()):
        if slopes[name] is None:
            raise ValueError(
                f"{type(loop.problem).__name__}.inner_optimizer reads outer[{name!r}], and no "
                f"derivative leads from it to the optimizer: look for float(), .item(), .data or "
                f"detach(). A hyperparameter may be a tensor."
            )
    return optimizer


def _slopes(optimizer: InnerOptimizer, phi: Tree) -> dict[str, Tensor | None]:
    """Return the derivative of the sum of all hyperparameters, `None` where there is no path."""
    ends = [t.sum() for t in tree.tensors(list(vars(optimizer).values())) if t.requires_grad]
    if not ends:
        return dict.fromkeys(phi)
    inputs = list(phi.values())
    slopes = torch.autograd.grad(ends, inputs, allow_unused=True, retain_graph=True)
    return dict(zip(phi, slopes, strict=True))


class _Reads(dict[str, Tensor]):
    """phi, and the names that are read of it one by one."""

    def __init__(self, phi: Tree) -> None:
        super().__init__(phi)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.names.add(name)
        return super().__getitem__(name)


def refuse_learned(loop: InnerLoop, estimator: str, optimizer: InnerOptimizer) -> None:
    """Raise a `ValueError` if phi decides a hyperparameter of the inner optimizer."""
    for name in learned(optimizer):
        raise ValueError(
            f"{estimator} does not differentiate the inner optimizer, and "
            f"{type(loop.problem).__name__}.inner_optimizer makes {name} of the outer variable: "
            f"its derivative would be missing. Use estimator=unroll, forward or one_step."
        )


def refuse_unused(loop: InnerLoop, optimizer: InnerOptimizer, params: Tree) -> None:
    """Raise a `ValueError` if phi makes a hyperparameter that no parameter is stepped with."""
    names = learned(optimizer)
    if not names:
        return
    ones = {k: torch.ones_like(v) for k, v in params.items()}
    after = optimizer.update(params, ones, optimizer.init(params), 0)
    ends = [t.sum() for t in tree.tensors(after) if t.requires_grad]
    made = [t for t in tree.tensors(list(vars(optimizer).values())) if t.requires_grad]
    slopes = torch.autograd.grad(ends, made, allow_unused=True, retain_graph=True)
    if any(slope is None for slope in slopes):
        raise ValueError(
            f"{type(loop.problem).__name__}.inner_optimizer makes {', '.join(names)} of the outer "
            f"variable, and one of these tensors steps no parameter: its derivative would be 0. "
            f"Look for a group that matches nothing, or that replaces it. The parameters are "
            f"{', '.join(params)}."
        )


def refuse_left_out(loop: InnerLoop, estimator: str, phi: Tree, steps: int, last: int) -> None:
    """Raise a `ValueError` if some of phi decides hyperparameters of the first steps alone.

    Args:
        loop: the inner level.
        estimator: who asks, for the message.
        phi: leaves of the outer variable.
        steps: of a run.
        last: how many of them are differentiated.
    """
    decides = [
        {k: slope != 0 for k, slope in _slopes(loop.optimizer(phi, step), phi).items()
         if slope is not None}
        for step in range(steps)
    ]  # fmt: skip
    for name, value in phi.items():
        masks = [m.get(name, torch.zeros_like(value, dtype=torch.bool)) for m in decides]
        early, late = (torch.stack(part).any(0) for part in (masks[:-last], masks[-last:]))
        if bool((early & ~late).any()):
            raise ValueError(
                f"{estimator} differentiates the last {last} of {steps} inner steps, and elements "
                f"of outer[{name!r}] decide hyperparameters of steps before these alone: their "
                f"derivative would be 0. Use estimator=unroll without truncation, or forward."
            )
