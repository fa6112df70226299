"""Direct: the partial derivative alone, and the saddle that descends along it to."""

from functools import partial

import pytest
import torch
from cases import Classification
from test_attention import Reweighting

from metaopt import Engine
from metaopt.engine import tree
from metaopt.engine.gradient_problem import GradientProblem
from metaopt.engine.inner_loop import InnerLoop, loop_of
from metaopt.engine.inner_optimizers import SGD
from metaopt.estimators import Direct, Score, Unroll
from metaopt.optimizers import Descent, MirrorDescent
from metaopt.problems.examples import Knapsack


def at(problem, estimator):
    outer = problem.init_outer(torch.Generator().manual_seed(0))
    return estimator(InnerLoop(problem), outer, InnerLoop(problem).start(outer, None, 0), 7)


def test_equals_the_unrolled_derivative_where_phi_does_not_move_theta():
    problem = Classification(pattern="direct", dropout=0.1, batch_norm=True)
    (state, feedback), (expected_state, expected) = at(problem, Direct(3)), at(problem, Unroll(3))
    torch.testing.assert_close(feedback.grad, expected.grad)
    torch.testing.assert_close(feedback.value, expected.value.detach())
    torch.testing.assert_close(state.params, tree.detach(expected_state.params))


def test_is_zero_where_the_objective_does_not_contain_phi_and_phi_stays():
    problem = Reweighting()
    sgd = Descent(partial(torch.optim.Adam, lr=0.1))
    start = tree.clone(problem.init_outer(torch.Generator().manual_seed(0)))
    engine = Engine(problem, Direct(2), sgd, outer_steps=3)
    feedback = [f for _, f in engine]
    assert all(not v.any() for f in feedback for v in f.grad.values())
    assert all(torch.equal(sgd.solution[k], v) for k, v in start.items())
    assert engine.ledger.spent["gradients"] == 6


def test_takes_the_inner_steps_that_score_takes():
    problem = Classification(dropout=0.1)
    (state, feedback), (expected_state, expected) = at(problem, Direct(2)), at(problem, Score(2))
    assert all(torch.equal(v, state.params[k]) for k, v in expected_state.params.items())
    assert torch.equal(feedback.value, expected.value)


class WorstGroup(GradientProblem):
    """Group DRO of one number against centres 0, 1 and 4: its solution is known."""

    inner_optimizer = SGD(lr=0.05)
    centres = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)

    def init_outer(self, generator):
        return {"q": torch.full((3,), 1 / 3, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"theta": torch.zeros((), dtype=torch.float64)}

    def inner_loss(self, outer, inner, batch):
        return (outer["q"] * (inner["theta"] - self.centres) ** 2).sum()

    def outer_loss(self, outer, inner, batch):
        return -self.inner_loss(outer, inner, batch)

    def inner_batch(self, draw):
        return None

    outer_batch = inner_batch


@pytest.mark.slow
def test_group_dro_ends_halfway_between_the_extreme_groups():
    # min over theta of the largest (theta - c)^2 is at (0 + 4) / 2, with q = (1/2, 0, 1/2).
    optimizer = MirrorDescent(lr=0.05)
    engine = Engine(WorstGroup(), Direct(1), optimizer, outer_steps=1000)
    assert len(list(engine)) == 1000
    assert float(engine.inner.params["theta"]) == pytest.approx(2.0, abs=1e-2)
    expected = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(optimizer.solution["q"], expected, rtol=0, atol=1e-2)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="inner_steps"):
        Direct(-1)


def test_a_problem_without_gradients_is_refused():
    with pytest.raises(TypeError, match="Direct needs a GradientProblem"):
        Direct(1).check(loop_of(Knapsack()))
