"""Forward equals Unroll to round-off, whatever the optimizer and the network."""

from functools import partial

import pytest
import torch
from cases import Classification, relative_error

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam, AdamW
from metaopt.engine.schedules import Cosine
from metaopt.estimators import Forward, Unroll
from metaopt.problems.examples import Quadratic

OPTIMIZERS = [
    SGD(lr=0.1, weight_decay=0.01),
    SGD(lr=0.1, momentum=0.9, nesterov=True, schedule=Cosine(total=10)),
    Adam(lr=0.01),
    AdamW(lr=0.01, clip_norm=0.5),
]


def both(problem, steps=4):
    outer = problem.init_outer(torch.Generator().manual_seed(0))
    estimate = Forward(steps)(
        InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 3
    )
    exact = Unroll(steps)(InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 3)
    return estimate, exact


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_equals_unroll_on_the_quadratic(optimizer):
    (inner, feedback), (other, exact) = both(Quadratic(inner_optimizer=optimizer))
    assert relative_error(feedback.grad, exact.grad) < 1e-10
    assert torch.equal(inner.params["theta"], other.params["theta"])
    assert feedback.value == exact.value


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.1, "batch_norm": True},
        {"frozen": True, "tied": True, "unused": True},
        {"pattern": "net"},
        {"pattern": "no_grad"},
        {"pattern": "direct"},
    ],
)
def test_equals_unroll_on_networks(settings):
    (inner, feedback), (other, exact) = both(
        Classification(rows=8, inner_optimizer=Adam(lr=0.01), **settings)
    )
    assert relative_error(feedback.grad, exact.grad) < 1e-10
    assert all(torch.equal(v, other.buffers[k]) for k, v in inner.buffers.items())


def test_many_steps_reach_the_closed_form():
    problem = Quadratic()
    outer = {"phi": torch.linspace(-1, 1, 5, dtype=torch.float64)}
    start = InnerLoop(problem).start(outer, None, 0)
    _, feedback = Forward(400)(InnerLoop(problem), outer, start, 0)
    assert relative_error(feedback.grad, problem.hypergradient(outer)) < 1e-10


def test_leaves_no_graph():
    (inner, feedback), _ = both(Quadratic())
    tensors = [*inner.params.values(), *feedback.grad.values(), feedback.value]
    assert not any(t.requires_grad for t in tensors)


def test_shapes_of_several_outer_tensors():
    class Split(Quadratic):
        def init_outer(self, generator):
            one = partial(torch.ones, dtype=torch.float64)
            return {"a": one(2, 1), "b": one(3)}

        def inner_loss(self, outer, inner, batch):
            return super().inner_loss(joined(outer), inner, batch)

        def outer_loss(self, outer, inner, batch):
            return super().outer_loss(joined(outer), inner, batch)

    (_, feedback), (_, exact) = both(Split())
    assert {k: v.shape for k, v in feedback.grad.items()} == {"a": (2, 1), "b": (3,)}
    assert relative_error(feedback.grad, exact.grad) < 1e-10


def joined(outer):
    return {"phi": torch.cat([v.flatten() for v in outer.values()])}


def test_too_many_outer_numbers_are_refused():
    problem = Quadratic(features=80, outers=65)
    with pytest.raises(ValueError, match=r"65.*estimator=unroll"):
        Forward().check(InnerLoop(problem))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="inner_steps"):
        Forward(inner_steps=0)


def test_inner_steps_of_one_have_the_closed_form_of_a_single_step():
    problem = Quadratic(inner_optimizer=SGD(lr=0.5))
    outer = {"phi": torch.linspace(-1, 1, 5, dtype=torch.float64)}
    inner, feedback = Forward(1)(
        InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 0
    )
    v = inner.params["theta"] - problem.target
    exact = {"phi": 0.5 * problem.coupling.T @ v + problem.rho * outer["phi"]}
    assert tree.norm(tree.add(feedback.grad, exact, -1.0)) < 1e-12


class Tagging(Quadratic):
    """Weights of classes in each position of sequences, (batch, classes, positions) to labels."""

    def init_params(self, outer, generator):
        return {"theta": torch.randn(2, 3, generator=generator, dtype=torch.float64)}

    def inner_loss(self, outer, inner, batch):
        outputs = torch.linspace(-1, 1, 24, dtype=torch.float64).view(3, 4, 2) @ inner["theta"]
        loss = self.loss(outputs, torch.arange(12).view(3, 4) % 3)
        return outer["phi"].square().sum() * loss

    def outer_loss(self, outer, inner, batch):
        return inner["theta"].square().sum()

    def loss(self, outputs, labels):
        return torch.nn.functional.cross_entropy(outputs.transpose(1, 2), labels)


def test_a_layout_whose_derivative_torch_does_not_have_is_refused_before_a_run():
    with pytest.raises(
        ValueError, match=r"losses of Tagging: .* contiguous\. Use estimator=unroll"
    ):
        Forward(5).check(InnerLoop(Tagging()))
    Unroll(5).check(InnerLoop(Tagging()))
    problem = Tagging()
    problem.loss = lambda outputs, labels: torch.nn.functional.cross_entropy(
        outputs.flatten(0, -2), labels.flatten()
    )
    Forward(5).check(InnerLoop(problem))
