import pytest
import torch

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.estimators import Exact, Implicit, Unroll
from metaopt.problems.examples import Quadratic


def solved(problem, outer):
    state = InnerLoop(problem).start(outer, None, 0)
    return state._replace(params={"theta": problem.solve(outer)})


def outer_of(problem):
    return {"phi": torch.linspace(-1, 1, problem.coupling.shape[1], dtype=torch.float64)}


@pytest.mark.parametrize("condition", [1.0, 10.0, 1000.0])
def test_curvature_has_the_condition_number_asked_for(condition):
    assert torch.linalg.cond(Quadratic(condition=condition).curvature) == pytest.approx(condition)


def test_inner_solution_has_no_gradient():
    problem = Quadratic()
    outer = outer_of(problem)
    theta = {"theta": problem.solve(outer).requires_grad_()}
    (grad,) = torch.autograd.grad(problem.inner_loss(outer, theta, None), [theta["theta"]])
    assert grad.abs().max() < 1e-12


def test_hypergradient_equals_the_exact_solve_and_a_long_unroll():
    problem = Quadratic()
    outer = outer_of(problem)
    exact = problem.hypergradient(outer)["phi"]
    _, dense = Implicit(Exact(), inner_steps=0)(
        InnerLoop(problem), outer, solved(problem, outer), 0
    )
    start = InnerLoop(problem).start(outer, None, 0)
    _, unrolled = Unroll(400)(InnerLoop(problem), outer, start, 0)
    torch.testing.assert_close(dense.grad["phi"], exact, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(unrolled.grad["phi"], exact, rtol=1e-10, atol=1e-12)


def test_optimum_is_a_stationary_point_of_the_hypergradient():
    problem = Quadratic()
    best = problem.optimum()
    assert tree.norm(problem.hypergradient(best)) < 1e-12
    metrics = problem.metrics(best, solved(problem, best))
    assert metrics["outer_distance"] == 0
    assert metrics["inner_distance"] < 1e-12


def test_direct_term_alone_points_the_wrong_way():
    problem = Quadratic(rho=0.5)
    outer = tree.scale(problem.optimum(), 0.5)
    direct = {"phi": problem.rho * outer["phi"]}
    exact = problem.hypergradient(outer)
    assert tree.dot(direct, exact) < 0


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"features": 1}, "features"),
        ({"condition": 0.5}, "condition"),
        ({"rho": -1.0}, "rho"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        Quadratic(inner_optimizer=SGD(lr=1.0), **settings)
