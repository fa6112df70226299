"""A step of Adam as one node: its derivatives against those of the operations one by one."""

import pytest
import torch

from metaopt.engine.elementwise import OneByOne
from metaopt.engine.inner_optimizers import Adam, AdamW

OPTIMIZERS = {
    "adam": Adam(lr=0.1),
    "coupled": Adam(lr=0.1, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3),
    "decoupled": AdamW(lr=0.1, weight_decay=0.3),
}
SHAPES = ((4, 3), (4,), ())


def inputs(step):
    """Return theta, g, m and v of three tensors each, with a dead unit; the first step's are 0."""
    draw = torch.Generator().manual_seed(0)
    lists = [
        [torch.randn(s, generator=draw, dtype=torch.float64) for s in SHAPES] for _ in range(4)
    ]
    lists[3] = [t.square() if step else 0 * t for t in lists[3]]
    lists[2] = lists[2] if step else [0 * t for t in lists[2]]
    for part in lists[1:]:
        part[0][1] = 0.0
    return [[t.requires_grad_() for t in part] for part in lists]


def fused(adam, theta, grads, mean, square, step):
    params, moments = dict(enumerate(theta)), (dict(enumerate(m)) for m in (mean, square))
    state = dict(zip(("mean", "square"), moments, strict=True))
    new, state = adam.update(params, dict(enumerate(grads)), state, step)
    return [*new.values(), *state["mean"].values(), *state["square"].values()]


def one_by_one(adam, theta, grads, mean, square, step):
    moments = {"mean": mean, "square": square}
    new, after = adam.stepped(OneByOne(), theta, grads, moments, adam.lr, adam.weight_decay, step)
    return [*new, *after["mean"], *after["square"]]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("step", [0, 5])
def test_values_and_derivatives_are_those_of_the_operations(name, step):
    lists = inputs(step)
    results = []
    for take in (fused, one_by_one):
        outputs = take(OPTIMIZERS[name], *lists, step)
        draw = torch.Generator().manual_seed(1)
        adjoints = [torch.randn(t.shape, generator=draw, dtype=t.dtype) for t in outputs]
        leaves = [t for part in lists for t in part]
        results.append((outputs, torch.autograd.grad(outputs, leaves, adjoints)))
    (outputs, slopes), (expected, exact) = results
    assert all(map(torch.equal, outputs, expected))
    for slope, value in zip(slopes, exact, strict=True):
        torch.testing.assert_close(slope, value, rtol=1e-12, atol=1e-15)
        assert slope.isfinite().all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_reverse_pass_can_be_differentiated(name):
    # The gradient depends on theta, and only the partial derivative in theta is that of the step.
    theta, _, mean, square = inputs(5)

    def second(take):
        slopes = [torch.sin(3 * t) for t in theta]
        outputs = take(OPTIMIZERS[name], theta, slopes, mean, square, 5)
        total = sum((t * t).sum() for t in outputs)
        first = torch.autograd.grad(total, [*theta, *mean], create_graph=True)
        return torch.autograd.grad(sum((t * t).sum() for t in first), [*theta, *mean, *square])

    for value, exact in zip(second(fused), second(one_by_one), strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("on", [(0,), (0, 2), (3,), (0, 3)])
def test_a_reverse_pass_of_constant_gradients_can_be_differentiated(name, on):
    # A moment without a path to a leaf is no output of the graph.
    lists = [[t.requires_grad_(i in on) for t in part] for i, part in enumerate(inputs(5))]
    leaves = [t for i in on for t in lists[i]]

    def second(take):
        outputs = take(OPTIMIZERS[name], *lists, 5)
        total = sum((t * t).sum() for t in outputs)
        first = torch.autograd.grad(total, leaves, create_graph=True)
        slopes = torch.autograd.grad(sum((t * t).sum() for t in first), leaves)
        return [*first, *slopes]

    for value, exact in zip(second(fused), second(one_by_one), strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-11, atol=1e-13)


def test_a_step_under_vmap_is_that_of_each_member():
    adam, (theta, grads, mean, square) = OPTIMIZERS["decoupled"], inputs(5)
    stacked = [torch.stack([part[0].detach(), 2 * part[0].detach()]) for part in
               (theta, grads, mean, square)]  # fmt: skip

    def step(*tensors):
        return fused(adam, *([t] for t in tensors), 5)[0]

    together = torch.func.vmap(step)(*stacked)
    for i, value in enumerate(together):
        torch.testing.assert_close(value, step(*(t[i] for t in stacked)))
