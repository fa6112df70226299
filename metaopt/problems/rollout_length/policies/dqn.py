"""A deep Q-network that acts on R inner runs in lock-step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback, Tree
from metaopt.engine.random import fold, generator
from metaopt.optimizers.schedule import Linear
from metaopt.problems.rollout_length.policies.actions import Actions
from metaopt.problems.rollout_length.policies.observation import Observation, lengths_of, observe
from metaopt.problems.rollout_length.policies.replay import Replay
from metaopt.problems.rollout_length.policies.value_network import ValueNetwork


@final
class DQN:
    """Learn which action on its length each inner run should take next.

    Every outer step gives one transition (s, a, r, s') per run. The network's targets are

        bootstrap:    y = r + discount * Q_frozen(s', argmax_a Q(s', a)), or r at the episode's end
                      (double Q-learning);
        monte_carlo:  y = the episode's final score, for all its decisions, learnt at its end.

    The first outer step of an episode decides nothing and takes the problem's first lengths. In a
    test episode (`Observation.test`) the network acts greedily, remembers and learns nothing; one
    that has learnt nothing before is refused, unless `updates` is 0. The network is trained on the
    processor, wherever the inner runs are.

    Args:
        actions: what it may do: `Ladder` or `Absolute`.
        targets: "bootstrap" or "monte_carlo".
        discount: weight of the next step's value, in [0, 1]; bootstrap only.
        lr: learning rate of Adam.
        widths: hidden units, layer by layer.
        batch: transitions per update, >= 1; there is none before the replay holds so many.
        updates: updates per transition, >= 0; R runs therefore cost R * updates an outer step.
        capacity: transitions kept.
        freeze_every: episodes between two copies of the network into the frozen one, >= 1, counted
            in the updates of an episode, `freeze_every * decisions * updates` of them: R runs in
            lock-step are learnt from between two decisions, and one copy a batch would be too few.
        exploration: points [episodes finished, probability of a random action], joined by straight
            lines; a batch of R runs counts R episodes, and all its runs share one probability.
        reward_scale: factor on rewards and scores, > 0, which keeps values near 1.
        averaged_runs: number of consecutive runs that take their decisions together while
            training, on the mean of their features and for the mean of their rewards: one episode
            of less noise. In tests each run is on its own. Must divide R.

    Cost: updates per outer step as above, each about three passes of the network.

    References: Bhatia, Thomas and Zilberstein, arXiv 2206.02380, 2022, whose settings are the
        defaults (replay, scales and initial length are not stated there); van Hasselt, Guez and
        Silver, AAAI 2016.
    """

    def __init__(
        self,
        actions: Actions,
        targets: Literal["bootstrap", "monte_carlo"] = "bootstrap",
        discount: float = 0.99,
        lr: float = 1e-4,
        widths: Sequence[int] = (64, 32),
        batch: int = 32,
        updates: int = 10,
        capacity: int = 100_000,
        freeze_every: int = 10,
        exploration: Sequence[Sequence[float]] = ((25, 1.0), (50, 0.15)),
        reward_scale: float = 1.0,
        averaged_runs: int = 1,
    ) -> None:
        if targets not in ("bootstrap", "monte_carlo"):
            raise ValueError(f"DQN needs targets=bootstrap or monte_carlo; got {targets!r}.")
        if not 0 <= discount <= 1 or not lr > 0 or not reward_scale > 0:
            raise ValueError(
                f"DQN needs discount in [0, 1], lr > 0 and reward_scale > 0; got {discount}, {lr} "
                f"and {reward_scale}."
            )
        counts = {"batch": batch, "freeze_every": freeze_every, "averaged_runs": averaged_runs}
        counts |= {f"widths[{i}]": width for i, width in enumerate(widths)}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"DQN needs {name} >= 1; got {count}.")
        if updates < 0:
            raise ValueError(f"DQN needs updates >= 0; got {updates}.")
        self._exploration = Linear(exploration)
        if not all(0 <= p <= 1 for _, p in exploration):
            raise ValueError(f"DQN explores with probabilities in [0, 1]; got {exploration!r}.")
        self.actions, self.targets, self.discount, self.lr = actions, targets, discount, lr
        self.widths, self.batch, self.updates = tuple(widths), batch, updates
        self.freeze_every, self.reward_scale = freeze_every, reward_scale
        self.averaged_runs = averaged_runs
        self._replay = Replay(capacity)
        self._network: ValueNetwork | None = None
        self._outer: Any = None
        self._seen: Observation | None = None
        self._action: Tensor | None = None
        self._episode: list[Tree] = []  # decisions that wait for their final score
        self._finished = 0
        self._made = 0  # updates of the network
        self._key: int | None = None

    def init(self, outer: Any) -> None:
        """Keep the first lengths, with which every episode starts.

        Raises:
            TypeError: the outer variable is not one whole number per run.
            ValueError: `averaged_runs` does not divide the number of runs.
        """
        self._initial = lengths_of(outer, "DQN")
        if len(self._initial) % self.averaged_runs:
            raise ValueError(
                f"DQN needs averaged_runs that divides the number of inner runs; got "
                f"{self.averaged_runs} and {len(self._initial)} runs."
            )
        self._outer = self._initial.clone()

    def ask(self, key: int) -> Tensor:
        """Return the lengths of the next outer step, long [R].

        Raises:
            ValueError: a test decides by a network that has learnt nothing.
        """
        self._key, self._action, seen = key, None, self._seen
        if seen is None or seen.done or self._network is None:
            self._outer = self._initial.clone()
        else:
            if seen.test and self.updates and len(self._replay) < self.batch:
                raise ValueError(
                    f"DQN needs training before a test; it has learnt nothing, with "
                    f"{len(self._replay)} transitions and batch={self.batch}. Set "
                    f"problem.training_episodes and outer_steps, or use "
                    f"method=rollout_length/meta_paper, which sets both, or a smaller "
                    f"optimizer.batch; optimizer.updates=0 tests an untrained network."
                )
            self._action = self._act(seen, self._network, fold(key, "explore"))
            lengths = self.actions(self._action, seen.length)
            self._outer = lengths.to(self._initial.device)
        return self._outer

    def tell(self, feedback: Feedback) -> None:
        """Remember the transitions and learn from the replay.

        Raises:
            RuntimeError: nothing has been asked for since the last `tell`.
            TypeError, ValueError: the observation is not one; see `observe`.
        """
        if self._key is None:
            raise RuntimeError("DQN.tell needs an ask first.")
        key, action, before = self._key, self._action, self._seen
        seen = observe(feedback, len(self._initial), "DQN")
        network = self._network or self._begin(seen, key)
        if before is None or before.done:
            self._episode = []
        elif action is not None and not seen.test:
            added = self._remember(before, action, seen)
            period = self.freeze_every * seen.steps * max(self.updates, 1)
            self._learn(network, added * self.updates, period, fold(key, "replay"))
        if seen.done and not seen.test:
            self._finished += len(self._initial) // self.averaged_runs
        self._seen, self._key = seen, None

    @property
    def epsilon(self) -> float:
        """The probability of a random action in a training episode that starts now."""
        return self._exploration(self._finished)

    @property
    def solution(self) -> Any:
        """The lengths last asked for."""
        return self._outer

    def state_dict(self) -> dict[str, Any]:
        """Return networks, replay, the unfinished episode and what was seen last."""
        return {
            "network": None if self._network is None else self._network.state_dict(),
            "replay": self._replay.state_dict(),
            "episode": list(self._episode),
            "seen": None if self._seen is None else self._seen._asdict(),
            "finished": self._finished,
            "made": self._made,
            "outer": self._outer,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: it is of another network or another capacity.
        """
        state = tree.clone(state)
        self._replay.load_state_dict(state["replay"])
        self._seen = None if state["seen"] is None else Observation(**state["seen"])
        self._network = None
        if self._seen is not None:
            self._begin(self._seen, 0).load_state_dict(state["network"])
        self._episode, self._finished = state["episode"], state["finished"]
        self._made = state["made"]
        self._outer, self._action, self._key = state["outer"], None, None

    def _begin(self, seen: Observation, key: int) -> ValueNetwork:
        sizes = (seen.state.shape[1], *self.widths, self.actions.count)
        self._network = ValueNetwork(sizes, self.lr, fold(key, "network"))
        return self._network

    def _act(self, seen: Observation, network: ValueNetwork, key: int) -> Tensor:
        group = 1 if seen.test else self.averaged_runs
        action = network(_mean(seen.state, group)).argmax(-1)
        if not seen.test:
            draw = generator(key)
            explore = torch.rand(len(action), generator=draw) < self.epsilon
            drawn = torch.randint(self.actions.count, action.shape, generator=draw)
            action = torch.where(explore, drawn, action)
        return action.repeat_interleave(group)

    def _remember(self, before: Observation, action: Tensor, seen: Observation) -> int:
        """Put what can be learnt by now into the replay; return the number of rows."""
        group = self.averaged_runs
        rows = {"state": _mean(before.state, group), "action": action[::group]}
        if self.targets == "bootstrap":
            rows["reward"] = self.reward_scale * _mean(seen.reward, group).float()
            rows["next_state"] = _mean(seen.state, group)
            rows["terminal"] = torch.full_like(rows["reward"], float(seen.done))
        else:
            self._episode.append(rows)
            if not seen.done:
                return 0
            rows = {k: torch.cat([part[k] for part in self._episode]) for k in rows}
            score = self.reward_scale * _mean(seen.score, group).float()
            rows["target"] = score.repeat(len(self._episode))
            self._episode = []
        self._replay.add(rows)
        return len(rows["action"])

    def _learn(self, network: ValueNetwork, updates: int, period: int, key: int) -> None:
        if not updates or len(self._replay) < self.batch:
            return
        rows = self._replay.sample((updates, self.batch), generator(key))
        if self.targets == "monte_carlo":
            for state, action, target in zip(
                rows["state"], rows["action"], rows["target"], strict=True
            ):
                network.descend(state, action, target)
            return
        weight = self.discount * (1 - rows["terminal"])
        for i in range(updates):
            following = rows["next_state"][i]
            best = network(following).argmax(-1, keepdim=True)
            value = network.frozen(following).gather(-1, best).squeeze(-1)
            target = rows["reward"][i] + weight[i] * value
            network.descend(rows["state"][i], rows["action"][i], target)
            self._made += 1
            if self._made % period == 0:
                network.freeze()


def _mean(rows: Tensor, group: int) -> Tensor:
    """Return the means over `group` consecutive rows."""
    return rows if group == 1 else rows.unflatten(0, (-1, group)).mean(1)
