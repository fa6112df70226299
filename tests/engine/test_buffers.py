"""BatchNorm's running statistics, and what else a module writes in its buffers, on the graph."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from weighted import Weighted

from metaopt.engine import Engine, tree
from metaopt.engine.buffers import RunningStatistics
from metaopt.engine.gradient_problem import split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam
from metaopt.engine.meta_batch import task_key
from metaopt.engine.random import generator
from metaopt.estimators import (
    Direct,
    FiniteDifference,
    FirstOrder,
    Forward,
    Implicit,
    OneStep,
    Penalty,
    Sama,
    Soba,
    Unroll,
)
from metaopt.optimizers import Descent
from metaopt.testing import run_differences

CARRY = [Unroll(4), Unroll(4, segments=2), Unroll(4, segments=4), Forward(4)]
REFUSE = [Implicit(), FiniteDifference(), Sama(), Soba(), Penalty()]


class Average(nn.Module):
    """Subtracts a moving average of its inputs, which training mode writes on the graph."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.mean(0), 0.2)
        return x - self.mean


class PlainNorm(nn.BatchNorm1d):
    """BatchNorm that calls torch's own function, past `torch.nn.functional`."""

    def forward(self, x):
        statistics = self.running_mean, self.running_var
        return torch.batch_norm(
            x, self.weight, self.bias, *statistics, self.training, self.momentum, self.eps, False
        )


LAYERS = {
    "direct": lambda: PlainNorm(8),
    "batch_norm": lambda: nn.BatchNorm1d(8),
    "cumulative": lambda: nn.BatchNorm1d(8, momentum=None, affine=False),
    "instance_norm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
    "own": Average,
}


class Normalized(Weighted):
    """Weights of examples, learned on F of a network with a layer of statistics.

    Args:
        layer: makes that layer of 8 features.
        mode: of the module in F: train, eval, or constant for eval on constant buffers.
        shift: whether phi also moves the inputs, and so the statistics, of g.
        before: whether the layer is before the parameters, so that no statistic depends on them.
    """

    def __init__(
        self, layer=LAYERS["batch_norm"], mode="eval", shift=False, before=False, optimizer=None
    ):
        def make():
            parts = [layer(), nn.Linear(8, 8)] if before else [nn.Linear(8, 8), layer()]
            return nn.Sequential(*parts, nn.Tanh(), nn.Linear(8, 3))

        super().__init__(make, optimizer or SGD(lr=0.3), mode, features=8)
        self.shift = shift

    outer_batch = Weighted.inner_batch

    def inner_loss(self, outer, inner, batch):
        x = self.x[batch] + (outer["weights"].repeat(2) if self.shift else 0.0)
        outputs = functional_call(self.module.train(), inner, (x,))
        return self.weighted_loss(outer, outputs, batch)

    def outer_loss(self, outer, inner, batch):
        inner = inner.with_constant_buffers() if self.outer_mode == "constant" else inner
        module = self.module.train(self.outer_mode == "train")
        return F.cross_entropy(functional_call(module, inner, (self.xv[batch],)), self.yv[batch])


def distances(problem, estimators, steps):
    """Return how far estimators are from differences of whole runs, after 3 steps."""
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    inner = loop.run(outer, loop.start(outer, None, 0), 1, 3)
    differences = run_differences(loop, outer, inner, 7, steps, directions=1)
    errors = []
    for estimator in estimators:
        estimator.check(loop)
        errors.append(differences.distance(estimator(loop, outer, tree.clone(inner), 7)[1].grad))
    return errors


@pytest.mark.parametrize("layer", LAYERS)
def test_statistics_that_the_outer_loss_reads_carry_their_derivative(layer):
    problem = Normalized(LAYERS[layer], optimizer=SGD(lr=0.3, momentum=0.5))
    assert max(distances(problem, CARRY, 4)) < 1e-7
    # It matters: the same derivative at constant statistics is another one.
    problem.outer_mode = "constant"
    assert min(distances(problem, [Unroll(4), Forward(4)], 4)) > 1e-4


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), Adam(lr=0.01, eps=1e-4)])
def test_statistics_that_phi_moves_carry_their_derivative(optimizer):
    problem = Normalized(shift=True, optimizer=optimizer)
    assert max(distances(problem, CARRY, 4)) < 1e-6


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("estimator", REFUSE)
def test_what_cannot_carry_statistics_refuses_them(estimator, layer):
    problem = Normalized(LAYERS[layer])
    message = r"outer_loss of Normalized reads '1\.[a-z0-9_.]+', which inner steps compute from the"
    with pytest.raises(ValueError, match=message):
        Engine(problem, estimator, Descent(), outer_steps=1)


@pytest.mark.parametrize("estimator", REFUSE)
def test_statistics_that_need_no_derivative_are_accepted(estimator):
    for problem in (Normalized(mode="train"), Normalized(mode="constant"), Normalized(before=True)):
        engine = Engine(problem, estimator, Descent(), outer_steps=1)
        assert len(list(engine)) == 1


def test_one_step_is_exact_where_statistics_do_not_depend_on_phi():
    assert max(distances(Normalized(), [OneStep()], 1)) < 1e-7
    # torch's forward mode fails where batch statistics depend on phi.
    with pytest.raises(ValueError, match="in forward mode"):
        OneStep().check(InnerLoop(Normalized(mode="train", shift=True)))
    with pytest.raises(ValueError, match="compute from the outer variable"):
        OneStep().check(InnerLoop(Normalized(shift=True)))


class Fork(Normalized):
    """The same from an initial value that is learned too."""

    warm_start = False

    def init_outer(self, generator):
        return {**super().init_outer(generator), **split_module(self.module)[0]}

    def init_params(self, outer, generator):
        return {k: v.clone() for k, v in outer.items() if k != "weights"}


def test_statistics_of_each_task_of_a_meta_batch_carry_their_derivative():
    loop = InnerLoop(Fork())
    outer = loop.problem.init_outer(None)
    grads = []
    for i in range(3):
        loop.task_index = i
        start = loop.start(outer, None, task_key(7, i))
        grads.append(Unroll(2)(loop, outer, start, task_key(7, i))[1].grad)
    loop.task_index = 0
    together = Unroll(2, segments=2, tasks=3)(loop, outer, loop.start(outer, None, 7), 7)[1].grad
    for name, grad in together.items():
        torch.testing.assert_close(grad, sum(g[name] for g in grads) / 3, rtol=1e-9, atol=1e-12)
    assert loop.meta_batches[3].runs


def test_first_order_refuses_statistics_and_direct_holds_them_fixed():
    with pytest.raises(ValueError, match="FirstOrder cannot carry the derivative of buffers"):
        FirstOrder().check(InnerLoop(Fork()))
    assert max(distances(Fork(), [Unroll(4, segments=3)], 4)) < 1e-7
    Direct().check(InnerLoop(Normalized()))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_statistics_are_those_of_a_plain_run_to_the_bit(layer, mode):
    loop = InnerLoop(Normalized(LAYERS[layer], mode))
    outer = loop.problem.init_outer(None)
    plain = loop.run(outer, loop.start(outer, None, 0), 7, 4)
    for estimator in CARRY:
        inner, _ = estimator(loop, outer, loop.start(outer, None, 0), 7)
        assert all(torch.equal(inner.buffers[k], v) for k, v in plain.buffers.items())
    assert not any(t.requires_grad for t in [*inner.buffers.values(), *plain.buffers.values()])


def test_an_average_of_parameters_and_statistics_carries_both():
    class MeanTeacher(Normalized):
        def init_state(self, outer, params):
            return {k: v.clone() for k, v in (params | self.init_buffers(outer, params)).items()}

        def update_state(self, outer, inner, step):
            return {
                k: v.lerp(inner[k], 0.3) if v.is_floating_point() else inner[k].clone()
                for k, v in inner.state.items()
            }

        def outer_loss(self, outer, inner, batch):
            outputs = functional_call(self.module.eval(), inner.state, (self.xv[batch],))
            return F.cross_entropy(outputs, self.yv[batch])

    assert max(distances(MeanTeacher(), CARRY, 4)) < 1e-7


def test_statistics_that_no_loss_reads_cost_nothing():
    def graph_bytes(problem):
        loop, outer = InnerLoop(problem), tree.leaves(problem.init_outer(None))
        sizes = {}

        def count(t):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            start = loop.leaves(loop.start(outer, None, 0))
            end = loop.step(outer, start, loop.draw(start, 7, 0))
        return sum(sizes.values()), loop.differentiated(end)

    size, differentiated = graph_bytes(Normalized(mode="train"))
    assert InnerLoop(Normalized(mode="train")).carried_buffers == frozenset()
    assert len(differentiated) == 6  # the parameters alone
    larger, differentiated = graph_bytes(Normalized())
    assert len(differentiated) == 8
    assert size <= larger


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 2, 2)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_both_normalizations_are_those_of_torch(shape, affine, training):
    x = torch.randn(shape, generator=generator(0))
    weights = [torch.rand(3, generator=generator(i)) if affine else None for i in (1, 2)]
    calls = [partial(F.batch_norm, training=training)]
    if len(shape) > 2:
        calls.append(partial(F.instance_norm, use_input_stats=training))
    for call in calls:
        expected = [torch.zeros(3), torch.ones(3)]
        output = call(x, *expected, *weights, momentum=0.3)
        leaves = [torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)]
        statistics = [t.clone() for t in leaves]
        with RunningStatistics():
            result = call(x, *statistics, *weights, momentum=0.3)
        torch.testing.assert_close(result, output)
        assert all(torch.equal(*pair) for pair in zip(statistics, expected, strict=True))


def test_a_module_that_writes_its_graph_in_a_buffer_keeps_none_of_it():
    class Recorded(Average):
        def forward(self, x):
            super().forward(x)
            return x

    loop = InnerLoop(Normalized(Recorded, mode="train"))
    outer = loop.problem.init_outer(None)
    for estimator in (OneStep(), Soba(), Penalty(), FiniteDifference()):
        inner, _ = estimator(loop, outer, loop.start(outer, None, 0), 7)
        assert not inner.buffers["1.mean"].requires_grad
        assert inner.buffers["1.mean"].abs().sum() > 0


class Assigned(nn.Module):
    """An average and a count of calls that are assigned, not changed in place; torch's buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.calls = self.calls + 1
            self.mean = 0.8 * self.mean + 0.2 * x.mean(0)
        return x - self.mean


@pytest.mark.parametrize("estimator", CARRY)
def test_buffers_that_a_module_assigns_carry_their_value_and_derivative(estimator):
    loops = [InnerLoop(Normalized(layer)) for layer in (Assigned, Average)]
    results = []
    for loop in loops:
        outer = loop.problem.init_outer(None)
        estimator.check(loop)
        results.append(estimator(loop, outer, loop.start(outer, None, 0), 7))
    (inner, feedback), (expected, reference) = results
    assert inner.buffers["1.calls"] == 4
    torch.testing.assert_close(inner.buffers["1.mean"], expected.buffers["1.mean"])
    torch.testing.assert_close(feedback.grad, reference.grad, rtol=1e-9, atol=1e-12)
    assert not inner.buffers["1.mean"].requires_grad
