"""What a loss comes to read after the first step, where an estimator holds it fixed."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metaopt.engine import Engine, tree
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import generator
from metaopt.estimators import (
    Direct,
    FiniteDifference,
    FirstOrder,
    Forward,
    Identity,
    Implicit,
    OneStep,
    Penalty,
    Sama,
    Soba,
    Unroll,
)
from metaopt.optimizers import Descent

START = 2
"""The outer step, from 0, at which a loss starts to read."""


class Late(GradientProblem):
    """Weights of examples for a network with BatchNorm and an average of its parameters.

    Args:
        reads: what is read from outer step `START` on: statistics by F; average by F; pull, to the
            average, by g; rate, which phi then decides.
        start: that step.
    """

    def __init__(self, reads, start=START):
        self.reads, self.start = reads, start
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.module = nn.Sequential(
                nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)
            ).double()
        draw = generator(0)
        self.x, self.xv = torch.randn(2, 24, 4, generator=draw, dtype=torch.float64)
        self.y, self.yv = torch.randint(0, 3, (2, 24), generator=draw)

    def inner_optimizer(self, outer, step):
        late = self.reads == "rate" and step >= self.start
        return SGD(lr=outer["weights"].mean().sigmoid() if late else 0.3)

    def init_outer(self, generator):
        return {"weights": torch.linspace(-1, 1, 4, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return split_module(self.module)[0]

    def init_buffers(self, outer, params):
        return split_module(self.module)[1]

    def init_state(self, outer, params):
        return {"average": {k: v.clone() for k, v in params.items()}}

    def update_state(self, outer, inner, step):
        return {"average": {k: v.lerp(inner[k], 0.3) for k, v in inner.state["average"].items()}}

    def inner_batch(self, draw):
        return draw.outer_step >= self.start

    outer_batch = inner_batch

    def distance(self, inner):
        return sum((inner[k] - v).square().sum() for k, v in inner.state["average"].items())

    def inner_loss(self, outer, inner, late):
        outputs = functional_call(self.module.train(), inner, (self.x,))
        losses = F.cross_entropy(outputs, self.y, reduction="none")
        loss = (outer["weights"].sigmoid().repeat(6) * losses).mean()
        return loss + self.distance(inner) if late and self.reads == "pull" else loss

    def outer_loss(self, outer, inner, late):
        self.module.train(not (late and self.reads == "statistics"))
        loss = F.cross_entropy(functional_call(self.module, inner, (self.xv,)), self.yv)
        return loss + self.distance(inner) if late and self.reads == "average" else loss


HOLD = {
    "implicit": Implicit(inner_steps=1),
    "identity": Implicit(Identity()),
    "finite_difference": FiniteDifference(),
    "sama": Sama(),
    "soba": Soba(),
    "penalty": Penalty(),
}
CARRY = {
    "unroll": Unroll(),
    "segments": Unroll(2, segments=2),
    "forward": Forward(),
}


@pytest.mark.parametrize("name", HOLD)
@pytest.mark.parametrize(
    ("reads", "sentence"),
    [
        ("statistics", r"outer_loss of Late reads '1.running_mean' at outer step 3"),
        ("average", "outer_loss of Late reads one at outer step 3 that update_state computes"),
        ("pull", "inner_loss of Late reads one at outer step 3 that update_state computes"),
    ],
)
def test_what_is_held_fixed_is_refused_when_a_loss_starts_to_read_it(name, reads, sentence):
    engine = Engine(Late(reads), HOLD[name], Descent("sgd", lr=0.1), outer_steps=5)
    with pytest.raises(ValueError, match=sentence):
        list(engine)
    assert engine.outer_step == START


@pytest.mark.parametrize("name", CARRY)
def test_statistics_that_carry_no_derivative_are_refused_when_f_starts_to_read_them(name):
    engine = Engine(Late("statistics"), CARRY[name], Descent("sgd", lr=0.1), outer_steps=5)
    with pytest.raises(ValueError, match="Let outer_loss read it from the first step on"):
        list(engine)
    assert engine.outer_step == START
    for reads in ("average", "pull"):
        engine = Engine(Late(reads), CARRY[name], Descent("sgd", lr=0.1), outer_steps=3)
        assert len(list(engine)) == 3


@pytest.mark.parametrize("name", ["identity", "finite_difference", "sama"])
def test_a_rate_that_phi_decides_from_some_step_on_is_refused_then(name):
    engine = Engine(Late("rate"), HOLD[name], Descent("sgd", lr=0.1), outer_steps=5)
    with pytest.raises(ValueError, match=r"inner_optimizer makes lr of the outer variable"):
        list(engine)
    assert engine.outer_step == START


@pytest.mark.parametrize("name", [*HOLD, *CARRY, "direct", "one_step"])
def test_where_nothing_is_read_a_run_is_that_without_a_look(name):
    estimator = {**HOLD, **CARRY, "direct": Direct(), "one_step": OneStep()}[name]
    grads = []
    for looked_at in (True, False):
        engine = Engine(Late("nothing"), estimator, Descent("sgd", lr=0.1), outer_steps=3)
        if not looked_at:
            engine.loop.computed_buffers = lambda sources: frozenset()
            engine.loop.updates_state = name in (*CARRY, "one_step")
        grads.append([feedback.grad["weights"] for _, feedback in engine])
        state = engine.inner
        assert not any(t.requires_grad for t in tree.tensors((state.params, state.buffers)))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_one_step_carries_what_f_starts_to_read():
    problem = Late("statistics", start=0)
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    exact = Unroll(1)(loop, outer, loop.start(outer, None, 0), 0)[1].grad["weights"]
    late = Late("statistics")
    engine = Engine(late, OneStep(), Descent("sgd", lr=0.1), outer_steps=3)
    assert len(list(engine)) == 3
    loop = InnerLoop(problem)
    grad = OneStep()(loop, outer, loop.start(outer, None, 0), 0)[1].grad["weights"]
    torch.testing.assert_close(grad, exact)


def test_a_start_that_is_adapted_refuses_a_late_average_too():
    class Fork(Late):
        warm_start = False

        def init_outer(self, generator):
            return {**super().init_outer(generator), **split_module(self.module)[0]}

        def init_params(self, outer, generator):
            return {k: v.clone() for k, v in outer.items() if k != "weights"}

        def inner_loss(self, outer, inner, late):
            pull = sum((v - outer[k]).square().sum() for k, v in inner.params.items())
            return super().inner_loss(outer, inner, late) + 0.1 * pull

    engine = Engine(Fork("average"), FirstOrder(), Descent("sgd", lr=0.1), outer_steps=5)
    with pytest.raises(ValueError, match="FirstOrder cannot carry the derivative of a state"):
        list(engine)
    engine = Engine(Fork("average"), Implicit(tasks=2, any_start=True), Descent(), outer_steps=5)
    with pytest.raises(ValueError, match="Implicit cannot carry the derivative of a state"):
        list(engine)
