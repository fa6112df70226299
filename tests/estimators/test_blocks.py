"""Hypergradients through rematerialised blocks against those through the same modules."""

import pytest
import torch
from torch import nn
from user_modules import KINDS, REFUSED, Layer, Regression, seeded

from benchmarks.remat import Language, hypergradient
from metaopt.engine.functional import functional_call
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import AdamW
from metaopt.engine.remat_blocks import remat_blocks
from metaopt.estimators import (
    ConjugateGradient,
    FiniteDifference,
    Forward,
    Identity,
    Implicit,
    Nystrom,
    OneStep,
    Penalty,
    Sama,
    Soba,
    Unroll,
)
from metaopt.testing.meter import PeakMemory

ESTIMATORS = {
    "unroll": lambda: Unroll(2),
    "segments": lambda: Unroll(3, segments=2),
    "forward": lambda: Forward(2),
    "one_step": lambda: OneStep(1),
    "identity": lambda: Implicit(Identity()),
    "conjugate_gradient": lambda: Implicit(ConjugateGradient(3)),
    "nystrom": lambda: Implicit(ConjugateGradient(3, preconditioner=Nystrom(rank=2))),
    "soba": lambda: Soba(),
    "penalty": lambda: Penalty(),
    "finite_difference": lambda: FiniteDifference(),
    "sama": lambda: Sama(),
}
BLOCKS = r"^(layers\.\d+|layer|core|0)$"


def normed():
    """Blocks with dropout and BatchNorm, for inputs (6, 5, 4)."""

    def block():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Tanh())

    return Layer(lambda m, x: m.layers[1](m.layers[0](x)), layers=nn.ModuleList([block(), block()]))


MODULES = {
    "dropout and batch norm": seeded(normed),
    **{k: KINDS[k] for k in ("lstm with dropout", "transformer layer", "in place", "tied")},
}


class Shifted(Regression):
    """phi moves the inputs too, so that the blocks' inputs are on its graph."""

    def losses(self, inner, batch):
        return super().losses(inner, (batch[0] + self.shift, batch[1]))

    def inner_loss(self, outer, inner, batch):
        self.shift = outer["weights"].sum() / 10
        return super().inner_loss(outer, inner, batch)

    def outer_loss(self, outer, inner, batch):
        self.shift = 0.0
        return super().outer_loss(outer, inner, batch)


def run(make, estimator, problem=Regression, blocks=None, optimizer=None):
    """Return the hypergradient, the state and F of one outer step, after the estimator's check."""
    module = make()
    made = problem(module if blocks is None else remat_blocks(module, blocks))
    made.inner_optimizer = optimizer or made.inner_optimizer
    loop, outer = InnerLoop(made), made.init_outer(None)
    estimator = estimator()
    estimator.check(loop)
    start = loop.run(outer, loop.start(outer, None, 3), 2, 2)
    inner, feedback = estimator(loop, outer, start, 3)
    tensors = [*inner.params.values(), *inner.buffers.values()]
    return [feedback.grad["weights"], torch.as_tensor(feedback.value), *tensors]


def assert_same(a, b, tolerance=1e-13):
    for x, y in zip(a, b, strict=True):
        assert torch.allclose(x, y, rtol=tolerance, atol=tolerance * float(x.abs().max()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equals_the_module(estimator):
    make = MODULES["dropout and batch norm"]
    # A solve amplifies round-off by the condition number.
    tolerance = 1e-10 if estimator in ("conjugate_gradient", "nystrom") else 1e-13
    plain, remat = (run(make, ESTIMATORS[estimator], blocks=b) for b in (None, BLOCKS))
    assert float(plain[0].norm()) > 0 or estimator == "soba"  # its adjoint starts at 0
    assert_same(plain, remat, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [k for k in ESTIMATORS if k != "nystrom"])
@pytest.mark.parametrize("kind", MODULES)
def test_every_module_equals_itself(kind, estimator):
    tolerance = 1e-9 if estimator == "conjugate_gradient" else 1e-12
    results = [run(MODULES[kind], ESTIMATORS[estimator], blocks=b) for b in (None, BLOCKS)]
    assert_same(*results, tolerance)


@pytest.mark.parametrize("estimator", ["unroll", "segments", "forward"])
def test_equals_the_module_under_adamw_with_clipping(estimator):
    make, optimizer = MODULES["dropout and batch norm"], AdamW(lr=0.01, eps=1e-3, clip_norm=0.1)
    results = [
        run(make, ESTIMATORS[estimator], blocks=b, optimizer=optimizer) for b in (None, BLOCKS)
    ]
    assert_same(*results, 1e-11)


class Core(nn.Module):
    """A function of a linear layer's output, as a block."""

    def __init__(self, function):
        super().__init__()
        self.inner, self.function = nn.Linear(4, 4), function

    def forward(self, x):
        return self.function(self.inner(x))


def around(function):
    """Return a module whose block `core` is this function of a linear layer."""
    return seeded(lambda: Layer(lambda m, x: m.core(x), core=Core(function)))()


@pytest.mark.parametrize("estimator", ["unroll", "one_step", "finite_difference", "penalty"])
def test_what_a_block_detaches_is_constant_in_its_recomputation(estimator):
    """A finite difference replays what is detached, in a block whose inputs depend on phi too."""

    def make():
        return around(lambda y: y * y.detach().tanh())

    tolerance = 1e-9 if estimator == "finite_difference" else 1e-12
    results = [run(make, ESTIMATORS[estimator], Shifted, blocks=b) for b in (None, BLOCKS)]
    assert_same(*results, tolerance)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_block_that_closes_over_phi_is_refused_by_name(estimator):
    problem = Regression(remat_blocks(around(lambda y: y * problem.scale), "core$"))
    losses = problem.losses

    def inner_loss(outer, inner, batch):
        problem.scale = outer["weights"].sum()
        return losses(inner, batch).mean()

    def outer_loss(outer, inner, batch):
        problem.scale = 1.0
        return losses(inner, batch).mean()

    problem.inner_loss, problem.outer_loss = inner_loss, outer_loss
    with pytest.raises(ValueError, match=r"block 'core' of Layer is rematerialised and reads a"):
        ESTIMATORS[estimator]().check(InnerLoop(problem))


@pytest.mark.parametrize("kind", ["checkpointed", "weight_norm", "generator of its own"])
def test_what_is_refused_of_a_module_is_refused_in_a_block(kind):
    make, _ = REFUSED[kind]
    module = nn.Sequential(nn.Sequential(seeded(make)()))
    with pytest.raises(ValueError, match=r"checkpoint|weight_norm|of its own"):
        Unroll(2).check(InnerLoop(Regression(remat_blocks(module, "^0$"), torch.float32)))


def test_a_checkpointed_module_is_told_of_blocks():
    problem = Regression(seeded(REFUSED["checkpointed"][0])())
    with pytest.raises(ValueError, match=r"metaopt\.remat_blocks\(module, pattern\)"):
        Unroll(2).check(InnerLoop(problem))


def test_tasks_are_vmapped_and_right():
    def tasks(blocks):
        problem = Regression(seeded(lambda: Layer(lambda m, x: m.core(x), core=nn.Linear(4, 4)))())
        problem.warm_start = False
        if blocks:
            remat_blocks(problem.module, "core")
        loop, outer = InnerLoop(problem), problem.init_outer(None)
        estimator = Unroll(2, tasks=3)
        estimator.check(loop)
        return estimator(loop, outer, loop.start(outer, None, 3), 3)[1].grad["weights"]

    assert_same([tasks(False)], [tasks(True)])


def test_an_outer_network_may_have_blocks():
    network = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)))().double()
    params = {k: v.detach() for k, v in network.named_parameters()}

    class Weighted(Regression):
        def init_outer(self, generator):
            return params

        def inner_loss(self, outer, inner, batch):
            weights = functional_call(network, outer, (batch[0],)).flatten(1).mean(1)
            return (weights.sigmoid() * self.losses(inner, batch)).mean()

    def grads():
        problem = Weighted(MODULES["dropout and batch norm"]())
        loop = InnerLoop(problem)
        Unroll(2).check(loop)
        return list(Unroll(2)(loop, params, loop.start(params, None, 3), 3)[1].grad.values())

    plain = grads()
    remat_blocks(network, "0|2")
    assert_same(plain, grads())


@pytest.mark.slow
def test_a_transformer_is_differentiated_in_less_than_half_of_the_memory_and_within_a_budget():
    peaks, grads = {}, {}
    for how in ("plain", "checkpoint", "remat"):
        problem = Language(how)
        with PeakMemory() as meter:
            grads[how] = hypergradient(problem, 2)
        peaks[how] = meter.peak
    assert peaks["remat"] <= 0.45 * peaks["plain"]
    assert peaks["remat"] <= 0.5 * peaks["checkpoint"]
    assert torch.allclose(grads["remat"], grads["plain"], rtol=1e-5)

    # Half of the graph of a plain step; a block that is computed again is counted.
    budget = 130 * 2**20
    loop, phi = InnerLoop(Language("remat")), {"weight": torch.zeros(64)}
    estimator = Unroll(2, memory_budget=budget)
    estimator(loop, phi, loop.start(phi, None, 0), 0)  # the first run measures
    with PeakMemory() as meter:
        estimator(loop, phi, loop.start(phi, None, 0), 0)
    assert meter.peak <= budget
