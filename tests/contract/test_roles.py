"""The three roles carry a fork of the outer variable and an acting outer level with episodes."""

from functools import partial

import pytest
import torch

from metaopt import Engine, Feedback, GradientProblem, Problem
from metaopt.engine.inner_loop import loop_of
from metaopt.engine.inner_optimizers import SGD
from metaopt.engine.random import fold, generator
from metaopt.estimators import FirstOrder, Reptile, Score, Unroll
from metaopt.optimizers import Descent, Linear, Random, Schedule
from metaopt.testing import EstimatorContract, OptimizerContract, ProblemContract


class Sines(GradientProblem):
    """Adapt the amplitudes of sines to a task in a step; phi is where adaptation starts."""

    warm_start = False
    inner_optimizer = SGD(lr=0.1)

    def init_outer(self, generator):
        return {"amplitude": torch.zeros(3, dtype=torch.float64)}

    def init_params(self, outer, generator):
        return {"amplitude": outer["amplitude"].clone()}

    def inner_batch(self, draw):
        x = 6 * torch.rand(10, 1, generator=draw.generator, dtype=torch.float64)
        shift = 0.1 * torch.randn(3, generator=draw.generator, dtype=torch.float64)
        waves = torch.sin(x * torch.arange(1, 4))
        return waves, waves @ (torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + shift)

    outer_batch = inner_batch

    def inner_loss(self, outer, inner, batch):
        waves, y = batch
        return ((waves @ inner["amplitude"] - y) ** 2).mean()

    outer_loss = inner_loss


@pytest.mark.parametrize("estimator", [FirstOrder, Unroll, Reptile])
class TestFork(ProblemContract, EstimatorContract):
    @pytest.fixture
    def make(self, estimator):
        sgd = partial(torch.optim.SGD, lr=0.1)
        return lambda: (Sines(), estimator(1), Descent(sgd))

    def test_every_run_starts_at_phi(self, make):
        engine = Engine(*make(), outer_steps=3)
        assert len(list(engine)) == 3
        assert engine.inner.step == 1


class StepSizeControl(Problem):
    """Descend a quadratic of unknown curvature while an agent halves, keeps or doubles the step.

    An episode is `horizon` descent steps. The observation is what the loss did (0: rose, 1: fell
    by less than half, 2: fell by more); the value of a transition is the change of the log loss,
    so that an episode's values add up to log(last loss / first loss).
    """

    horizon = 8
    factors = (0.5, 1.0, 2.0)

    def init_outer(self, generator):
        return 1

    def init_inner(self, outer, inner, key):
        if inner is not None:
            return inner
        draw = generator(key)
        curvature = 10 ** float(torch.rand((), generator=draw) * 2 - 1)
        return {"x": 1.0, "curvature": curvature, "step_size": 0.05, "taken": 0, "ratio": 1.0}

    def inner_step(self, outer, inner, key):
        size = inner["step_size"] * self.factors[outer]
        shrink = 1 - size * inner["curvature"]
        x = max(abs(inner["x"] * shrink), 1e-12)
        ratio = (x / inner["x"]) ** 2
        return {**inner, "x": x, "step_size": size, "taken": inner["taken"] + 1, "ratio": ratio}

    def evaluate(self, outer, inner, key):
        ratio = inner["ratio"]
        observation = 0 if ratio > 1 else 1 if ratio > 0.5 else 2
        change = torch.tensor(ratio, dtype=torch.float64).log()
        return Feedback(change, observation=observation, done=inner["taken"] == self.horizon)

    def metrics(self, outer, inner):
        return {"taken": float(inner["taken"])}


class QLearning:
    """Tabular Q-learning on observations: the least that an acting outer level needs.

    An episode opens without an observation (`None`), since nothing has been run yet.
    """

    def __init__(self, actions, rate=0.2, explore=0.1):
        self.actions, self.rate, self.explore = actions, rate, explore
        self.table, self.seen, self.action = {}, "start", None

    def init(self, outer):
        self.action, self.table, self.seen = outer, {}, "start"

    def ask(self, key):
        draw = generator(key)
        values = self.table.get(self.seen, [0.0] * self.actions)
        explore = float(torch.rand((), generator=draw)) < self.explore
        best = min(range(self.actions), key=values.__getitem__)
        self.action = int(torch.randint(self.actions, (), generator=draw)) if explore else best
        return self.action

    def tell(self, feedback):
        observation = "start" if feedback.done else str(feedback.observation)
        ahead = 0.0 if feedback.done else min(self.table.get(observation, [0.0]))
        row = self.table.setdefault(self.seen, [0.0] * self.actions)
        target = float(feedback.value) + ahead
        row[self.action] += self.rate * (target - row[self.action])
        self.seen = observation

    @property
    def solution(self):
        return self.action

    def state_dict(self):
        table = {k: list(v) for k, v in self.table.items()}
        return {"table": table, "seen": self.seen, "action": self.action}

    def load_state_dict(self, state):
        self.table, self.seen, self.action = state["table"], state["seen"], state["action"]


class TestActing(ProblemContract, OptimizerContract):
    outer_steps = 11
    falling_steps = 1200

    @pytest.fixture
    def make(self):
        return lambda: (StepSizeControl(), Score(1), QLearning(3))


def episodes(optimizer, count=200, seed=0):
    steps = count * StepSizeControl.horizon
    engine = Engine(StepSizeControl(), Score(1), optimizer, outer_steps=steps, seed=seed)
    values = torch.stack([feedback.value for _, feedback in engine])
    return values.view(count, -1).sum(1)[count // 2 :].mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_learned_actions_beat_random_and_constant_ones(seed):
    learned = episodes(QLearning(3), seed=seed)
    assert learned < episodes(Random([0, 1, 2]), seed=seed)
    assert learned < episodes(Schedule(lambda step: 1), seed=seed)


def test_an_episode_starts_from_scratch_after_done():
    engine = Engine(StepSizeControl(), Score(1), QLearning(3), outer_steps=20)
    steps = []
    for _, feedback in engine:
        steps.append(engine.inner["taken"])
        assert feedback.done == engine.done
    assert steps == [*range(1, 9), *range(1, 9), *range(1, 5)]


def test_schedule_starts_again_with_each_episode():
    asked = []
    optimizer = Schedule(Linear([[0, 2], [7, 0]], integer=True))
    for _ in Engine(StepSizeControl(), Score(1), optimizer, outer_steps=16):
        asked.append(optimizer.solution if optimizer.state_dict()["step"] else None)
    assert asked == [2, 2, 1, 1, 1, 1, 0, None] * 2


def test_episodes_differ_by_their_key():
    problem = StepSizeControl()
    first, second = (loop_of(problem).start(1, None, fold(0, k)) for k in range(2))
    assert first["curvature"] != second["curvature"]
