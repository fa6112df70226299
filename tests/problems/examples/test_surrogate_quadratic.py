"""Figure 2 of population-based training, against an implementation in numpy."""

import numpy as np
import pytest

from metaopt import SGD, Engine, Grid, Uniform
from metaopt.estimators import PopulationScore
from metaopt.optimizers import PopulationBased
from metaopt.problems.examples import SurrogateQuadratic

LR, K = 0.01, 4


def simulated(h, asked, momentum, exploit):
    """Return F of all members after each outer step, in numpy.

    Takes from the run what it has drawn by chance, and nothing else: which of the possible parents,
    and which of the two factors. Both are checked to be possible ones.
    """
    members = len(h)
    theta, speed = np.full((members, 2), 0.9), np.zeros((members, 2))
    values, every = None, []
    for step, (after, parents) in enumerate(asked):
        if step:
            order = np.argsort(values, kind="stable")
            best, worst = order[: members // 4], order[-(members // 4) :]
            for i, parent in enumerate(parents):
                if exploit and i in worst:
                    assert parent in best
                else:
                    assert parent == i
            copied, theta, speed = h[parents], theta[parents], speed[parents]
            factors = np.where(after > copied, 1.2, 0.8)
            moved = (parents != np.arange(members))[:, None]
            h = np.where(moved, copied * factors, copied)
        for _ in range(K):
            speed = momentum * speed + 2 * h * theta
            theta = theta - LR * speed
        values = (theta**2).sum(1) - 1.2
        every.append(values)
    return np.array(every), theta


@pytest.mark.parametrize("exploit", ["truncation", "none"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_population_is_what_numpy_computes(exploit, momentum):
    problem = SurrogateQuadratic(inner_optimizer=SGD(lr=LR, momentum=momentum))
    search = PopulationBased(8, Uniform(0.1, 1.0), exploit=exploit, fraction=0.25, log=False)
    asked, told, ask = [], [], search.ask

    def recorded(key):
        members = ask(key)
        asked.append((members.outer["h"].numpy().copy(), members.parents.numpy().copy()))
        return members

    search.ask = recorded
    engine = Engine(problem, PopulationScore(K), search, outer_steps=15)
    for _, feedback in engine:
        told.append(feedback.artifacts["values"].numpy())
    values, theta = simulated(asked[0][0], asked, momentum, exploit == "truncation")
    np.testing.assert_allclose(np.array(told), values, rtol=0, atol=1e-12)
    best = engine.inner.params["theta"].numpy()
    np.testing.assert_allclose(best, theta[values[-1].argmin()], rtol=0, atol=1e-12)
    if exploit == "truncation":
        assert sum((parents != np.arange(8)).sum() for _, parents in asked) == 2 * 14


def reached(seed, steps=50, **settings):
    pair = Grid({"h": [[1.0, 0.0], [0.0, 1.0]]}, relative=False)
    search = PopulationBased(2, Uniform(0.0, 1.0), pair, fraction=0.5, log=False, **settings)
    engine = Engine(SurrogateQuadratic(), PopulationScore(K), search, outer_steps=steps, seed=seed)
    assert len(list(engine)) == steps
    return engine.metrics()["eval/Q"]


def test_fixed_hyperparameters_stop_short_and_a_population_does_not():
    # theta_1 stays 0.9, and theta_0 shrinks by 1 - 2 lr h_0 a step.
    fixed = 1.2 - 0.81 - 0.81 * (1 - 2 * LR) ** (2 * K * 50)
    assert reached(0, exploit="none") == pytest.approx(fixed, abs=1e-12)
    for seed in range(3):
        assert reached(seed, resample=1.0) > 1.0 > 0.39 > fixed


def test_wrong_weights_are_refused():
    with pytest.raises(ValueError, match="needs two weights h; got"):
        SurrogateQuadratic(h=(1.0,))
