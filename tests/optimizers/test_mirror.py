"""MirrorDescent against its definition, and against the minimum it must reach."""

import pytest
import torch

from metaopt import Feedback
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_optimizers import SGD
from metaopt.estimators import Direct, Unroll
from metaopt.optimizers import MirrorDescent
from metaopt.testing import EstimatorContract, OptimizerContract

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
GRADS = [torch.tensor(g, dtype=torch.float64) for g in ([1.0, -2.0, 0.5], [0.0, 4.0, -1.0])]


def descended(grads, **settings):
    optimizer = MirrorDescent(**settings)
    optimizer.init({"p": P})
    visited = []
    for grad in grads:
        optimizer.tell(Feedback(0.0, {"p": grad}))
        visited.append(optimizer.ask(0)["p"].clone())
    return optimizer, visited


def test_two_steps_multiply_up():
    optimizer, _ = descended(GRADS, lr=0.3)
    expected = P * torch.exp(-0.3 * (GRADS[0] + GRADS[1]))
    torch.testing.assert_close(optimizer.solution["p"], expected / expected.sum())
    assert torch.equal(P, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def test_smoothing_mixes_with_uniform_in_every_step():
    p = P
    for grad in GRADS:
        p = p * torch.exp(-0.3 * grad)
        p = 0.9 * p / p.sum() + 0.1 / 3
    optimizer, _ = descended(GRADS, lr=0.3, smoothing=0.1)
    torch.testing.assert_close(optimizer.solution["p"], p)


def test_average_is_the_mean_of_what_was_visited():
    optimizer, visited = descended(GRADS, lr=0.3, average=True)
    torch.testing.assert_close(optimizer.solution["p"], torch.stack(visited).mean(0))
    assert torch.equal(optimizer.ask(0)["p"], visited[-1])


def test_normalised_steps_do_not_depend_on_the_scale():
    scaled, _ = descended([1e-6 * g for g in GRADS], lr=0.3, normalise=True)
    first = GRADS[0] / GRADS[0].square().mean().sqrt()
    second = GRADS[1] / torch.stack(GRADS).square().mean().sqrt()
    expected = P * torch.exp(-0.3 * (first + second))
    torch.testing.assert_close(scaled.solution["p"], expected / expected.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_weight_that_falls_below_the_smallest_number_can_rise_again(dtype):
    optimizer = MirrorDescent(lr=1.0)
    optimizer.init({"p": torch.tensor([0.5, 0.5, 0.0], dtype=dtype)})
    gradient = torch.tensor([1e4, 0.0, -1e4], dtype=dtype)
    for _ in range(3):
        optimizer.tell(Feedback(0.0, {"p": gradient}))
    p = optimizer.ask(0)["p"]
    assert 0 < p[0] < 1e-30
    assert p[2] == 0  # left out from the start
    optimizer.tell(Feedback(0.0, {"p": -gradient}))
    assert optimizer.ask(0)["p"][0] > 0.99


def test_a_zero_gradient_changes_nothing():
    optimizer, _ = descended([torch.zeros(3, dtype=torch.float64)], lr=0.3, normalise=True)
    torch.testing.assert_close(optimizer.solution["p"], P)


def test_rows_are_simplices_of_their_own():
    rows = torch.stack([P, P.flip(0)])
    optimizer = MirrorDescent(lr=0.3)
    optimizer.init({"p": rows})
    optimizer.tell(Feedback(0.0, {"p": torch.stack(GRADS)}))
    for row, start, grad in zip(optimizer.solution["p"], rows, GRADS, strict=True):
        expected = start * torch.exp(-0.3 * grad)
        torch.testing.assert_close(row, expected / expected.sum())


def test_a_huge_step_stays_finite_and_an_entry_of_zero_stays_zero():
    optimizer = MirrorDescent(lr=1.0)
    optimizer.init({"p": torch.tensor([0.5, 0.5, 0.0])})
    optimizer.tell(Feedback(0.0, {"p": torch.tensor([1e4, -1e4, 0.0])}))
    tiny = torch.finfo(torch.float32).tiny
    assert optimizer.solution["p"].tolist() == [tiny, 1.0, 0.0]


@pytest.mark.parametrize(
    ("outer", "error", "message"),
    [
        ({"p": torch.tensor([0.5, 0.6])}, ValueError, "sum to 1.*'p'"),
        ({"p": torch.tensor([1.5, -0.5])}, ValueError, "-0.5"),
        ({"p": torch.tensor(1.0)}, ValueError, "at least 2"),
        ("text", TypeError, "str"),
        ({"p": torch.tensor([1, 0])}, TypeError, "floating-point"),
    ],
)
def test_what_is_no_simplex_is_refused(outer, error, message):
    with pytest.raises(error, match=message):
        MirrorDescent(lr=0.1).init(outer)


@pytest.mark.parametrize(
    ("settings", "name"), [({"lr": 0.0}, "lr"), ({"lr": 1.0, "smoothing": 1.0}, "smoothing")]
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        MirrorDescent(**settings)


def test_feedback_without_a_gradient_is_refused():
    optimizer = MirrorDescent(lr=0.1)
    optimizer.init({"p": P})
    with pytest.raises(TypeError, match="gives none"):
        optimizer.tell(Feedback(0.0))


class Groups(GradientProblem):
    """Fit one number to the centres of three groups, weighted by phi.

    g = sum_k phi_k (theta - c_k)^2. F = (theta - target)^2, or `worst`: minus g, so that descent
    in phi is the ascent of group DRO.
    """

    inner_optimizer = SGD(lr=0.5)
    centres = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)

    def __init__(self, target=None):
        self.target = target

    def init_outer(self, generator):
        return {"p": torch.full((3,), 1 / 3, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"theta": torch.zeros((), dtype=torch.float64)}

    def inner_loss(self, outer, inner, batch):
        return (outer["p"] * (inner["theta"] - self.centres) ** 2).sum()

    def outer_loss(self, outer, inner, batch):
        if self.target is None:
            return -self.inner_loss(outer, inner, batch)
        return (inner["theta"] - self.target) ** 2

    def inner_batch(self, draw):
        return None

    outer_batch = inner_batch


@pytest.fixture(params=[{}, {"smoothing": 0.01, "average": True, "normalise": True}])
def settings(request):
    return request.param


class TestMirrorDescent(OptimizerContract):
    @pytest.fixture
    def make(self, settings):
        return lambda: (Groups(2.0), Unroll(5), MirrorDescent(lr=0.2, **settings))


class TestDirect(EstimatorContract):
    @pytest.fixture
    def make(self, settings):
        return lambda: (Groups(), Direct(2), MirrorDescent(lr=0.2, **settings))
