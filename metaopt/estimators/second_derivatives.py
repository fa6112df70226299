"""Second derivatives of g, compared with a central difference of first ones before a run.

A `torch.autograd.Function` may have a backward pass that is not differentiable, without torch
noticing, and torch's own derivatives of second order may be missing or wrong.

Cost, once per run: one second derivative and four gradients of g where the first difference agrees,
four times one and eight at most.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.gradient_problem import Batch, GradientState
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.kernels import eager, twice_differentiable
from metaopt.engine.protocols import Tree
from metaopt.engine.random import Draw, generator
from metaopt.estimators.constants import RecordDetached, ReplayDetached, along, tangent
from metaopt.estimators.trial import first_line

FIRST_ORDER = "estimator=finite_difference, sama or penalty, which take first derivatives only"
_TOLERANCES = {torch.float64: 1e-2, torch.float32: 0.1}
"""Largest error relative to the norm. A kink that the difference crosses costs some per cent in
float32; where a second derivative is missing, the error is of the order of 1."""
_STEPS = (None, 1e-4, 1e-2)
"""Relative lengths of differences, see `tree.radius`.

A gradient in phi whose terms cancel, as under weights of mean 1, is rounded by far more than its
norm lets expect. A longer step divides that out; a short one crosses fewer kinks, and has less of
the third derivative.
"""
PLACES = 4
"""Values of theta, a per cent apart, at which a difference may fail before a problem is refused."""
_WRONG = {"WeightNormInterfaceBackward0": "weight_norm"}
"""Operations whose second derivative in torch 2.13 is wrong by less than float32 lets show."""


def check_second_derivatives(
    loop: InnerLoop, estimator: str, phi: Tree, inner: GradientState, forward_mode: bool = False
) -> None:
    """Raise a `ValueError` if torch has no or wrong second derivatives of g.

    Args:
        loop: the inner level.
        estimator: who asks, for the message.
        phi: leaves.
        inner: where they are taken; left as it is.
        forward_mode: whether the derivative in theta is taken in forward mode, and the second one
            in phi alone.
    """
    draw, problem = loop.draw(inner, 0, 0), type(loop.problem).__name__
    batch = loop.batch(phi, inner.at(inner.params), draw)
    direction = _moving(loop, phi, inner, draw, batch)
    product = _forward_product if forward_mode else _reverse_product
    try:
        with twice_differentiable():
            products = product(loop, phi, inner, direction, draw, batch)
    except (RuntimeError, NotImplementedError) as error:
        how, instead = "twice", FIRST_ORDER
        if forward_mode:
            how, instead = "in forward mode", f"estimator=unroll with one step, or {FIRST_ORDER}"
        raise ValueError(
            f"{estimator} cannot differentiate inner_loss of {problem} {how}: {first_line(error)}. "
            f"Use {instead}."
        ) from error
    dtypes = {t.dtype for t in (*inner.params.values(), *phi.values())} | loop.half_precision
    if loop.problem.compute_dtype is not None:
        dtypes.add(loop.problem.compute_dtype)
    if not dtypes <= _TOLERANCES.keys():
        return  # a difference in half precision says nothing
    tolerance = max(_TOLERANCES[dtype] for dtype in dtypes)
    for seed in range(1, PLACES + 1):
        worst = math.inf
        for step in _STEPS:
            difference = _difference(loop, phi, inner, direction, draw, batch, step)
            worst = min(worst, _error(products, difference))
            if worst <= tolerance:
                return
        # A kink is near some theta, a derivative is missing at all: once more, at another one.
        inner = inner.at(
            tree.add(inner.params, direction, tree.radius(inner.params, direction, 1e-2))
        )
        direction = _moving(loop, phi, inner, draw, batch, seed)
        with twice_differentiable():
            products = product(loop, phi, inner, direction, draw, batch)
    raise ValueError(
        f"{estimator} would be wrong: the second derivative of {problem}'s inner_loss is off "
        f"by {worst:.2g} of its norm from a difference of first ones, as where a "
        f"torch.autograd.Function has a backward pass that is not differentiable. Write a "
        f"straight-through estimator as x + (f(x) - x).detach() and other functions with "
        f"torch's own operations, or use {FIRST_ORDER}."
    )


def _moving(
    loop: InnerLoop, phi: Tree, inner: GradientState, draw: Draw, batch: Batch, seed: int = 0
) -> Tree:
    """Return a random direction in which g has a slope, or any where it has none.

    What an operation reads as a constant, such as the row `padding_idx` of an embedding, moves in a
    difference and in no run.
    """
    theta = tree.leaves(inner.params)
    with eager():
        slope = tree.gradient(loop.inner_value(phi, inner.at(theta), draw, batch), theta)[0]
    direction = tree.random_like(inner.params, generator(seed))
    moving = {k: d * (slope[k] != 0) for k, d in direction.items()}
    return moving if tree.norm(moving) > 0 else direction


def _reverse_product(
    loop: InnerLoop, phi: Tree, inner: GradientState, direction: Tree, draw: Draw, batch: Batch
) -> dict[str, Tree]:
    """Return H direction and J^T direction by two reverse passes."""
    theta = tree.leaves(inner.params)
    loss = loop.inner_value(phi, inner.at(theta), draw, batch)
    for operation in _operations(loss) & _WRONG.keys():
        raise RuntimeError(
            f"torch's second derivative of {_WRONG[operation]} is wrong by up to some per cent "
            f"(write the layer as g * v / |v| to have the right one)"
        )
    slopes = torch.autograd.grad(
        loss, list(theta.values()), create_graph=True, materialize_grads=True
    )
    along_direction = tree.dot(tree.like(theta, slopes), direction)
    in_theta, in_phi = _gradients(along_direction, theta, phi)
    return {"theta": in_theta, "phi": in_phi}


def _forward_product(
    loop: InnerLoop, phi: Tree, inner: GradientState, direction: Tree, draw: Draw, batch: Batch
) -> dict[str, Tree]:
    """Return J^T direction, forward in theta and reverse in phi."""
    with along(inner.params, direction) as theta:
        slope = tangent(loop.inner_value(phi, inner.at(theta), draw, batch))
    return {"phi": tree.zeros_like(phi) if slope is None else tree.gradient(slope, phi)[0]}


def _difference(
    loop: InnerLoop, phi: Tree, inner: GradientState, direction: Tree, draw: Draw, batch: Batch,
    epsilon: float | None,
) -> dict[str, tuple[Tree, float]]:  # fmt: skip
    """Return the same by a central difference of first derivatives, and its rounding error."""
    # States are made outside the blocks, which count the calls of the loss alone.
    at = inner.at(tree.leaves(inner.params))
    with twice_differentiable(), RecordDetached() as record:
        computed = loop.inner_value(phi, at, draw, batch).dtype
    rounds = loop.problem.compute_dtype, computed, *(value.dtype for value in phi.values())
    radius = float(tree.radius(inner.params, direction, epsilon, *rounds))
    ends = []
    for sign in (radius, -radius):
        theta = tree.leaves(tree.add(inner.params, direction, sign))
        at = inner.at(theta)
        with twice_differentiable(), ReplayDetached(record.constants):
            loss = loop.inner_value(phi, at, draw, batch)
        ends.append(_gradients(loss, theta, phi))
    parts = {}
    for name, up, down in zip(("theta", "phi"), *ends, strict=True):
        # What rounding of the two ends leaves of a difference.
        noise = torch.finfo(loss.dtype).eps * float(tree.norm(up)) / radius
        parts[name] = tree.scale(tree.add(up, down, -1.0), 0.5 / radius), noise
    return parts


def _gradients(value: Tensor, theta: Tree, phi: Tree) -> tuple[Tree, Tree]:
    in_theta, in_phi = tree.gradient(value, theta, phi)
    return in_theta, in_phi


def _error(products: dict[str, Tree], measured: dict[str, tuple[Tree, float]]) -> float:
    """Return the largest |product - difference| over the larger of the two norms."""
    errors = []
    for name, product in products.items():
        difference, noise = measured[name]
        gap = float(tree.norm(tree.add(product, difference, -1.0)))
        size = max(float(tree.norm(product)), float(tree.norm(difference)), 100 * noise)
        errors.append(gap / size if size > 0 else 0.0)
    return max(errors)


def _operations(loss: Tensor) -> set[str]:
    """Return the names of the nodes of a graph."""
    names, nodes, visited = set(), [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in visited:
            visited.add(node)
            names |= {node.name(), *getattr(node, "operations", ())}  # of a rematerialised block
            nodes += [parent for parent, _ in node.next_functions]
    return names
