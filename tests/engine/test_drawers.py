"""The drawers of the inner level: state that carries its derivative, frozen weights, replicates."""

from functools import partial

import pytest
import torch
from torch.func import functional_call

from metaopt.engine import Engine, tree
from metaopt.engine.gradient_problem import GradientProblem, split_module
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD, Adam
from metaopt.engine.random import fold, generator
from metaopt.estimators import (
    ConjugateGradient,
    Direct,
    EvolutionStrategies,
    Exact,
    FiniteDifference,
    FirstOrder,
    Forward,
    Implicit,
    Neumann,
    OneStep,
    Penalty,
    Sama,
    ScoreFunction,
    Soba,
    Unroll,
)
from metaopt.optimizers import Descent, MirrorDescent

CARRY = [Unroll(5), *(Unroll(5, segments=s) for s in (2, 3, 5)), Forward(5)]


class Averaged(GradientProblem):
    """A small network pulled towards an average of itself; phi weighs examples and the pull.

    Args:
        read_by: inner, outer: which losses read the average; metrics alone where there is none.
        fork: whether theta_0 is made from phi, and so the average at theta_0.
    """

    def __init__(self, optimizer, read_by=("inner",), fork=False):
        self.inner_optimizer, self.read_by, self.warm_start = optimizer, read_by, not fork
        draw = generator(0)
        self.x = torch.randn(12, 3, generator=draw, dtype=torch.float64)
        self.y = torch.randn(12, 2, generator=draw, dtype=torch.float64)
        self.first = torch.randn(3, 2, generator=draw, dtype=torch.float64)

    def init_outer(self, generator):
        return {
            "weights": torch.linspace(-1, 1, 12, dtype=torch.float64),
            "pull": torch.tensor(0.3, dtype=torch.float64),
        }

    def init_params(self, outer, generator):
        return {"w": self.first * (outer["pull"] if not self.warm_start else 1.0)}

    def init_state(self, outer, params):
        return {"average": {k: v.clone() for k, v in params.items()}, "count": torch.tensor(0)}

    def update_state(self, outer, inner, step):
        average = {k: v.lerp(inner[k], 0.5) for k, v in inner.state["average"].items()}
        return {"average": average, "count": torch.tensor(step)}

    def inner_batch(self, draw):
        return torch.randint(12, (6,), generator=draw.generator)

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        error = torch.tanh(self.x[batch] @ inner["w"]) - self.y[batch]
        loss = (outer["weights"][batch].sigmoid() * error.square().sum(1)).mean()
        if "inner" in self.read_by:
            gap = inner["w"] - inner.state["average"]["w"]
            loss = loss + outer["pull"] * gap.square().sum() + (gap**3).sum()
        return loss

    def outer_loss(self, outer, inner, batch):
        w = inner.state["average"]["w"] if "outer" in self.read_by else inner["w"]
        return (torch.tanh(self.x[batch] @ w) - self.y[batch]).square().mean()

    def metrics(self, outer, inner):
        return {"size": inner.state["average"]["w"].norm()}


def central_difference(problem, outer, start, steps, direction, size=1e-5):
    """Return the slope of F after a whole run along a direction in phi; no estimator's code."""
    loop, ends = InnerLoop(problem), []
    for sign in (1, -1):
        phi = {k: v + sign * size * direction[k] for k, v in outer.items()}
        inner = loop.run(phi, start(loop, phi), 7, steps)
        ends.append(loop.evaluate(phi, inner, 7).value)
    return float(ends[0] - ends[1]) / (2 * size)


def slopes(problem, estimator, steps, warm=0):
    """Return what an estimator says of a random direction, and the central difference."""
    loop, outer = InnerLoop(problem), problem.init_outer(generator(0))
    direction = tree.random_like(outer, generator(1))
    after = loop.run(outer, loop.start(outer, None, 7), 3, warm)

    def start(loop, phi):
        return tree.clone(after) if warm else loop.start(phi, None, 7)

    estimator.check(loop)
    grad = estimator(loop, outer, start(loop, outer), 7)[1].grad
    slope = float(tree.dot(grad, direction))
    return slope, central_difference(problem, outer, start, steps, direction)


@pytest.mark.parametrize("read_by", [("inner",), ("outer",), ("inner", "outer")])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.3), SGD(lr=0.1, momentum=0.9), Adam(lr=0.05)])
@pytest.mark.parametrize("estimator", CARRY, ids=lambda e: f"{type(e).__name__}")
def test_a_state_carries_its_derivative(estimator, optimizer, read_by):
    slope, expected = slopes(Averaged(optimizer, read_by), estimator, 5, warm=3)
    assert slope == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.3), Adam(lr=0.05)])
@pytest.mark.parametrize("estimator", [Unroll(3), Unroll(3, segments=3), Forward(3)])
def test_a_state_of_a_start_that_is_made_from_phi_carries_it_too(estimator, optimizer):
    problem = Averaged(optimizer, ("inner", "outer"), fork=True)
    slope, expected = slopes(problem, estimator, 3)
    assert slope == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("read_by", [("inner",), ("outer",), ("inner", "outer")])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.3), Adam(lr=0.05)])
def test_one_step_carries_the_state_of_its_step(optimizer, read_by):
    slope, expected = slopes(Averaged(optimizer, read_by), OneStep(), 1, warm=3)
    assert slope == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.3), Adam(lr=0.05)])
def test_steps_in_place_and_on_the_graph_are_equal_to_the_bit(optimizer):
    problem = Averaged(optimizer)
    loop, outer = InnerLoop(problem), problem.init_outer(generator(0))
    inner = loop.start(outer, None, 7)
    other = tree.clone(inner)
    for k in range(3):
        inner = loop.step_(outer, inner, loop.draw(inner, 7, k))
        on_graph = loop.step(tree.leaves(outer), loop.leaves(other), loop.draw(other, 7, k))
        other = tree.detach(on_graph)
    assert inner.state["count"] == 3
    assert torch.equal(inner.params["w"], other.params["w"])
    assert torch.equal(inner.state["average"]["w"], other.state["average"]["w"])


@pytest.mark.parametrize("read_by", [("inner",), ("outer",)])
@pytest.mark.parametrize("estimator", [Implicit(), FiniteDifference(), Sama(), Soba(), Penalty()])
def test_what_cannot_carry_a_state_refuses_it(estimator, read_by):
    name = f"{read_by[0]}_loss of Averaged reads one that update_state computes"
    with pytest.raises(ValueError, match=name):
        Engine(Averaged(SGD(lr=0.1), read_by), estimator, Descent(), outer_steps=1)


@pytest.mark.parametrize("estimator", [Unroll(2), Forward(2), OneStep()])
def test_a_state_that_is_changed_in_place_is_refused(estimator):
    class InPlace(Averaged):
        def update_state(self, outer, inner, step):
            for k, average in inner.state["average"].items():
                average.lerp_(inner[k], 0.5)
            return inner.state

    with pytest.raises(ValueError, match=r"InPlace\.update_state changes a tensor in place"):
        Engine(InPlace(SGD(lr=0.1), ("outer",)), estimator, Descent(), outer_steps=1)


def test_first_order_refuses_a_state():
    class Same(Averaged):
        def init_outer(self, generator):
            return {**super().init_outer(generator), "w": self.first}

        def init_params(self, outer, generator):
            return {"w": outer["w"].clone()}

    problem = Same(SGD(lr=0.1), fork=True)
    with pytest.raises(ValueError, match="FirstOrder cannot carry"):
        FirstOrder().check(InnerLoop(problem))


@pytest.mark.parametrize("estimator", [Implicit(), FiniteDifference(), Sama(), Soba(), Penalty()])
def test_a_state_that_only_metrics_read_is_accepted(estimator):
    engine = Engine(Averaged(SGD(lr=0.1), ()), estimator, Descent(), outer_steps=2)
    assert len(list(engine)) == 2
    assert engine.metrics()["eval/size"] > 0


class Adapter(GradientProblem):
    """A trained layer on a frozen one with BatchNorm."""

    inner_optimizer = SGD(lr=0.1)

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = torch.nn.Sequential(
                torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)
            )
        self.module[0].requires_grad_(False)
        self.params, self.statistics, self.frozen = split_module(self.module)
        self.x, self.addresses = torch.randn(8, 3, generator=generator(1)), set()

    def init_outer(self, generator):
        return {"weights": torch.zeros(8)}

    def init_params(self, outer, generator):
        return tree.clone(self.params)

    def init_buffers(self, outer, params):
        return tree.clone(self.statistics)

    def inner_batch(self, draw):
        return self.x

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        self.addresses.add(inner["0.weight"].data_ptr())
        predictions = functional_call(self.module, inner, (batch,))
        return (outer["weights"].sigmoid() * predictions[:, 0] ** 2).mean()

    outer_loss = inner_loss


@pytest.mark.parametrize("estimator", [Unroll(3, segments=2), FiniteDifference(), Direct(2)])
def test_frozen_weights_are_never_copied_and_in_no_checkpoint(estimator):
    engine = Engine(Adapter(), estimator, Descent(lr=0.1), outer_steps=2)
    assert len(list(engine)) == 2
    problem = engine.problem
    assert problem.addresses == {problem.module[0].weight.data_ptr()}
    assert set(problem.frozen) == {"0.weight", "0.bias"}
    held = {t.data_ptr() for t in tree.tensors(engine.state_dict())}
    assert not held & {t.data_ptr() for t in problem.frozen.values()}
    assert "0.weight" not in engine.inner.params | engine.inner.buffers


def test_a_checkpoint_is_refused_with_other_frozen_weights():
    state = Engine(Adapter(), Direct(), Descent(), outer_steps=1).state_dict()
    Engine(Adapter(), Direct(), Descent(), outer_steps=1).load_state_dict(state)
    with pytest.raises(ValueError, match="frozen weights of Adapter are not those"):
        Engine(Adapter(seed=1), Direct(), Descent(), outer_steps=1).load_state_dict(state)


class Copies(GradientProblem):
    """R quadratics at once, each with a rate of its own as phi; losses are sums over them."""

    inner_optimizer = SGD(lr=0.1)

    def __init__(self, replicates):
        self.replicates = replicates

    def init_outer(self, generator):
        return {"pull": torch.ones(self.replicates, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"x": torch.ones(self.replicates, 2, dtype=torch.float64)}

    def inner_batch(self, draw):
        return None

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        return (outer["pull"][:, None] * inner["x"] ** 2).sum()

    def outer_loss(self, outer, inner, batch):
        return ((inner["x"] - 0.5) ** 2).sum()


@pytest.mark.parametrize("estimator", [Unroll(2), FiniteDifference(), Penalty()])
def test_replicates_log_the_mean_and_train_as_each_would_alone(estimator):
    runs = {}
    for count in (1, 4):
        engine = Engine(Copies(count), type(estimator)(), Descent(lr=0.1), outer_steps=3)
        runs[count] = [feedback for _, feedback in engine]
    for one, four in zip(runs[1], runs[4], strict=True):
        assert four.value == pytest.approx(4 * float(one.value))
        torch.testing.assert_close(four.grad["pull"], one.grad["pull"].expand(4))
        for name in ("outer/loss", "inner/loss"):
            assert four.metrics[name] == pytest.approx(float(one.metrics[name]))


def test_what_would_mix_replicates_is_refused():
    problem = Copies(4)
    problem.inner_optimizer = SGD(lr=0.1, clip_norm=1.0)
    for estimator in (Unroll(2), EvolutionStrategies()):
        with pytest.raises(ValueError, match=r"clip the gradients of the 4 replicates.*seeds=4"):
            Engine(problem, estimator, Descent(), outer_steps=1)
    for solve in (ConjugateGradient(), Neumann()):
        with pytest.raises(ValueError, match=r"step lengths that they share.*seeds=4"):
            Engine(Copies(4), Implicit(solve), Descent(), outer_steps=1)
    assert len(list(Engine(Copies(4), Implicit(Exact()), Descent(), outer_steps=1))) == 1


def test_one_reward_for_several_replicates_is_refused():
    class Decided(Copies):
        def log_prob(self, outer, inner, batch):
            return -outer["pull"].square()

        def inner_losses(self, outer, inner, batch):
            return (outer["pull"][:, None] * inner["x"] ** 2).sum(1)

        feedback_loss = Copies.outer_loss

    with pytest.raises(ValueError, match=r"what all of them gain.*seeds=4"):
        Engine(Decided(4), ScoreFunction(), Descent(), outer_steps=1)
    assert len(list(Engine(Decided(1), ScoreFunction(), Descent(), outer_steps=1))) == 1


@pytest.mark.parametrize(
    ("optimizer", "setting"),
    [
        (lambda: Descent(lr=0.1, clip_norm=0.5), "clip_norm of Descent"),
        (lambda: Descent(partial(torch.optim.Adafactor, lr=0.1)), "algorithm Adafactor of Descent"),
        (lambda: MirrorDescent(lr=0.1, normalise=True), "normalise of MirrorDescent"),
    ],
)
def test_an_outer_step_that_would_mix_replicates_is_refused(optimizer, setting):
    class Simplices(Copies):
        def init_outer(self, generator):
            return {"pull": torch.full((self.replicates, 2), 0.5, dtype=torch.float64)}

        def inner_loss(self, outer, inner, batch):
            return (outer["pull"] * inner["x"] ** 2).sum()

    with pytest.raises(ValueError, match=rf"{setting} .* 4 replicates of Simplices.*seeds=4"):
        Engine(Simplices(4), Unroll(2), optimizer(), outer_steps=1)
    assert len(list(Engine(Simplices(1), Unroll(2), optimizer(), outer_steps=1))) == 1


def test_a_draw_says_where_its_batch_is():
    draws = []

    class Noted(Averaged):
        def inner_batch(self, draw):
            draws.append(draw)
            return super().inner_batch(draw)

        def outer_batch(self, draw):
            draws.append(draw)
            return Averaged.inner_batch(self, draw)

    engine = Engine(
        Noted(SGD(lr=0.1), ()), FiniteDifference(inner_steps=2), Descent(), outer_steps=2
    )
    draws.clear()
    assert len(list(engine)) == 2
    places = [(d.outer_step, d.inner_step, d.total_inner_step, d.use) for d in draws]
    steps = [
        [(t, 0, n, "inner"), (t, 1, n + 1, "inner"), (t, None, n + 2, "outer"),
         (t, 2, n + 2, "solve")] for t, n in ((0, 0), (1, 2))
    ]  # fmt: skip
    assert places[:4] == steps[0]
    assert places[8:] == steps[1]
    assert set(places[4:8]) == set(steps[1])  # the look for dropped paths before the second step
    assert [d.run_key for d in draws] == [fold(0, t) for t in (0, 1, 1) for _ in range(4)]
