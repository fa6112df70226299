"""Sama against the exact derivative of the inner optimizer's next step."""

import pytest
import torch
from cases import Classification, relative_error

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW
from metaopt.estimators import FiniteDifference, Sama
from metaopt.problems.examples import Quadratic

OPTIMIZERS = [
    SGD(lr=0.1),
    SGD(lr=0.1, momentum=0.9, nesterov=True),
    Adam(lr=0.01),
    AdamW(lr=0.01, clip_norm=0.5),
]


def exact(problem, outer, inner, key):
    """Return dF/dphi + (du/dphi)^T v by differentiating twice, at the state given."""
    loop, phi, theta = InnerLoop(problem), tree.leaves(outer), tree.leaves(inner.params)
    loss = loop.outer_value(phi, inner._replace(params=theta), loop.outer_draw(inner, key))
    grads = torch.autograd.grad(loss, [*theta.values(), *phi.values()], materialize_grads=True)
    start = inner._replace(params=tree.leaves(inner.params))
    end = loop.step(phi, start, loop.solve_draw(inner, key, 3))
    through = torch.autograd.grad(
        list(end.params.values()),
        list(phi.values()),
        grads[: len(theta)],
        materialize_grads=True,
    )
    return {k: d + t for k, d, t in zip(phi, grads[len(theta) :], through, strict=True)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize(
    "settings",
    [
        {"frozen": True, "tied": True, "unused": True},
        {"pattern": "net", "dropout": 0.1, "batch_norm": True},
        {"pattern": "direct"},
    ],
)
def test_equals_the_derivative_of_the_next_step(optimizer, settings):
    problem = Classification(inner_optimizer=optimizer, **settings)
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).run(outer, InnerLoop(problem).start(outer, None, 0), 1, 3)
    before = tree.clone(inner)
    after, feedback = Sama(inner_steps=0)(InnerLoop(problem), outer, inner, 7)
    assert relative_error(feedback.grad, exact(problem, outer, before, 7)) < 1e-4
    assert all(torch.equal(v, after.params[k]) for k, v in before.params.items())
    assert all(torch.equal(v, after.buffers[k]) for k, v in before.buffers.items())


def test_with_sgd_it_is_the_learning_rate_times_the_finite_difference():
    problem = Quadratic(rho=0.0, inner_optimizer=SGD(lr=0.25))
    outer = {"phi": torch.linspace(-1, 1, 5, dtype=torch.float64)}
    _, sama = Sama(0.1)(InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 3)
    _, plain = FiniteDifference(0.1)(
        InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 3
    )
    torch.testing.assert_close(sama.grad["phi"], 0.25 * plain.grad["phi"])


def test_bias_correction_counts():
    problem = Classification(inner_optimizer=Adam(lr=0.01))
    outer = problem.init_outer(None)
    inner = InnerLoop(problem).run(outer, InnerLoop(problem).start(outer, None, 0), 1, 2)
    _, early = Sama(inner_steps=0)(InnerLoop(problem), outer, tree.clone(inner), 7)
    _, late = Sama(inner_steps=0)(InnerLoop(problem), outer, inner._replace(step=10**6), 7)
    corrected = (1 - 0.9**3) / (1 - 0.999**3) ** 0.5
    assert relative_error(late.grad, tree.scale(early.grad, corrected)) < 1e-3


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="epsilon"):
        Sama(epsilon=-1.0)
