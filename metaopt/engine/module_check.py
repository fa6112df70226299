"""What is refused of the modules that a problem calls: their properties, tried once before a run.

Nothing here knows a module by its class. A loss is evaluated and differentiated once:

- the reverse pass reads the tensors that the forward pass read (`torch.utils.checkpoint` under
  `functional_call` recomputes a layer with the module's own weights);
- gradients are dense, and those of the loss (an embedding may scale its own by frequencies);
- theta, phi and frozen weights are read, not written (an embedding's `max_norm` writes);
- no parameter of theta is left unread while the module's own weight of its value is read, nor all
  of theta while any is;
- g is a function of its arguments, so that two evaluations agree.

What the pass shows beside: whether g computes in half precision.

Cost, once per run: three evaluations and one gradient of g, one gradient of F.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.kernels import eager
from metaopt.engine.parameter_accesses import ParameterAccesses
from metaopt.engine.protocols import Tree
from metaopt.engine.random import generator
from metaopt.engine.recomputation import OTHER_TENSORS, recomputed
from metaopt.engine.rounding import rounding
from metaopt.engine.scheduled import Scheduled

if TYPE_CHECKING:
    from metaopt.engine.gradient_problem import GradientState
    from metaopt.engine.inner_loop import InnerLoop

HALF = frozenset({torch.float16, torch.bfloat16})


def check_training(loop: InnerLoop, outer: Tree, inner: GradientState) -> frozenset[torch.dtype]:
    """Return which of `HALF` g computes in; raise a `ValueError` if a step would be wrong.

    Args:
        loop: the inner level.
        outer, inner: where a step is taken; left as they are.
    """
    with torch.no_grad():  # an optimizer refuses rates of parameters that there are not
        optimizer = loop.optimizer(outer, inner.step)
        if isinstance(optimizer, Scheduled):
            optimizer.check_groups(inner.params)
        loop.stepped_params(outer, inner, inner.params)
    problem, draw = type(loop.problem).__name__, loop.draw(inner, 0, 0)
    batch = loop.batch(outer, inner.at(inner.params), draw)
    phi, theta = tree.leaves(outer), tree.leaves(inner.params)
    # In phi as well: an outer network may be what recomputes its layers.
    leaves = [*theta.values(), *phi.values()]
    accesses = ParameterAccesses(loop.frozen, outer, inner.params)
    loss, slopes = _differentiated(
        problem, "inner_loss", lambda: loop.inner_value(phi, inner.at(theta), draw, batch), leaves,
        accesses,
    )  # fmt: skip
    _check_slopes(problem, theta, slopes, list(accesses.weights.values()))
    # Elsewhere in between: an average that the module hides is what it was where nothing moves.
    moved = tree.random_like(inner.params, generator(0))
    moved = tree.add(inner.params, moved, tree.radius(inner.params, moved, 0.01))
    with torch.no_grad():
        loop.inner_value(outer, inner.at(moved), draw, batch)
        again = loop.inner_value(outer, inner.at(inner.params), draw, batch)
    if slopes and not torch.allclose(
        loss, again, rtol=rounding(loss.dtype), atol=0, equal_nan=True
    ):
        values = f"{float(loss.detach()):.6g} and {float(again):.6g}"
        raise ValueError(
            f"inner_loss of {problem} gives {values} for the same "
            f"arguments and batch: it draws random numbers from a generator of its own, or keeps a "
            f"hidden state. Draw from torch's global generator, which is seeded by step, or from "
            f"draw.generator in inner_batch; keep a state in init_state and update_state."
        )
    return HALF & accesses.dtypes


def _check_slopes(
    problem: str, theta: Tree, slopes: Sequence[Tensor | None], weights: Sequence[Tensor]
) -> None:
    """Raise a `ValueError` for a sparse gradient of g, and for what reads other weights than theta.

    Args:
        problem: its name, for the message.
        theta: the parameters.
        slopes: their gradients first, `None` where g does not read one; none for a constant g.
        weights: of modules' own, that g has read.
    """
    for name, slope in zip(theta, slopes, strict=False):
        if slope is not None and slope.layout is not torch.strided:
            raise ValueError(
                f"the gradient of {problem}'s parameter {name!r} is sparse, and estimators need "
                f"dense ones. Make the embedding with sparse=False; its values are the same."
            )
    unread = {k: theta[k] for k, slope in zip(theta, slopes, strict=False) if slope is None}
    for name, value in unread.items():
        # Zeros do not tell whose they are; where nothing of theta is read, they need not.
        alike = value.any() and any(_same(value, weight) for weight in weights)
        if alike or (weights and len(unread) == len(theta)):
            raise ValueError(
                f"inner_loss of {problem} does not read its parameter {name!r}, and reads weights "
                f"of a module's own instead: it would not be trained. Call the module by "
                f"functional_call(module, inner, ...), and let it hold no weight in a list or a "
                f"closure, which functional_call does not replace."
            )


def _same(value: Tensor, weight: Tensor) -> bool:
    alike = (value.shape, value.dtype) == (weight.shape, weight.dtype)
    return alike and torch.equal(value, weight)


def check_outer_loss(loop: InnerLoop, outer: Tree, inner: GradientState) -> None:
    """Raise a `ValueError` if the gradient of F would be that of other weights."""
    phi, theta = tree.leaves(outer), tree.leaves(inner.params)
    at, draw = inner._replace(params=theta), loop.outer_draw(inner, 0)
    problem, leaves = type(loop.problem).__name__, [*theta.values(), *phi.values()]
    _differentiated(problem, "outer_loss", lambda: loop.outer_value(phi, at, draw), leaves,
                    ParameterAccesses(loop.frozen, outer, inner.params))  # fmt: skip


def _differentiated(
    problem: str, name: str, value: Callable[[], Tensor], leaves: list[Tensor],
    accesses: ParameterAccesses,
) -> tuple[Tensor, Sequence[Tensor | None]]:  # fmt: skip
    """Return a loss and its derivatives, none for a constant, with what both passes access.

    Raises:
        ValueError: the reverse pass reads other weights than the forward pass, a weight is written,
            or a gradient is scaled.
    """
    try:
        with eager(), accesses, warnings.catch_warnings():
            warnings.filterwarnings("error", "None of the inputs have requires_grad")
            loss = value()
            slopes: Sequence[Tensor | None] = ()
            if loss.requires_grad:
                accesses.backward = True
                slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
    except (RuntimeError, UserWarning) as error:
        if "heckpoint" in str(error) or "None of the inputs" in str(error):
            raise ValueError(recomputed(problem, name, "with use_reentrant=True")) from error
        if "leaf Variable that requires grad" in str(error):
            raise ValueError(_written(problem, name, "theta or phi")) from error
        raise
    if accesses.written:
        raise ValueError(_written(problem, name, accesses.written))
    if accesses.scaled:
        raise ValueError(
            f"{name} of {problem} has an embedding with scale_grad_by_freq=True, whose gradient is "
            f"not that of the loss and whose second derivatives in torch leave the factors out. "
            f"Make it with scale_grad_by_freq=False."
        )
    if accesses.other:
        raise ValueError(recomputed(problem, name, OTHER_TENSORS))
    return loss, slopes


def _written(problem: str, name: str, what: str) -> str:
    return (
        f"{name} of {problem} changes {what} in place, as an embedding with max_norm, clamp_() and "
        f"weight.data.div_() do: derivatives would leave the change out. Compute what is used from "
        f"the weight, on its graph: register_parametrization(module, name, ...) of "
        f"torch.nn.utils.parametrize, or F.embedding(x, weight.renorm(2, 0, max_norm))."
    )
