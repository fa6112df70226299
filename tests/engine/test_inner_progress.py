"""How far an inner run has come, as a reader sees it while the run lasts."""

import pytest

from metaopt.engine import Engine
from metaopt.engine.black_box_loop import BlackBoxLoop
from metaopt.engine.inner_progress import Progress
from metaopt.estimators import FiniteDifference, Forward, Penalty, Unroll
from metaopt.optimizers import Descent
from metaopt.problems.examples import Ridge


def test_phases_inside_another_are_not_shown():
    progress, seen = Progress(), []
    for _ in progress.track(range(2), "outer"):
        for _ in progress.track(range(3), "inner"):
            seen.append((progress.current.name, progress.current.done, progress.current.total))
    assert seen == [("outer", 0, 2)] * 3 + [("outer", 1, 2)] * 3
    assert progress.current is None


def test_a_phase_ends_with_an_error_and_where_its_steps_are_left():
    progress = Progress()

    def fail():
        with progress.phase("backward step", 3) as phase:
            assert progress.current is phase
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert progress.current is None
    for _ in progress.track(range(3), "inner step"):
        break
    assert progress.current is None


class Watched(Ridge):
    """Notes where its inner run is whenever it draws a batch."""

    def __init__(self):
        super().__init__()
        self.progress, self.phases = Progress(), []

    def inner_batch(self, draw):
        phase = self.progress.current
        self.phases.append(phase and (phase.name, phase.done, phase.total))
        return super().inner_batch(draw)


@pytest.mark.parametrize(
    ("estimator", "names"),
    [
        (Forward(3), ["inner step"]),
        (Penalty(inner_steps=3), ["inner step", "penalised inner step"]),
        (FiniteDifference(inner_steps=3), ["inner step"]),
        (Unroll(3, schedule="whole"), ["inner step"]),
        (Unroll(3, segments=3), ["inner step", "reverse step"]),
        (Unroll(3, schedule="revolve", snapshots=2), ["inner step", "reverse step"]),
    ],
)
def test_a_run_counts_its_inner_steps(estimator, names):
    problem = Watched()
    engine = Engine(problem, estimator, Descent("sgd", lr=0.01), outer_steps=1)
    problem.progress, problem.phases = engine.loop.progress, []
    assert len(list(engine)) == 1
    for name in names:
        # A step that is taken again in a reverse pass is part of that.
        counts = dict.fromkeys(phase for phase in problem.phases if phase and phase[0] == name)
        assert list(counts) == [(name, k, 3) for k in range(3)]
    assert engine.loop.progress.current is None


def test_a_black_box_counts_its_inner_steps():
    class Counted:
        def inner_step(self, outer, inner, key):
            return [*inner, loop.progress.current.done]

    loop = BlackBoxLoop(Counted())
    assert loop.run(None, [], 0, 3) == [0, 1, 2]
