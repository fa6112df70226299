"""What estimators refuse of an inner optimizer that is made of phi, and what is used of phi."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metaopt.engine import tree
from metaopt.engine.hyperparameters import learned
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import InnerOptimizer
from metaopt.engine.protocols import Tree


def optimizers(loop: InnerLoop, phi: Tree, start: int, steps: int) -> list[InnerOptimizer]:
    """Return how the first and the last step of a run of `steps` after `start` ones are taken.

    Raises:
        ValueError: they are not of one kind, with the same moments, or one of them reads phi and no
            derivative leads from there to it.
    """
    last = start + max(steps - 1, 0)
    made = [_made(loop, phi, step) for step in dict.fromkeys((0, start, last))]
    first, at_end = (_kind(optimizer) for optimizer in (made[0], made[-1]))
    if first != at_end:
        raise ValueError(
            f"{type(loop.problem).__name__}.inner_optimizer returns {at_end} for step {last}, "
            f"and {first} for the first: they must be the same in all steps."
        )
    return made


def _kind(optimizer: InnerOptimizer) -> str:
    moments = ", ".join(optimizer.init({"": torch.zeros(1)})) or "no moments"
    return f"{type(optimizer).__name__} with {moments}"


def _made(loop: InnerLoop, phi: Tree, step: int) -> InnerOptimizer:
    with Uses(phi) as uses:
        optimizer = loop.optimizer(_Lookups(phi, uses.names), step)
    for name in uses.without(tree.reached(hyperparameters(optimizer), phi)):
        raise ValueError(
            f"{type(loop.problem).__name__}.inner_optimizer reads outer[{name!r}], and no "
            f"derivative leads from it to the optimizer: look for float(), .item(), .data or "
            f"detach(). A hyperparameter may be a tensor."
        )
    return optimizer


DATA: Any = vars(torch._C.TensorBase)["data"].__get__
"""What `tensor.data` calls."""


def hyperparameters(optimizer: InnerOptimizer) -> list[Tensor]:
    """Return the sum of each hyperparameter that is a tensor."""
    return [t.sum() for t in tree.tensors(list(vars(optimizer).values()))]


class _Lookups(dict[str, Tensor]):
    """phi, of which a tensor that is looked up counts as used."""

    def __init__(self, phi: Tree, names: set[str]) -> None:
        super().__init__(phi)
        self._names = names

    def __getitem__(self, name: str) -> Tensor:
        self._names.add(name)
        return super().__getitem__(name)


class Uses(TorchFunctionMode):
    """Which tensors of phi anything is computed from inside the block, on the graph or off it.

    Args:
        phi: leaves.
    """

    # What asks for the form of a tensor uses none of its values.
    form = frozenset({
        "size", "dim", "numel", "stride", "zeros_like", "ones_like", "empty_like", "new_zeros",
        "new_ones", "new_empty", "new_full", "is_floating_point", "__len__",
    })  # fmt: skip

    def __init__(self, phi: Tree) -> None:
        super().__init__()
        self.phi, self.names = phi, set[str]()
        self._by_id = {id(t): name for name, t in phi.items()}
        self._by_memory = {t.data_ptr(): name for name, t in phi.items() if t.numel()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # Properties such as .shape are getters too; .data alone has the values.
        if not (name in self.form or (name == "__get__" and func != DATA)):
            self.names.update(self._names(args, kwargs))
        return func(*args, **kwargs)

    def _names(self, *arguments: Any) -> Iterator[str]:
        for tensor in tree.tensors(arguments):
            if id(tensor) in self._by_id:
                yield self._by_id[id(tensor)]
            # nn.Parameter(t) is another tensor on its memory, made by no call that a mode sees.
            elif isinstance(tensor, nn.Parameter) and tensor.data_ptr() in self._by_memory:
                yield self._by_memory[tensor.data_ptr()]

    def without(self, reached: Collection[str]) -> list[str]:
        """Return the tensors that are used, not empty, and not among those reached."""
        return [k for k, t in self.phi.items() if k in self.names - set(reached) and t.numel()]


def refuse_learned(loop: InnerLoop, estimator: str, optimizer: InnerOptimizer) -> None:
    """Raise a `ValueError` if phi decides a hyperparameter of the inner optimizer."""
    for name in learned(optimizer):
        raise ValueError(
            f"{estimator} does not differentiate the inner optimizer, and "
            f"{type(loop.problem).__name__}.inner_optimizer makes {name} of the outer variable: "
            f"its derivative would be missing. Use estimator=unroll, forward or one_step."
        )


def refuse_shared_clip(loop: InnerLoop, optimizer: InnerOptimizer) -> None:
    """Raise a `ValueError` if the gradients of a problem's own replicates are clipped together."""
    if loop.problem.replicates > 1 and getattr(optimizer, "clip_norm", None) is not None:
        raise ValueError(
            f"clip_norm of {type(optimizer).__name__} would clip the gradients of the "
            f"{loop.problem.replicates} replicates of {type(loop.problem).__name__} by their joint "
            f"norm, so that none trains as it would alone. Drop it, or let the problem state one "
            f"replicate and run it with seeds={loop.problem.replicates}."
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
            f"Look for a group that replaces it. The parameters are "
            f"{', '.join(params)}."
        )


def refuse_left_out(
    loop: InnerLoop, estimator: str, phi: Tree, start: int, steps: int, last: int
) -> None:
    """Raise a `ValueError` if some of phi decides hyperparameters of the first steps alone.

    Args:
        loop: the inner level.
        estimator: who asks, for the message.
        phi: leaves of the outer variable.
        start: steps before the run.
        steps: of a run.
        last: how many of them are differentiated.
    """
    decides = [
        tree.slopes(hyperparameters(loop.optimizer(phi, step)), phi)
        for step in range(start, start + steps)
    ]
    for name, value in phi.items():
        unread = torch.zeros_like(value, dtype=torch.bool)
        masks = [unread if (m := by_name[name]) is None else m != 0 for by_name in decides]
        early, late = (torch.stack(part).any(0) for part in (masks[:-last], masks[-last:]))
        if bool((early & ~late).any()):
            raise ValueError(
                f"{estimator} differentiates the last {last} of {steps} inner steps, and elements "
                f"of outer[{name!r}] decide hyperparameters of steps before these alone: their "
                f"derivative would be 0. Use estimator=unroll without truncation, or forward."
            )
