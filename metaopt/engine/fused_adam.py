"""A step of Adam as one node of the graph, with its derivative in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metaopt.engine.derivatives import vjp
from metaopt.engine.elementwise import InPlace, Lists, OneByOne

if TYPE_CHECKING:
    from metaopt.engine.inner_optimizers import Adam
    from metaopt.engine.scheduled import Moments


class FusedAdam(torch.autograd.Function):
    """(theta, g, m, v) to (theta', m', v'), lists of n tensors, where hyperparameters are numbers.

    The forward pass is `Adam.update_` on copies. With c = lr / (1 - b1^t), r = sqrt(1 - b2^t),
    D = sqrt(v') / r + eps and adjoints a of the results, the reverse pass gives

        b_m' = a_m' - c a_theta' / D
        b_v' = a_v' + c a_theta' m' / (2 r D^2 sqrt(v')), the second term 0 at v' = 0
        to m: b1 b_m';  to v: b2 b_v';  to g: (1 - b1) b_m' + 2 (1 - b2) g b_v'
        to theta: a_theta', times 1 - lr wd where the decay is decoupled; a coupled one is part of g

    in place on few lists, where autograd keeps and makes one for each operation. A reverse pass
    that is differentiated itself goes through the operations one by one instead.
    """

    @staticmethod
    def forward(
        ctx: Any, adam: Adam, lr: float, decay: float, step: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Return theta', m' and v' after `step` steps before this one."""
        theta, grads, mean, square = parts(tensors, 4)
        new = [t.clone() for t in theta]
        copies = [t.clone() for t in mean], [t.clone() for t in square]
        moments: Moments = dict(zip(("mean", "square"), copies, strict=True))
        adam.stepped(InPlace(), new, grads, moments, lr, decay, step)
        ctx.options = adam, lr, decay, step
        ctx.save_for_backward(*tensors, *moments["mean"], *moments["square"])
        return (*new, *moments["mean"], *moments["square"])

    @staticmethod
    def backward(ctx: Any, *adjoints: Tensor) -> tuple[Tensor | None, ...]:
        """Return the adjoints of the arguments."""
        theta, grads, mean, square, new_mean, new_square = parts(ctx.saved_tensors, 6)
        if torch.is_grad_enabled():
            pulled = _one_by_one(ctx.options, (*theta, *grads, *mean, *square), adjoints)
        else:
            pulled = _closed_form(ctx.options, theta, grads, new_mean, new_square, adjoints)
        return (None, None, None, None, *pulled)


def _closed_form(
    options: Any, theta: Lists, grads: Lists, mean: Lists, square: Lists, adjoints: Lists
) -> Lists:
    """Return the adjoints of (theta, g, m, v), given the new m and v."""
    adam, lr, decay, step = options
    (b1, b2), t = adam.betas, step + 1
    c, r = lr / (1 - b1**t), math.sqrt(1 - b2**t)
    if decay and not adam.decoupled:
        grads = torch._foreach_add(grads, theta, alpha=decay)
    a_theta, a_mean, a_square = parts(adjoints, 3)
    roots = torch._foreach_sqrt(square)
    denominator = torch._foreach_div(roots, r)
    torch._foreach_add_(denominator, adam.eps)
    quotient = torch._foreach_div(a_theta, denominator)
    b_mean = torch._foreach_add(a_mean, quotient, alpha=-c)
    torch._foreach_mul_(quotient, mean)
    torch._foreach_mul_(denominator, roots)
    torch._foreach_div_(quotient, denominator)
    for part, value in zip(quotient, square, strict=True):
        part.masked_fill_(value == 0, 0.0)  # a dead unit
    b_square = torch._foreach_add(a_square, quotient, alpha=c / (2 * r))
    b_grads = torch._foreach_mul(grads, b_square)
    torch._foreach_mul_(b_grads, 2 * (1 - b2))
    torch._foreach_add_(b_grads, b_mean, alpha=1 - b1)
    torch._foreach_mul_(b_mean, b1)
    torch._foreach_mul_(b_square, b2)
    if decay and adam.decoupled:
        a_theta = torch._foreach_mul(a_theta, 1 - lr * decay)
    elif decay:
        a_theta = torch._foreach_add(a_theta, b_grads, alpha=decay)
    return [*a_theta, *b_grads, *b_mean, *b_square]


def _one_by_one(options: Any, inputs: Lists, adjoints: Lists) -> Sequence[Tensor | None]:
    """Return the same on the graph of inputs and adjoints."""
    adam, lr, decay, step = options
    # Aliases: the gradients are computed from theta, and the derivatives here are partial ones.
    aliases = [t.view_as(t) for t in inputs]
    theta, grads, mean, square = parts(aliases, 4)
    moments = {"mean": mean, "square": square}
    new, moments = adam.stepped(OneByOne(), theta, grads, moments, lr, decay, step)
    outputs = [*new, *moments["mean"], *moments["square"]]
    # Moments are constants where they and the gradients are.
    ends = [(y, a) for y, a in zip(outputs, adjoints, strict=True) if y.requires_grad]
    linked, arriving = zip(*ends, strict=True)
    free = [t for t in aliases if t.requires_grad]
    pulled = iter(vjp(linked, free, arriving, create_graph=True))
    return [next(pulled) if t.requires_grad else None for t in inputs]


def parts(tensors: Lists, count: int) -> list[Lists]:
    """Return equal parts of a list."""
    size = len(tensors) // count
    return [list(tensors[i * size : (i + 1) * size]) for i in range(count)]
