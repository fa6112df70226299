"""Implicit and its solvers against the closed form of ridge regression."""

import pytest
import torch
from cases import Classification

from metaopt.engine import tree
from metaopt.engine.inner_loop import InnerLoop
from metaopt.engine.inner_optimizers import SGD
from metaopt.estimators import (
    ConjugateGradient,
    Exact,
    FiniteDifference,
    Implicit,
    Neumann,
    Nystrom,
    OneStep,
    Unroll,
)
from metaopt.problems.examples import Ridge


@pytest.fixture
def ridge() -> Ridge:
    return Ridge(inner_optimizer=SGD(lr=0.5))


def solved(problem, outer):
    """Return the inner state at the exact solution."""
    state = InnerLoop(problem).start(outer, None, 0)
    return state._replace(params={"weight": problem.solve(outer)})


def error(estimate, exact):
    return float(tree.norm(tree.add(estimate, exact, -1.0)) / tree.norm(exact))


@pytest.mark.parametrize(
    ("solver", "bound"),
    [
        (Exact(), 1e-10),
        (ConjugateGradient(iterations=40, damping=0.0, tolerance=0.0), 1e-10),
        (ConjugateGradient(40, 0.0, 1e-12, preconditioner=Nystrom(rank=5)), 1e-9),
        (Neumann(terms=800), 1e-8),
        (Neumann(terms=2000, step=0.5), 1e-10),
    ],
    ids=str,
)
def test_converged_solvers_equal_the_closed_form(ridge, solver, bound):
    outer = ridge.init_outer(None)
    _, feedback = Implicit(solver, inner_steps=0)(InnerLoop(ridge), outer, solved(ridge, outer), 0)
    assert error(feedback.grad, ridge.hypergradient(outer)) < bound


def test_default_conjugate_gradient_cold_and_warm(ridge):
    estimator, outer = Implicit(inner_steps=0), ridge.init_outer(None)
    errors = []
    for step in range(20):
        _, feedback = estimator(InnerLoop(ridge), outer, solved(ridge, outer), step)
        errors.append(error(feedback.grad, ridge.hypergradient(outer)))
        outer = tree.add(outer, feedback.grad, -1.0)
    assert errors[0] < 0.1
    assert max(errors[5:]) < 0.01


def test_conjugate_gradient_reports_its_true_residual(ridge):
    outer = ridge.init_outer(None)
    v = {"weight": torch.linspace(-1, 1, 20, dtype=torch.float64)}
    hessian = ridge.hessian(outer)
    solver = ConjugateGradient(6, 0.0, 0.0)
    q, _, metrics = solver(lambda p: {"weight": hessian @ p["weight"]}, v, {}, 0)
    true = torch.linalg.norm(v["weight"] - hessian @ q["weight"]) / torch.linalg.norm(v["weight"])
    torch.testing.assert_close(metrics["solve/residual"], true)


def test_early_convergence_keeps_the_converged_iterate():
    v = {"x": torch.ones(5, dtype=torch.float64)}
    solver = ConjugateGradient(iterations=50, damping=0.0, tolerance=1e-8)
    q, _, _ = solver(lambda p: tree.scale(p, 4.0), v, {}, 0)
    torch.testing.assert_close(q["x"], v["x"] / 4)


@pytest.mark.parametrize(
    ("diagonal", "v"), [((1, -1), (1, 2)), ((1, -1), (1, 1)), ((-1, -4), (3, 1)), ((-1, 9), (3, 1))]
)
@pytest.mark.parametrize("solved_before", [False, True])
def test_indefinite_curvature_is_said_and_leaves_no_solution_of_zero(diagonal, v, solved_before):
    v = {"x": torch.tensor(v, dtype=torch.float64)}
    diagonal = torch.tensor(diagonal, dtype=torch.float64)
    state = {}
    if solved_before:
        state = {"solution": {"x": torch.ones(2, dtype=torch.float64)}, "curvature": torch.ones(())}
    q, _, metrics = ConjugateGradient()(lambda p: {"x": diagonal * p["x"]}, v, state, 0)
    assert metrics["solve/negative_curvature"] == 1
    assert (q["x"] * v["x"]).sum() > 0
    residual = torch.linalg.norm(v["x"] - diagonal * q["x"]) / torch.linalg.norm(v["x"])
    torch.testing.assert_close(residual, metrics["solve/residual"])
    if residual > 1:  # the first iterate of a system with more damping
        raised = (diagonal + metrics["solve/damping"]) * v["x"]
        step = (v["x"] @ v["x"]) / (v["x"] @ raised)
        torch.testing.assert_close(q["x"], step * v["x"])


def test_conjugate_gradients_without_curvature_are_refused():
    v = {"x": torch.ones(2, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"no curvature along dF/dtheta.*Add a decay"):
        ConjugateGradient()(lambda p: tree.scale(p, 0.0), v, {}, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_warm_solves_stay_bounded_where_a_network_is_not_convex(seed):
    problem = Classification(hidden=24, seed=seed)
    outer = problem.init_outer(torch.Generator().manual_seed(seed))
    inner, estimator = InnerLoop(problem).start(outer, None, 0), Implicit(inner_steps=5)
    for step in range(60):
        inner, feedback = estimator(InnerLoop(problem), outer, inner, step)
        assert feedback.metrics["solve/residual"] <= 2 + 1e-6


def test_solvers_survive_a_zero_vector_and_a_negative_definite_hessian():
    zero, one = ({"x": torch.full((3,), c, dtype=torch.float64)} for c in (0.0, 1.0))
    neumann, state = Neumann(terms=30), {}
    for v in (zero, one, one):
        q, state, _ = neumann(lambda p: tree.scale(p, 2.0), v, state, 0)
    torch.testing.assert_close(q["x"], one["x"] / 2, rtol=1e-6, atol=0)
    solver = ConjugateGradient(preconditioner=Nystrom(rank=2))
    q, _, metrics = solver(lambda p: tree.scale(p, -1.0), one, {}, 0)
    torch.testing.assert_close(q["x"], one["x"])
    assert metrics["solve/residual"] == metrics["solve/damping"] == 2
    _, _, metrics = ConjugateGradient(tolerance=0.0)(lambda p: p, zero, {}, 0)
    assert metrics["solve/negative_curvature"] == 0


def test_a_constant_outer_loss_has_a_zero_hypergradient():
    class Constant(Ridge):
        def outer_loss(self, outer, inner, batch):
            return torch.zeros((), dtype=torch.float64)

    problem = Constant()
    outer = problem.init_outer(None)
    for estimator in (Implicit(), OneStep(), FiniteDifference(), Unroll(2)):
        _, feedback = estimator(
            InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 0
        )
        assert not feedback.grad["log_penalty"].any()


def test_nystrom_solves_a_fast_decaying_spectrum_in_a_few_iterations():
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(100, 100, generator=generator, dtype=torch.float64))
    hessian = basis * torch.logspace(0, -12, 100, dtype=torch.float64) @ basis.T
    v = {"x": torch.randn(100, generator=generator, dtype=torch.float64)}

    def solve(iterations, preconditioner=None):
        solver = ConjugateGradient(iterations, 1e-2, 0.0, preconditioner=preconditioner)
        return solver(lambda p: {"x": hessian @ p["x"]}, v, {}, 0)[0]

    converged = solve(300)
    assert error(solve(3, Nystrom(rank=30)), converged) < 5e-3
    assert error(solve(3), converged) > 5e-2


def test_state_survives_a_save_and_a_load(ridge):
    outer = ridge.init_outer(None)
    first, second = (Implicit(ConjugateGradient(preconditioner=Nystrom(5))) for _ in range(2))
    inner, _ = first(InnerLoop(ridge), outer, solved(ridge, outer), 0)
    second.load_state_dict(tree.clone(first.state_dict()))
    _, a = first(InnerLoop(ridge), outer, tree.clone(inner), 1)
    _, b = second(InnerLoop(ridge), outer, tree.clone(inner), 1)
    assert torch.equal(a.grad["log_penalty"], b.grad["log_penalty"])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Neumann(terms=0),
        lambda: Neumann(step=-1.0),
        lambda: ConjugateGradient(iterations=0),
        lambda: ConjugateGradient(damping=-1.0),
        lambda: Nystrom(rank=0),
        lambda: Implicit(inner_steps=-1),
    ],
)
def test_bad_arguments_are_named(build):
    with pytest.raises(ValueError, match="needs"):
        build()


def test_exact_refuses_large_systems(ridge):
    outer = ridge.init_outer(None)
    with pytest.raises(ValueError, match="at most limit=10"):
        Implicit(Exact(limit=10), 0)(InnerLoop(ridge), outer, solved(ridge, outer), 0)
