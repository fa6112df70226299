"""The acting optimizer against torch's autograd and Adam, and against a solved process."""

from itertools import pairwise

import pytest
import torch
from acting import Climb, S, T, observation, tables, value_iteration

from metaopt import Engine, Feedback
from metaopt.engine.random import fold, generator
from metaopt.engine.tree import clone
from metaopt.environments.q_network import QNetwork
from metaopt.environments.transitions import Batch, unpack
from metaopt.estimators import Score
from metaopt.problems.examples import Ridge
from metaopt.problems.rollout_length.policies import DQN, Absolute, Ladder, RandomWalk, Rule
from metaopt.problems.rollout_length.policies.replay import Replay
from metaopt.testing import OptimizerContract
from metaopt.testing.trees import identical

ACTIONS = Absolute([0, 1, 2])
SMALL = {"widths": [8], "batch": 4, "updates": 2, "lr": 1e-2}


@pytest.mark.parametrize(
    "settings",
    [
        {"capacity": 6, "target_update_every": 2},
        {"targets": "monte_carlo", "exploration": [[0, 1.0], [8, 0.0]]},
    ],
)
class TestContract(OptimizerContract):
    outer_steps = 8  # the second episode is in its middle

    @pytest.fixture
    def make(self, settings):
        return lambda: (Climb(4), Score(1), DQN(ACTIONS, **{**SMALL, **settings}))


class TestWalk(OptimizerContract):
    @pytest.fixture
    def make(self):
        return lambda: (Climb(4), Score(1), Rule(RandomWalk(ACTIONS)))


def sequential(dqn: DQN) -> torch.nn.Sequential:
    """Return torch's own network with the weights of the policy's."""
    layers = []
    for weight, bias, *_ in dqn._network[1].layers:
        layer = torch.nn.Linear(*weight.shape[1:])
        layer.load_state_dict({"weight": weight[0].T.clone(), "bias": bias[0, 0].clone()})
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def assert_equal_weights(dqn: DQN, module: torch.nn.Sequential):
    for (weight, bias, *_), layer in zip(dqn._network[1].layers, module[::2], strict=True):
        torch.testing.assert_close(weight[0], layer.weight.T.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bias[0, 0], layer.bias.detach(), rtol=1e-4, atol=1e-6)


def test_network_starts_within_the_bounds_of_torchs_linear():
    started = []
    for seed in (5, 6):
        dqn = DQN(ACTIONS, widths=[64])
        list(Engine(Climb(4), Score(1), dqn, outer_steps=1, seed=seed))
        state = dqn._network[1].state
        assert torch.equal(state.params, state.target)
        for weight, bias, *_ in dqn._network[1].layers:
            fan_in = weight.shape[1]
            assert 0.9 < weight.abs().max() * fan_in**0.5 <= 1
            assert bias.abs().max() * fan_in**0.5 <= 1
        started.append(state.params)
    assert not torch.equal(*started)


def test_updates_have_the_double_q_targets():
    """Three equal runs and a replay of three rows: whatever is sampled is the one transition."""
    settings = {"widths": [16, 8], "batch": 3, "updates": 2, "lr": 0.05, "capacity": 3}
    dqn = DQN(Ladder(), exploration=[[0, 0.0]], discount=0.9, reward_scale=0.5, **settings)
    dqn.init(torch.zeros(3, dtype=torch.long))
    dqn.ask(0)
    observed = observation(step=0)
    dqn.tell(Feedback(0.0, observation=observed))
    online, target = sequential(dqn), sequential(dqn)
    adam = torch.optim.Adam(online.parameters(), lr=0.05)
    differed = False
    for step in (1, 2, 3):
        state, action = observed["state"][0], online(observed["state"][0]).argmax()
        assert dqn.ask(step).tolist() == [[5, 1, 3][action]] * 3
        state_after = state.roll(1) * 2
        reward = torch.full((3,), float(step))
        observed = observation(
            step=step, state=state_after.repeat(3, 1), reward=reward, done=step == 3
        )
        dqn.tell(Feedback(0.0, observation=observed))
        for _ in range(3 * 2):  # two for each of three transitions
            with torch.no_grad():
                ahead = target(state_after)
                best = online(state_after).argmax()
                differed |= bool(step < 3 and best != ahead.argmax())
                y = 0.5 * step + (0.9 * ahead[best] if step < 3 else 0.0)
            adam.zero_grad()
            (online(state)[action] - y).square().backward()
            adam.step()
    assert differed, "the case must tell double Q-learning from a plain maximum"
    assert_equal_weights(dqn, online)


def test_monte_carlo_labels_every_decision_with_the_final_score():
    dqn = DQN(Ladder(), targets="monte_carlo", reward_scale=0.1, **SMALL)
    dqn.init(torch.zeros(2, dtype=torch.long))
    asked = []
    for step in range(T + 1):
        asked.append(dqn.ask(fold(0, step)))
        score = torch.tensor([20.0, -3.0]) if step == T else torch.zeros(2)
        state = torch.full((2, 1), float(step))
        observed = observation(2, step=step, state=state, score=score, done=step == T)
        assert len(dqn._replay) == 0
        dqn.tell(Feedback(0.0, observation=observed))
    held = unpack(dqn._replay.packed)
    assert held.observation.squeeze(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert held.reward.tolist() == pytest.approx([2.0, -0.3] * 4)
    moved = [Ladder()(held.action[2 * k : 2 * k + 2], torch.tensor([3, 3])) for k in range(T)]
    assert identical(moved, asked[1:])


STATES = torch.eye((T + 1) * S)[: T * S].view(T, S, -1)


def trained(**settings):
    """Return an optimizer after 60 batches of 16 runs, and what it saw in a test batch."""
    shared = {"discount": 1.0, "updates": 1, "batch": 64, "widths": [32], "target_update_every": 16}
    dqn = DQN(ACTIONS, **{**shared, **settings})
    engine = Engine(Climb(16, training_episodes=60), Score(1), dqn, outer_steps=61 * (T + 1))
    return dqn, [f.observation for _, f in engine if f.observation["test"]]


@pytest.mark.slow
def test_bootstrapping_learns_the_optimal_policy():
    first, second = value_iteration().topk(2, -1).values.unbind(-1)
    assert (first - second).min() > 0.1, "one action must be clearly the best everywhere"
    best = value_iteration().argmax(-1)
    dqn, observed = trained(lr=5e-3, exploration=[[64, 1.0], [480, 0.5]])
    assert torch.equal(dqn.values(STATES.flatten(0, 1)).argmax(-1).view(T, S), best)
    assert [o["step"] for o in observed] == list(range(T + 1))
    for before, after in pairwise(observed):
        state = before["state"].view(16, T + 1, S)[:, before["step"]].argmax(1)
        assert torch.equal(after["length"], best[before["step"], state])


def expected(policy):
    """Return the mean over starts of the expected score of a policy (t, s) -> a."""
    chance, reward = tables()
    ahead = torch.zeros(S)
    for actions in policy.flip(0):
        ahead = (reward + chance @ ahead).gather(1, actions[:, None]).squeeze(1)
    return ahead.mean()


@pytest.mark.slow
def test_monte_carlo_learns_a_policy_that_is_as_good():
    settings = {"capacity": 1000, "exploration": [[64, 1.0], [480, 0.3]], "lr": 1e-2}
    dqn, _ = trained(targets="monte_carlo", **settings)
    best = expected(value_iteration().argmax(-1))
    assert best == pytest.approx(value_iteration()[0].amax(-1).mean())
    assert best - expected(dqn.values(STATES.flatten(0, 1)).argmax(-1).view(T, S)) < 0.1
    for action in range(3):
        assert best - expected(torch.full((T, S), action)) > 1


def test_tests_neither_learn_nor_explore():
    dqn = DQN(ACTIONS, exploration=[[0, 1.0]], **SMALL)
    engine = Engine(Climb(4, training_episodes=2), Score(1), dqn, outer_steps=4 * (T + 1))
    learnt, expected = {}, None
    for step, feedback in engine:
        state = engine.state_dict()["optimizer"]
        snapshot = clone({k: state[k] for k in ("network", "replay", "episode", "finished")})
        observed = feedback.observation
        if step == 2 * (T + 1):
            learnt = snapshot
        elif observed["test"]:
            assert identical(snapshot, learnt)
            assert observed["step"] == 0 or torch.equal(observed["length"], expected)
            expected = dqn.values(observed["state"]).argmax(-1)
    assert step == 4 * (T + 1)
    assert learnt["finished"] == 8


def test_exploration_counts_every_run_as_an_episode():
    dqn = DQN(ACTIONS, exploration=[[25, 1.0], [50, 0.15]], updates=0)
    engine = Engine(Climb(10), Score(1), dqn, outer_steps=6 * (T + 1))
    epsilons = [dqn.epsilon for step, _ in engine if step % (T + 1) == 0]
    assert epsilons == pytest.approx([1.0, 1.0, 0.83, 0.49, 0.15, 0.15])


def test_actions_are_as_random_as_epsilon_says():
    dqn = DQN(ACTIONS, exploration=[[0, 0.3]], updates=0)
    dqn.init(torch.zeros(6000, dtype=torch.long))
    dqn.ask(0)
    dqn.tell(Feedback(0.0, observation=observation(6000)))
    greedy = int(dqn.values(observation(1)["state"]).argmax())
    counts = torch.bincount(dqn.ask(1), minlength=3) / 6000
    expected = [0.8 if a == greedy else 0.1 for a in range(3)]
    assert counts.tolist() == pytest.approx(expected, abs=0.02)


def test_the_target_network_is_renewed_by_episodes():
    dqn = DQN(ACTIONS, target_update_every=8, **SMALL)
    engine = Engine(Climb(4), Score(1), dqn, outer_steps=4 * (T + 1))
    renewed = []
    for step, _ in engine:
        state = dqn._network[1].state
        if step > 2 and torch.equal(state.params, state.target):
            renewed.append(step)
    assert renewed == [2 * (T + 1), 2 * (T + 1) + 1, 4 * (T + 1)]


def numbered(values):
    """Transitions whose reward is their number."""
    x = torch.as_tensor(values).float()
    return Batch(x[:, None], torch.zeros(len(x)).long(), x, x[:, None], torch.zeros(len(x)))


def test_replay_is_a_ring():
    replay = Replay(5)
    assert len(unpack(replay.packed).reward) == 0
    for k in range(3):
        replay.add(numbered(torch.arange(3) + 3 * k))
    assert sorted(unpack(replay.packed).reward.tolist()) == [4, 5, 6, 7, 8]
    drawn = torch.stack([b.reward for b in replay.sample(400, 2, generator(0))])
    assert drawn.shape == (400, 1, 2)
    assert torch.bincount(drawn.long().flatten())[4:].float().div(800).tolist() == pytest.approx(
        [0.2] * 5, abs=0.05
    )
    copy = Replay(5)
    copy.load_state_dict(replay.state_dict())
    for ring in (replay, copy):
        ring.add(numbered([20, 21]))
    assert identical(replay.state_dict(), copy.state_dict())
    replay.add(numbered(range(12)))
    assert sorted(unpack(replay.packed).reward.tolist()) == [7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"actions": ACTIONS, "targets": "mc"}, "one of bootstrap, monte_carlo; got targets='mc'"),
        ({"discount": 1.1}, "0 <= discount <= 1; got discount=1.1"),
        ({"batch": 0}, "batch >= 1; got batch=0"),
        ({"widths": [64, 0]}, r"widths >= 1; got \[64, 0\]"),
        ({"updates": -1}, "updates >= 0"),
        ({"capacity": 0}, "capacity >= 1"),
        ({"exploration": [[0, 1.5]]}, r"probabilities in \[0, 1\]"),
        ({"exploration": []}, r"points \[step, value\]"),
    ],
)
def test_wrong_settings_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        DQN(**{"actions": ACTIONS, **changes})


def test_a_problem_that_does_not_act_is_refused():
    with pytest.raises(TypeError, match=r"DQN needs a problem that acts.* is a dict"):
        Engine(Ridge(features=2, rows=8), Score(0), DQN(ACTIONS), outer_steps=1)
    with pytest.raises(TypeError, match=r"a tensor of torch.float32 and shape \[2\]"):
        DQN(ACTIONS).init(torch.zeros(2))


@pytest.mark.parametrize("make", [lambda: DQN(ACTIONS), lambda: Rule(RandomWalk(ACTIONS))])
def test_wrong_observations_are_refused(make):
    optimizer = make()
    optimizer.init(torch.zeros(3, dtype=torch.long))
    optimizer.ask(0)
    whole = observation()
    partial = {k: v for k, v in whole.items() if k not in ("state", "test")}
    endless = torch.tensor([[1.0], [2.0], [float("inf")]])
    for wrong, error, match in [
        (None, TypeError, "this problem gives none"),
        (3, TypeError, "has state, .*; this problem gives none"),
        (partial, TypeError, r"has state, test; this problem gives \['length"),
        (observation(4), ValueError, r"lengths of 3 runs.*'state': \[4, 5\]"),
        ({**whole, "reward": torch.zeros(())}, ValueError, r"'reward': \[\]"),
        ({**whole, "state": endless}, ValueError, "not finite at step 1"),
    ]:
        with pytest.raises(error, match=match):
            optimizer.tell(Feedback(0.0, observation=wrong))


def test_telling_before_asking_is_refused():
    dqn = DQN(ACTIONS)
    dqn.init(torch.zeros(3, dtype=torch.long))
    with pytest.raises(RuntimeError, match="needs an ask"):
        dqn.tell(Feedback(0.0, observation=observation()))


def test_the_target_network_is_renewed_within_a_large_batch(monkeypatch):
    """Sixteen episodes at once are learnt from with as many copies as one after the other."""
    copies, update_ = {1: 0, 16: 0}, QNetwork.update_
    for runs in copies:

        def updating(network, views, *batch, runs=runs, **how):
            before = views.state.target.clone()
            update_(network, views, *batch, **how)
            copies[runs] += not torch.equal(before, views.state.target)

        monkeypatch.setattr(QNetwork, "update_", updating)
        settings = {**SMALL, "batch": 1, "updates": 2}
        dqn = DQN(ACTIONS, target_update_every=4, **settings)
        list(Engine(Climb(runs), Score(1), dqn, outer_steps=16 // runs * (T + 1)))
    assert copies == {1: 4, 16: 4}


def test_a_test_of_an_untrained_network_is_refused():
    """At the first decision of a test, whatever the targets; not where no training is asked for."""
    for targets in ("bootstrap", "monte_carlo"):
        dqn = DQN(ACTIONS, targets, **SMALL)
        engine = Engine(Climb(4, training_episodes=0), Score(1), dqn, outer_steps=T + 1)
        with pytest.raises(ValueError, match=r"0 transitions .* Set problem.training_episodes"):
            list(engine)
        assert engine.outer_step == 1
    for settings, training in (({**SMALL, "updates": 0}, 0), (SMALL, 1)):
        problem = Climb(4, training_episodes=training)
        engine = Engine(problem, Score(1), DQN(ACTIONS, **settings), outer_steps=3 * (T + 1))
        assert len(list(engine)) == 3 * (T + 1)
