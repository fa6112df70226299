"""Implicit and its solvers against the closed form of ridge regression."""

import pytest
import torch

from metaopt import tree
from metaopt.estimators import (
    ConjugateGradient,
    Exact,
    Identity,
    Implicit,
    Neumann,
    Nystrom,
    Unroll,
)
from metaopt.inner_optimizers import SGD
from metaopt.problems.ridge import Ridge


@pytest.fixture
def ridge() -> Ridge:
    return Ridge(inner_optimizer=SGD(lr=0.5))


def solved(problem, outer):
    """Return the inner state at the exact solution."""
    state = problem.init_inner(outer, None, 0)
    return state._replace(params={"weight": problem.solve(outer)})


def error(found, exact):
    return float(tree.norm(tree.add(found, exact, -1.0)) / tree.norm(exact))


def test_condition_number_is_about_28(ridge):
    hessian = ridge.hessian(ridge.init_outer(None))
    assert torch.linalg.cond(hessian) == pytest.approx(28, abs=1)


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
    _, feedback = Implicit(solver, inner_steps=0)(ridge, outer, solved(ridge, outer), 0)
    assert error(feedback.grad, ridge.hypergradient(outer)) < bound


def test_identity_has_its_documented_bias(ridge):
    outer = ridge.init_outer(None)
    _, feedback = Implicit(Identity(), 0)(ridge, outer, solved(ridge, outer), 0)
    exact = ridge.hypergradient(outer)
    cosine = tree.dot(feedback.grad, exact) / tree.norm(feedback.grad) / tree.norm(exact)
    assert 0.5 < float(cosine) < 0.95


@pytest.mark.parametrize("terms", [1, 2, 7])
def test_warm_unroll_equals_neumann_to_the_last_digits(ridge, terms):
    outer = ridge.init_outer(None)
    _, unrolled = Unroll(terms)(ridge, outer, solved(ridge, outer), 0)
    _, series = Implicit(Neumann(terms, step=0.5), 0)(ridge, outer, solved(ridge, outer), 0)
    torch.testing.assert_close(unrolled.grad, series.grad, rtol=1e-12, atol=1e-15)


def test_default_conjugate_gradient_cold_and_warm(ridge):
    estimator, outer = Implicit(inner_steps=0), ridge.init_outer(None)
    errors = []
    for step in range(20):
        _, feedback = estimator(ridge, outer, solved(ridge, outer), step)
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


def test_negative_curvature_is_said_and_survived():
    v = {"x": torch.tensor([1.0, 2.0])}
    diagonal = torch.tensor([1.0, -1.0])
    q, _, metrics = ConjugateGradient()(lambda p: {"x": diagonal * p["x"]}, v, {}, 0)
    assert metrics["solve/negative_curvature"] == 1
    assert torch.isfinite(q["x"]).all()


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
    inner, _ = first(ridge, outer, solved(ridge, outer), 0)
    second.load_state_dict(tree.clone(first.state_dict()))
    _, a = first(ridge, outer, tree.clone(inner), 1)
    _, b = second(ridge, outer, tree.clone(inner), 1)
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
        Implicit(Exact(limit=10), 0)(ridge, outer, solved(ridge, outer), 0)
