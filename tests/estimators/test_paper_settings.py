"""F2SA, StocBiO, AmIGO and Reptile as settings, against plain numpy and their formulas."""

import numpy as np
import pytest
import torch
from test_first_order import Adaptation

from benchmarks import numpy_solvers
from metaopt.engine import Engine
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.schedules import PowerDecay
from metaopt.estimators import (
    ConjugateGradient,
    GradientDescent,
    Identity,
    Implicit,
    Neumann,
    Penalty,
    Reptile,
)
from metaopt.optimizers import Descent
from metaopt.problems.examples import Quadratic, StochasticQuadratic


@pytest.mark.slow
def test_f2sa_equals_plain_numpy():
    steps, inner_steps, lr = 40, 3, 0.1
    inner_optimizer = SGD(lr=lr, schedule=PowerDecay(4 / 7, every=inner_steps))
    problem = StochasticQuadratic(64, 64, 8, 3, 64, mu=0.5, inner_optimizer=inner_optimizer)
    decay = PowerDecay(1 / 7)
    estimator = Penalty(None, 1.0, 1.0, inner_steps, 0.01, decay, copy_schedule=decay)
    optimizer = Descent("sgd", lr=lr, schedule=PowerDecay(4 / 7))
    engine = Engine(problem, estimator, optimizer, outer_steps=steps)
    gammas = [feedback.metrics["outer/penalty"] for _, feedback in engine]
    w, gamma = numpy_solvers.f2sa(problem, steps, inner_steps, lr, 0.01, 4 / 7, 5 / 7, 1 / 7)
    np.testing.assert_allclose(optimizer.solution["w"].numpy(), w, rtol=1e-10)
    assert gammas[-1] + 0.01 * decay(steps - 1) == pytest.approx(gamma, rel=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_a_copy_with_a_schedule_follows_the_sum_and_not_the_mean(decay):
    gamma, states = 3.0, []
    for lr, schedule in ((0.02 * (1 + gamma), None), (0.02, PowerDecay(0.0))):
        problem = Quadratic(inner_optimizer=SGD(lr=lr, weight_decay=decay))
        estimator = Penalty(gamma, gamma, inner_steps=3, copy_schedule=schedule)
        loop, outer = InnerLoop(problem), problem.init_outer(None)
        estimator(loop, outer, loop.start(outer, None, 0), 0)
        states.append(estimator.state_dict()["copy"].params["theta"])
    torch.testing.assert_close(*states, rtol=1e-12, atol=1e-14)


SOLVES = {
    "stocbio": (Neumann(terms=4, step=0.1), 4),
    "amigo": (GradientDescent(iterations=4, step=0.1), 3),
}


@pytest.mark.parametrize("name", SOLVES)
def test_products_on_fresh_batches_equal_plain_numpy(name):
    """The first iteration from q = 0 needs no product."""
    solve, products = SOLVES[name]
    problem = StochasticQuadratic(64, 32, 8, 3, 8, mu=0.5, replacement=True)
    estimator, loop = Implicit(solve, inner_steps=2, fresh_batches=True), InnerLoop(problem)
    outer = problem.init_outer(None)
    inner, q = loop.start(outer, None, 0), np.zeros(8)
    for key in range(2):
        inner, feedback = estimator(loop, outer, inner, key)
        numbers = [None, *range(products)]
        block, *solve_blocks = (
            int(loop.blocks(loop.solve_draw(inner, key, 2, number))) for number in numbers
        )
        outer_block = int(loop.blocks(loop.outer_draw(inner, key)))
        if name == "amigo" and key == 0:
            v = numpy_solvers.Quadratics(problem).terms(
                (inner.params["z"].numpy(), q, outer["w"].numpy()), 0, outer_block
            )[3]
            q = 0.1 * v
        point = inner.params["z"].numpy(), outer["w"].numpy()
        grad, q = numpy_solvers.implicit(
            problem, point, solve_blocks, block, outer_block, q, 0.1, name
        )
        np.testing.assert_allclose(feedback.grad["w"].numpy(), grad, rtol=1e-10)
        assert feedback.cost == {
            "inner_steps": 2, "gradients": 4 + products, "hvps": 1 + products
        }  # fmt: skip
        products = 4


class Fresh:
    """Products with another matrix each, of which the first one enlarges."""

    fresh = True

    def __init__(self, first):
        self.matrices = [first, *(0.5 * torch.eye(3) for _ in range(9))]

    def __call__(self, p):
        return {"x": self.matrices.pop(0) @ p["x"]}


def test_a_batch_that_enlarges_the_residual_is_no_divergence_of_the_series():
    v, first, step = torch.ones(3), torch.diag(torch.tensor([40.0, 1.0, 0.1])), 0.1
    terms = [v, v - step * first @ v]
    terms += [terms[1] * (1 - step * 0.5), terms[1] * (1 - step * 0.5) ** 2]
    assert terms[1].norm() > v.norm()
    product = Fresh(first)
    q, _, metrics = Neumann(terms=4, step=step)(product, {"x": v}, {}, 0)
    torch.testing.assert_close(q["x"], step * sum(terms))
    assert metrics["solve/negative_curvature"] == 0
    assert len(product.matrices) == 6  # one product for each term
    with pytest.raises(ValueError, match=r"grown 2\.\d+e\+04 times in 1 terms.*lower solve.step"):
        Neumann(terms=1, step=1e3)(Fresh(first), {"x": v}, {}, 0)


@pytest.mark.slow
def test_stocbio_on_batches_of_one_sample_goes_on():
    problem = StochasticQuadratic(1024, 64, 20, 3, batch=1, mu=0.1, replacement=True)
    estimator = Implicit(Neumann(10, step=0.1), fresh_batches=True)
    engine = Engine(problem, estimator, Descent("sgd", lr=0.1), outer_steps=30, seed=2)
    assert [feedback.cost["hvps"] for _, feedback in engine] == [11] * 30


def test_fresh_batches_change_nothing_where_there_is_one_batch():
    grads = []
    for fresh in (False, True):
        problem = Quadratic()
        loop, outer = InnerLoop(problem), {"phi": torch.ones(5, dtype=torch.float64)}
        estimator = Implicit(GradientDescent(5, 0.5), fresh_batches=fresh)
        grads.append(estimator(loop, outer, loop.start(outer, None, 0), 0)[1].grad["phi"])
    torch.testing.assert_close(*grads, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("solve", [ConjugateGradient(), Identity(), Neumann()])
def test_solvers_of_one_matrix_refuse_fresh_batches(solve):
    with pytest.raises(ValueError, match="needs a solver that takes products with another matrix"):
        Implicit(solve, fresh_batches=True)


def system():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 5, generator=draw).double(), torch.randn(5, generator=draw).double()
    matrix = a @ a.T / 5 + torch.eye(5)
    return matrix, lambda p: {"x": matrix @ p["x"]}, {"x": b}


def test_gradient_descent_from_zero_is_the_neumann_series_and_goes_on_from_its_solution():
    matrix, product, v = system()
    solve = GradientDescent(iterations=6, step=0.2)
    q, state, metrics = solve(product, v, {}, 0)
    series = Neumann(terms=6, step=0.2)(product, v, {}, 0)[0]
    torch.testing.assert_close(q["x"], series["x"], rtol=1e-12, atol=1e-14)
    again, _, _ = solve(product, v, state, 1)
    torch.testing.assert_close(
        again["x"], Neumann(terms=12, step=0.2)(product, v, {}, 0)[0]["x"], rtol=1e-12, atol=1e-14
    )
    before = Neumann(terms=5, step=0.2)(product, v, {}, 0)[0]["x"]
    residual = (v["x"] - matrix @ before).norm() / v["x"].norm()
    torch.testing.assert_close(metrics["solve/residual"], residual)


def test_gradient_descent_that_diverges_is_refused():
    _, product, v = system()
    with pytest.raises(ValueError, match=r"GradientDescent\(step=2.0\) diverges.*lower solve.step"):
        GradientDescent(step=2.0)(product, v, {}, 0)
    with pytest.raises(ValueError, match="step"):
        GradientDescent(step=0.0)


def test_reptile_moves_phi_towards_the_adapted_parameters():
    problem = Adaptation()
    loop, outer = InnerLoop(problem), problem.init_outer(None)
    inner, feedback = Reptile(3)(loop, outer, loop.start(outer, None, 0), 0)
    adapted = problem.adapted(outer["weight"], 3)
    torch.testing.assert_close(feedback.grad["weight"], outer["weight"] - adapted)
    torch.testing.assert_close(
        torch.as_tensor(feedback.value), problem.outer_loss(outer, inner.params, problem.query)
    )


class Tasks(Adaptation):
    """Each task has targets of its own; with `ragged` batches they cannot be stacked."""

    ragged = False

    def inner_batch(self, draw):
        x, y = self.support
        rows = len(x) - (draw.task_index if self.ragged else 0)
        return x[:rows], y[:rows] + torch.randn((), generator=draw.task, dtype=torch.float64)


class RaggedTasks(Tasks):
    ragged = True


@pytest.mark.parametrize("kind", [Tasks, RaggedTasks])
def test_reptile_takes_the_mean_over_tasks(kind):
    loop, outer = InnerLoop(kind()), kind().init_outer(None)
    _, feedback = Reptile(2, tasks=3)(loop, outer, loop.start(outer, None, 0), 0)
    loop.meta_batches.clear()
    from metaopt.engine.meta_batch import MetaBatch

    ends = [
        one.run(outer, one.start(outer, None, key), key, 2).params["weight"].clone()
        for one, key in MetaBatch(loop, 3).each_task(0)
    ]
    expected = outer["weight"] - torch.stack(ends).mean(0)
    torch.testing.assert_close(feedback.grad["weight"], expected, rtol=1e-12, atol=1e-14)
    assert feedback.cost["gradients"] == 6


class Rated(Adaptation):
    def init_outer(self, generator):
        return super().init_outer(generator) | {"rate": torch.zeros(1, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"weight": outer["weight"].clone()}


class Warm(Adaptation):
    warm_start = True


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (Adaptation(pull=0.3), "reads the outer variable itself"),
        (Rated(), "'rate' of the outer variable of Rated is none of them"),
        (Warm(), "Reptile needs theta to start at phi"),
    ],
)
def test_reptile_refuses_what_it_would_leave_out(problem, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        Reptile().check(InnerLoop(problem))
