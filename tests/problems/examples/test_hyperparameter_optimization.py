"""Penalties of a linear model beside scikit-learn and dense formulas in numpy."""

import numpy as np
import pytest
import torch

from metaopt import SGD, Descent, Implicit, Score, Soba, run
from metaopt.engine.inner_loop import InnerLoop
from metaopt.estimators import ConjugateGradient, Unroll
from metaopt.optimizers import Constant, Schedule
from metaopt.problems.examples import HyperparameterOptimization as Penalised


def numpy_of(problem, part):
    x, y = (t.numpy() for t in getattr(problem, part))
    return np.column_stack([x, np.ones(len(x))]), y


def penalties(problem, phi):
    """lambda of each feature and 0 of the bias, and dlambda / dphi, by other formulas."""
    share = 1 / (1 + np.exp(-phi))
    low, high = np.log(problem.min_penalty), np.log(problem.max_penalty)
    value = np.exp((1 - share) * low + share * high)
    slope = value * (high - low) * share * (1 - share)
    of = problem.penalty_of.numpy()
    return np.append(value[of], 0.0), np.append(slope[of], 0.0)


def solved(problem, phi):
    """theta* by scikit-learn (logistic) or by the normal equations (ridge)."""
    x, y = numpy_of(problem, "train")
    lambdas, _ = penalties(problem, phi)
    if problem.data == "diabetes":
        return np.linalg.solve(x.T @ x / len(x) + np.diag(lambdas), x.T @ y / len(x))
    from sklearn.linear_model import LogisticRegression

    # One penalty, C = 1 / n, on weights that are scaled: w_j = v_j / sqrt(lambda_j).
    scale = np.sqrt(lambdas[:-1])
    model = LogisticRegression(C=1 / len(x), solver="newton-cg", tol=1e-10, max_iter=1000)
    model.fit(x[:, :-1] / scale, y)
    return np.append(model.coef_[0] / scale, model.intercept_)


def hypergradient(problem, phi):
    theta = solved(problem, phi)
    lambdas, slope = penalties(problem, phi)
    (x, _), (xv, yv) = numpy_of(problem, "train"), numpy_of(problem, "validation")
    output, curvature = xv @ theta, np.ones(len(x))
    if problem.data == "breast_cancer":
        output, p = 1 / (1 + np.exp(-output)), 1 / (1 + np.exp(-x @ theta))
        curvature = p * (1 - p)
    hessian = (x.T * curvature) @ x / len(x) + np.diag(lambdas)
    adjoint = np.linalg.solve(hessian, xv.T @ (output - yv) / len(xv))
    each = (-slope * theta * adjoint)[:-1]
    return np.bincount(problem.penalty_of.numpy(), each)


def made(data, kind):
    return Penalised(data, kind, noise_features=5, train_size=80, penalty=0.3, seed=1)


CASES = [("breast_cancer", "feature"), ("breast_cancer", "group"), ("diabetes", "feature"),
         ("diabetes", "group"), ("diabetes", "one")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("data", "kind"), CASES)
def test_solution_and_hypergradient_are_those_of_other_code(data, kind):
    problem = made(data, kind)
    phi = problem.init_outer(None)
    draw = torch.Generator().manual_seed(0)
    phi = {k: v + 0.5 * torch.randn(v.shape, generator=draw).double() for k, v in phi.items()}
    loop = InnerLoop(problem)
    inner = loop.run(phi, loop.start(phi, None, 0), 0, 4000)
    theta = np.append(inner.params["weight"].numpy(), inner.params["bias"])
    expected = solved(problem, phi["penalty_logit"].numpy())
    assert np.abs(theta - expected).max() < 1e-6 * np.abs(expected).max()
    solve = ConjugateGradient(iterations=200, damping=0.0, tolerance=1e-12)
    _, feedback = Implicit(inner_steps=1, solve=solve)(loop, phi, inner, 1)
    closed = hypergradient(problem, phi["penalty_logit"].numpy())
    assert len(closed) == {"feature": len(problem.penalty_of), "one": 1}.get(kind, len(closed))
    error = np.abs(feedback.grad["penalty_logit"].numpy() - closed).max()
    assert error < 1e-5 * np.abs(closed).max()


def test_groups_are_quantities_body_or_noise():
    cancer, diabetes = made("breast_cancer", "group"), made("diabetes", "group")
    assert cancer.penalty_of[[0, 10, 20]].tolist() == [0, 0, 0]  # the radius: mean, error, worst
    assert diabetes.penalty_of.tolist() == [0, 0, 1, 1, *[2] * 6, 3, 3, 3, 4, 4]
    assert len(made("diabetes", "one").init_outer(None)["penalty_logit"]) == 1


def test_penalties_stay_between_their_bounds_and_training_converges():
    problem = Penalised("diabetes", refit_steps=0)
    for value in (-60.0, 60.0):
        phi = {"penalty_logit": torch.full((40,), value, dtype=torch.float64)}
        bound = problem.feature_penalties(phi)
        assert torch.allclose(bound, torch.full_like(bound, 5.0 if value > 0 else 0.01))
        loop = InnerLoop(problem)
        inner = loop.run(phi, loop.start(phi, None, 0), 0, 200)
        assert inner.params["weight"].abs().max() < 1
    with pytest.raises(ValueError, match=r"diverges at max_penalty=5.0: .* have max_penalty below"):
        Penalised("diabetes", inner_optimizer=SGD(lr=0.3))


def test_metrics_are_of_a_model_that_is_trained_from_zero():
    """Two methods that leave the same penalties have the same metrics, whatever they trained."""
    fixed, kinds = Schedule(Constant()), {"progress": False}
    one = run(Penalised("diabetes", refit_steps=50), Score(inner_steps=7), fixed, 1, **kinds)
    two = run(Penalised("diabetes", refit_steps=50), Score(inner_steps=90), fixed, 2, **kinds)
    assert one.metrics["eval/test_loss"] == two.metrics["eval/test_loss"]
    assert two.budget["gradients"] == 180
    left = run(Penalised("diabetes", refit_steps=0), Score(inner_steps=7), fixed, 1, **kinds)
    assert left.metrics["eval/test_loss"] != one.metrics["eval/test_loss"]


@pytest.mark.slow
def test_a_hypergradient_lowers_the_test_loss_of_a_refit():
    def loss(estimator, steps, lr):
        problem = Penalised("diabetes", refit_steps=600)
        result = run(problem, estimator, Descent("adam", lr=lr), steps, progress=False)
        return result.metrics["eval/test_loss"]

    start = loss(Unroll(inner_steps=1), 1, 1e-12)
    assert loss(Soba(), 200, 0.03) < start - 0.01
    assert loss(Implicit(inner_steps=5), 80, 0.03) < start - 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": "iris"}, "data"),
        ({"penalties": "all"}, "penalties"),
        ({"train_size": 300, "validation_size": 269}, "leave none of the 569 examples"),
        ({"train_size": 1}, "train_size >= 2"),
        ({"penalty": 7.0}, "min_penalty < penalty < max_penalty"),
        ({"noise_features": -1}, "noise_features"),
        ({"refit_steps": 0.5}, "refit_steps"),
    ],
)
def test_mistakes_are_answered(arguments, message):
    with pytest.raises(ValueError, match=message):
        Penalised(**arguments)
