"""The stochastic quadratic against autograd through a dense solve, and its blocks."""

import pytest
import torch

from metaopt.engine.finite import Finite
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.random import Draw
from metaopt.problems.examples import StochasticQuadratic


def small(**settings):
    return StochasticQuadratic(**{
        "inner_samples": 96, "outer_samples": 32, "inner_dim": 7, "outer_dim": 4, "batch": 8,
        **settings,
    })  # fmt: skip


def mean_loss(losses, blocks):
    return torch.stack([losses(i) for i in range(blocks)]).mean()


def test_the_closed_form_equals_autograd_through_a_dense_solve():
    problem = small()
    w = torch.linspace(-1, 2, 4, dtype=torch.float64).requires_grad_()

    def g(z, phi=None):
        phi = w.detach() if phi is None else phi
        losses = lambda i: problem.inner_loss({"w": phi}, {"z": z}, problem.inner_batch_at(i))  # noqa: E731
        return mean_loss(losses, problem.inner_batches)

    zero = torch.zeros(7, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(g, zero)
    start = zero.clone().requires_grad_()
    (slope,) = torch.autograd.grad(g(start, w), [start], create_graph=True)
    z = -torch.linalg.solve(hessian, slope)
    losses = lambda j: problem.outer_loss({"w": w}, {"z": z}, problem.outer_batch_at(j))  # noqa: E731
    value = mean_loss(losses, problem.outer_batches)
    (grad,) = torch.autograd.grad(value, [w])
    outer = {"w": w.detach()}
    torch.testing.assert_close(problem.solve(outer), z.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(problem.value(outer), value.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(problem.hypergradient(outer)["w"], grad, rtol=1e-10, atol=1e-12)


def test_metrics_vanish_at_the_optimum():
    problem = small()
    best = problem.optimum()
    state = InnerLoop(problem).start(best, None, 0)
    metrics = problem.metrics(best, state._replace(params={"z": problem.solve(best)}))
    assert metrics["log10_squared_gradient"] < -20
    assert all(abs(v) < 1e-12 for k, v in metrics.items() if not k.startswith("log10"))
    start = problem.init_outer(None)
    moved = problem.metrics(start, state)
    assert moved["excess"] > 0
    torch.testing.assert_close(
        moved["squared_gradient"], problem.hypergradient(start)["w"].square().sum()
    )


def test_blocks_are_a_partition_and_samples_are_shared_between_seeds():
    problem = small()
    parts = [problem.inner_batch_at(i).x for i in range(problem.inner_batches)]
    assert torch.equal(torch.cat(parts), problem.inner.x)
    assert small(seed=5).inner.x is problem.inner.x
    assert not torch.equal(small(data_seed=1).inner.x, problem.inner.x)


def blocks(problem, draws):
    return [problem.block(draw) for draw in draws]


INNER = [Draw(t, outer_step=t, total_inner_step=t) for t in range(24)]
OUTER = [Draw(t, outer_step=t, inner_step=None, stream="outer batch") for t in range(8)]


def test_epochs_draw_each_block_once_in_an_order_of_the_seed():
    problem = small()
    inner, outer = blocks(problem, INNER), blocks(problem, OUTER)
    assert sorted(inner[:12]) == sorted(inner[12:]) == list(range(12))
    assert sorted(outer[:4]) == sorted(outer[4:]) == list(range(4))
    assert inner[:12] != inner[12:]
    assert inner != blocks(small(seed=1), INNER)


def test_with_replacement_a_block_follows_from_the_key():
    problem = small(replacement=True)
    drawn = blocks(problem, INNER)
    assert len(set(drawn[:12])) < 12
    assert drawn == blocks(small(replacement=True, seed=1), INNER)


class Forked(Finite):
    warm_start, inner_batches, outer_batches, epoch_seed = False, 6, 6, 0
    init_outer = init_params = inner_loss = outer_loss = None
    inner_batch_at = outer_batch_at = lambda self, index: index


def test_a_run_from_scratch_has_orders_of_its_own():
    problem = Forked()
    runs = [
        [problem.inner_batch(Draw(0, total_inner_step=k, run_key=key)) for k in range(6)]
        for key in range(4)
    ]
    assert all(sorted(run) == list(range(6)) for run in runs)
    assert len({tuple(run) for run in runs}) > 1


def test_a_solve_draws_with_replacement_and_a_fixed_block_stays():
    problem = small()
    solves = [Draw(t, total_inner_step=3, use="solve") for t in range(30)]
    assert len(set(blocks(problem, solves))) > 5
    assert problem.block(solves[0].of_block(2)) == 2


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"batch": 0}, "batch"), ({"inner_samples": 100}, "inner_samples to be a multiple"),
        ({"outer_samples": 36}, "outer_samples to be a multiple"), ({"mu": 0.0}, "mu"),
        ({"cross": -1.0}, "cross"), ({"inner_dim": 1}, "inner_dim"),
        ({"cross": 50.0}, "none has a convex value function"),
        ({"inner_samples": 8, "inner_dim": 20}, "none has a convex value function"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        small(**settings)


def test_a_batch_of_no_finite_problem_keeps_its_near_miss():
    class Misspelt(StochasticQuadratic):
        def inner_batch_as(self, index):
            return index

    with pytest.raises(ValueError, match="did you mean inner_batch_at"):
        small_of(Misspelt)


def small_of(kind):
    return kind(96, 32, 7, 4, batch=8)
