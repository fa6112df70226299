"""Layers that a module comes to checkpoint during a run: recomputed right, or refused there."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from metaopt.engine import Engine
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.recomputation import OTHER_TENSORS, SEVERAL, watched_checkpoints
from metaopt.estimators import FiniteDifference, Forward, Implicit, OneStep, Unroll
from metaopt.optimizers import Descent
from metaopt.testing.differences import run_differences

FROM = 3
"""The first inner step that is checkpointed."""


class Net(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)
        self.layers, self.late = layers, False
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x):
        return self.layers(self, x) if self.late else self.last(self.first(x).tanh())


def with_last_layer(**options):
    def layers(net, x):
        return checkpoint(net.last, net.first(x).tanh(), **options)

    return layers


CHECKPOINTED = {
    "a module": with_last_layer(use_reentrant=False),
    "a module, reentrant": with_last_layer(use_reentrant=True),
    "a module in contexts": with_last_layer(
        use_reentrant=False, context_fn=lambda: (nullcontext(), nullcontext())
    ),
    "a function": lambda net, x: checkpoint(
        lambda h: F.linear(h, net.last.weight, net.last.bias),
        net.first(x).tanh(),
        use_reentrant=False,
    ),
    "a buffer": lambda net, x: net.last(
        checkpoint(lambda h: (h * net.scale).tanh(), net.first(x), use_reentrant=False)
    ),
    "without inputs on the graph": lambda net, x: net.last(
        checkpoint(net.first, x, use_reentrant=True).tanh()
    ),
}


class Late(GradientProblem):
    """Weights of examples for a module that checkpoints from inner step `FROM` on."""

    def __init__(self, layers, warm=True):
        self.inner_optimizer, self.warm_start = SGD(lr=0.3), warm
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = Net(layers).double()
            self.x, self.xv = torch.randn(2, 6, 3, dtype=torch.float64)

    def init_outer(self, generator):
        return {"weights": torch.linspace(-1, 1, 6, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return split_module(self.module)[0]

    def inner_batch(self, draw):
        return self.x, draw.total_inner_step >= FROM

    def outer_batch(self, draw):
        return self.xv, False

    def losses(self, inner, batch):
        x, self.module.late = batch
        tensors = {**inner, "scale": torch.full((4,), 2.0, dtype=torch.float64)}
        return (torch.func.functional_call(self.module, tensors, (x,))[:, 0] - x.sum(1)) ** 2

    def inner_loss(self, outer, inner, batch):
        return (outer["weights"].sigmoid() * self.losses(inner, batch)).mean()

    def outer_loss(self, outer, inner, batch):
        return self.losses(inner, batch).mean()


@pytest.mark.parametrize("layers", CHECKPOINTED)
@pytest.mark.parametrize(
    "estimator", [Unroll(), Forward(), OneStep(), Implicit(), FiniteDifference()]
)
def test_other_weights_in_a_recomputation_are_refused_at_the_step(layers, estimator):
    problem = Late(CHECKPOINTED[layers])
    engine = Engine(problem, estimator, Descent("sgd", lr=0.1), outer_steps=FROM + 2)
    with pytest.raises(ValueError, match=r"inner_loss of Late recomputes layers .*checkpoint"):
        list(engine)
    assert engine.outer_step >= FROM - 1  # a solve has the batch of the step after


def test_training_alone_refuses_them_and_gives_torch_its_own_functions_back():
    before = dict(vars(torch.utils.checkpoint))
    loop = InnerLoop(Late(CHECKPOINTED["a module"]))
    outer = loop.problem.init_outer(None)
    inner = loop.run(outer, loop.start(outer, None, 0), 0, FROM)
    with pytest.raises(ValueError, match=OTHER_TENSORS):
        loop.run(outer, inner, 1, 1)
    assert dict(vars(torch.utils.checkpoint)) == before


@pytest.mark.parametrize(("tasks", "seeds"), [(2, None), (1, 2)])
def test_members_are_refused_before_a_run_that_comes_to_checkpoint(tasks, seeds):
    problem, sgd = Late(CHECKPOINTED["a module"], warm=tasks == 1), Descent("sgd", lr=0.1)
    with pytest.raises(ValueError, match=OTHER_TENSORS):
        Engine(problem, Unroll(5, tasks=tasks), sgd, outer_steps=2, seeds=seeds)


def test_a_layer_is_not_checkpointed_for_several_members_at_once():
    weight = torch.ones(2, 3, requires_grad=True)

    def loss(x):
        return checkpoint(torch.sin, x, use_reentrant=False).sum()

    with watched_checkpoints("Late", "inner_loss"), pytest.raises(ValueError, match=SEVERAL):
        torch.vmap(loss)(weight)


@pytest.mark.parametrize("estimator", [Unroll(5), Unroll(5, segments=3), Forward(5)])
def test_a_function_without_weights_may_be_recomputed(estimator):
    def layers(net, x):
        return net.last(checkpoint(torch.tanh, net.first(x), use_reentrant=False))

    loop = InnerLoop(Late(layers))
    outer = loop.problem.init_outer(None)
    start = loop.start(outer, None, 0)
    differences = run_differences(loop, outer, start, 0, 5)
    assert differences.distance(estimator(loop, outer, start, 0)[1].grad) < 1e-7
