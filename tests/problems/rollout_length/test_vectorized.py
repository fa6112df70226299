"""Several optimizers on groups of one batch: each observes and steers its own runs."""

import pytest
import torch

from metaopt import Feedback
from metaopt.engine.protocols import OuterOptimizer
from metaopt.engine.random import fold
from metaopt.optimizers import Constant, Linear, Schedule
from metaopt.problems.rollout_length.policies import Ladder, RandomWalk, Rule, Vectorized

FIRST = torch.zeros(6, dtype=torch.long)


def parts():
    return {
        "constant": Schedule(Constant(5)),
        "falling": Schedule(Linear([[0, 9], [1, 0]], integer=True), relative=True),
        "walk": Rule(RandomWalk(Ladder())),
    }


def feedback(step, lengths, steps=4):
    """What a problem shows after an outer step; features differ from run to run."""
    runs = len(lengths)
    observation = {
        "state": torch.arange(5.0 * runs).view(runs, 5) + step, "length": lengths,
        "reward": torch.zeros(runs), "score": torch.zeros(runs), "done": step == steps,
        "test": False, "step": step, "steps": steps,
    }  # fmt: skip
    return Feedback(0.5, observation=observation)


def test_each_part_does_what_it_does_alone():
    together, alone = Vectorized(parts()), parts()
    assert isinstance(together, OuterOptimizer)
    assert together.solution is None
    together.init(FIRST)
    lengths = dict.fromkeys(alone, FIRST[:2])
    for optimizer in alone.values():
        optimizer.init(FIRST[:2])
    observed = []
    for step in range(11):
        asked = together.ask(fold(0, step))
        for name, optimizer in alone.items():
            lengths[name] = optimizer.ask(fold(fold(0, step), name))
        assert torch.equal(asked, torch.cat(list(lengths.values())))
        assert torch.equal(together.solution, asked)
        observed.append(asked.tolist())
        together.tell(feedback(step % 5, asked))
        for name, optimizer in alone.items():
            optimizer.tell(feedback(step % 5, lengths[name]))
    assert [s[0] for s in observed] == [5] * 11
    assert [s[2] for s in observed[1:5]] == [9, 6, 3, 0]
    assert len({tuple(s[4:]) for s in observed}) > 2


def test_parts_see_their_own_rows():
    class Watching(Rule):
        def tell(self, feedback):
            self.shown = feedback.observation

    watching = {name: Watching(RandomWalk(Ladder())) for name in ("a", "b", "c")}
    together = Vectorized(watching)
    together.init(FIRST)
    given = feedback(1, torch.arange(6))
    together.tell(given)
    for i, optimizer in enumerate(watching.values()):
        rows = slice(2 * i, 2 * i + 2)
        assert torch.equal(optimizer.shown["state"], given.observation["state"][rows])
        assert optimizer.shown["length"].tolist() == [2 * i, 2 * i + 1]
        assert optimizer.shown["step"] == 1


def test_state_survives():
    one, two = Vectorized(parts()), Vectorized(parts())
    for optimizer in (one, two):
        optimizer.init(FIRST)
    for step in range(3):
        one.tell(feedback(step, one.ask(step)))
    two.load_state_dict(one.state_dict())
    for step in (3, 4, 5):
        asked = one.ask(step)
        assert torch.equal(two.ask(step), asked)
        for optimizer in (one, two):
            optimizer.tell(feedback(step % 5, asked))


def test_bad_shares_are_refused():
    with pytest.raises(ValueError, match="at least one optimizer"):
        Vectorized({})
    with pytest.raises(ValueError, match="3 optimizers can share equally; got 4"):
        Vectorized(parts()).init(FIRST[:4])
    with pytest.raises(TypeError, match="one whole number per run"):
        Vectorized(parts()).init(torch.zeros(6))
