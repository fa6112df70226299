"""EvolutionStrategies: smoothed gradients, no derivatives, unbiased over truncations."""

import math

import pytest
import torch
from cases import Classification, cosine

from metaopt.engine import distributed, tree
from metaopt.engine.inner_loop import InnerLoop, loop_of
from metaopt.engine.protocols import Feedback, Problem
from metaopt.estimators import EvolutionStrategies, Unroll
from metaopt.problems.examples import Quadratic


class Threshold(Problem):
    """F = 1 where phi > 0 and 0 elsewhere, after inner steps that count."""

    def init_outer(self, generator):
        return {"phi": torch.zeros(())}

    def init_inner(self, outer, inner, key):
        return {"count": 0} if inner is None else inner

    def inner_step(self, outer, inner, key):
        return {"count": inner["count"] + 1}

    def evaluate(self, outer, inner, key):
        return Feedback(float(outer["phi"] > 0), cost={"environment_steps": 2})


class Decay(Threshold):
    """theta <- a theta + phi and F = theta, which ends after `horizon` steps."""

    def __init__(self, horizon=10**6):
        self.horizon = horizon

    def init_inner(self, outer, inner, key):
        return {"theta": torch.zeros(()), "count": 0} if inner is None else inner

    def inner_step(self, outer, inner, key):
        return {"theta": 0.9 * inner["theta"] + outer["phi"], "count": inner["count"] + 1}

    def evaluate(self, outer, inner, key):
        return Feedback(inner["theta"], done=inner["count"] >= self.horizon)


def repeat(estimator, problem, steps):
    outer, inner = problem.init_outer(None), None
    for key in range(steps):
        inner = loop_of(problem).start(outer, inner, key)
        inner, feedback = estimator(loop_of(problem), outer, inner, key)
        inner = None if feedback.done else inner
    return float(feedback.grad["phi"])


def test_gradient_of_a_step_function_is_that_of_its_smoothing():
    estimator = EvolutionStrategies(pairs=2000, sigma=0.5)
    _, feedback = estimator(loop_of(Threshold()), {"phi": torch.tensor(0.3)}, {"count": 0}, 0)
    density = math.exp(-((0.3 / 0.5) ** 2) / 2) / (0.5 * math.sqrt(2 * math.pi))
    assert float(feedback.grad["phi"]) == pytest.approx(density, rel=0.1)
    assert feedback.value == 1.0
    assert feedback.cost == {"inner_steps": 4001, "evaluations": 4001, "environment_steps": 8002}


@pytest.mark.slow
def test_is_a_random_projection_of_the_gradient_for_a_quadratic():
    problem = Quadratic(outers=1)
    ratios = []
    for start in (0.0, 2.0):
        outer = {"phi": torch.full((1,), start, dtype=torch.float64)}
        estimator = EvolutionStrategies(pairs=200, sigma=0.1, inner_steps=3)
        _, feedback = estimator(
            InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 5
        )
        _, exact = Unroll(3)(InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 5)
        ratios.append(float(feedback.grad["phi"] / exact.grad["phi"]))
        assert feedback.cost == {"inner_steps": 1203, "gradients": 1203, "evaluations": 401}
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-9)
    assert ratios[0] == pytest.approx(1, abs=3 * math.sqrt(2 / 200))


def test_points_along_the_unrolled_gradient_of_a_network():
    problem = Classification(rows=8, dropout=0.1, batch_norm=True)
    outer = problem.init_outer(None)
    estimator = EvolutionStrategies(pairs=100, sigma=0.01, inner_steps=2)
    inner, feedback = estimator(
        InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 5
    )
    other, exact = Unroll(2)(InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 5)
    assert cosine(feedback.grad, exact.grad) > 0.9
    assert all(torch.allclose(v, inner.params[k]) for k, v in other.params.items())
    assert inner.buffers["norm.num_batches_tracked"] == 2
    assert feedback.value == pytest.approx(float(exact.value))


@pytest.mark.slow
def test_persistent_pairs_see_past_the_truncation():
    whole = sum(0.9**j for j in range(4))
    settings = {"pairs": 1000, "sigma": 0.1}
    assert repeat(EvolutionStrategies(**settings), Decay(), 4) == pytest.approx(1, abs=0.15)
    estimate = repeat(EvolutionStrategies(**settings, persistent=True), Decay(), 4)
    assert estimate == pytest.approx(whole, abs=0.5)


def test_persistent_pairs_start_again_when_the_run_ends():
    estimator = EvolutionStrategies(pairs=1000, sigma=0.1, persistent=True)
    assert repeat(estimator, Decay(horizon=2), 4) == pytest.approx(1.9, abs=0.3)
    assert estimator.state_dict() == {"particles": []}


def test_persistent_pairs_follow_a_gradient_problem_that_starts_from_scratch():
    problem = Quadratic(outers=2)
    problem.warm_start = False
    outer, grads = problem.init_outer(None), []
    estimator = EvolutionStrategies(pairs=3, persistent=True)
    for _ in range(2):
        inner = InnerLoop(problem).start(outer, None, 0)
        grads.append(estimator(InnerLoop(problem), outer, inner, 0)[1].grad["phi"])
    assert torch.equal(*grads)


def test_resumes_to_the_bit():
    problem = Classification(rows=4)
    outer = problem.init_outer(None)
    one, two = (EvolutionStrategies(pairs=2, persistent=True) for _ in range(2))
    inner, _ = one(InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 0)
    two.load_state_dict(tree.clone(one.state_dict()))
    _, expected = one(InnerLoop(problem), outer, tree.clone(inner), 1)
    _, feedback = two(InnerLoop(problem), outer, inner, 1)
    assert torch.equal(feedback.grad["weights"], expected.grad["weights"])


def test_persistent_pairs_of_processes_that_draw_their_own_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    loop = loop_of(Quadratic())
    with pytest.raises(ValueError, match=r"persistent=True.*ranks=split"):
        EvolutionStrategies(persistent=True).check(loop)
    EvolutionStrategies().check(loop)
    with distributed.splitting_batches():
        EvolutionStrategies(persistent=True).check(loop)


def test_an_outer_variable_without_tensors_is_refused():
    class Text(Threshold):
        def init_outer(self, generator):
            return "a template"

    with pytest.raises(TypeError, match=r"str.*estimator=score"):
        EvolutionStrategies().check(loop_of(Text()))


@pytest.mark.parametrize(("settings", "name"), [({"pairs": 0}, "pairs"), ({"sigma": 0.0}, "sigma")])
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        EvolutionStrategies(**settings)
