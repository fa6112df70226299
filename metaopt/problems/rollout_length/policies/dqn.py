"""A deep Q-network that sets the rollout lengths of R inner runs: the meta-policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback
from metaopt.engine.random import fold, generator
from metaopt.optimizers.schedule import Linear
from metaopt.problems.rollout_length.dyna.q_network import QNetwork, QState, QViews
from metaopt.problems.rollout_length.dyna.transitions import Batch
from metaopt.problems.rollout_length.policies.actions import Actions
from metaopt.problems.rollout_length.policies.observation import Observation, lengths_of, observe
from metaopt.problems.rollout_length.policies.replay import Replay


@final
class DQN:
    """Learn which action on its length each inner run should take next.

    Every outer step gives one transition (s, a, r, s') per run. The network's targets are

        bootstrap:    y = r + discount * Q_target(s', argmax_a Q(s', a)), or r at the episode's end
                      (double Q-learning, with Q_target an earlier copy of Q);
        monte_carlo:  y = the episode's final score, for all its decisions, learnt at its end.

    The loss is the mean squared error, the optimizer Adam; see `QNetwork`, of which this is one
    learner.

    The first outer step of an episode decides nothing and takes the problem's first lengths. In a
    test episode (`Observation.test`) the network acts greedily, remembers and learns nothing; one
    that has learnt nothing before is refused, unless `updates` is 0. The network is trained on the
    CPU, wherever the inner runs are.

    Args:
        actions: what it may do: `Ladder` or `Absolute`.
        targets: "bootstrap" or "monte_carlo".
        discount: weight of the next step's value, in [0, 1]; bootstrap only.
        lr: learning rate of Adam.
        widths: hidden units, layer by layer.
        batch: transitions per update, >= 1; there is none before the replay holds so many.
        updates: updates per transition, >= 0; R runs therefore cost R * updates an outer step.
        capacity: transitions kept.
        target_update_every: episodes between two copies of the network into the target network,
            >= 1, counted in the updates of one run's episode, `target_update_every * decisions *
            updates` of them: R runs are learnt from between two decisions, and one copy a batch of
            runs would be too few.
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
        target_update_every: int = 10,
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
        counts = {
            "batch": batch, "target_update_every": target_update_every,
            "averaged_runs": averaged_runs, **{f"widths[{i}]": w for i, w in enumerate(widths)},
        }  # fmt: skip
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
        self.target_update_every, self.reward_scale = target_update_every, reward_scale
        self.averaged_runs = averaged_runs
        self._replay = Replay(capacity)
        self._network: tuple[QNetwork, QViews] | None = None
        self._outer: Any = None
        self._observed: Observation | None = None
        self._action: Tensor | None = None
        self._episode: list[Batch] = []  # decisions that wait for their final score
        self._finished = 0
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
        self._key, self._action, observed = key, None, self._observed
        if observed is None or observed.done:
            self._outer = self._initial.clone()
        else:
            if observed.test and self.updates and len(self._replay) < self.batch:
                raise ValueError(
                    f"DQN needs training before a test; it has learnt nothing, with "
                    f"{len(self._replay)} transitions and batch={self.batch}. Set "
                    f"problem.training_episodes and outer_steps, or use "
                    f"method=rollout_length/meta_paper, which sets both, or a smaller "
                    f"optimizer.batch; optimizer.updates=0 tests an untrained network."
                )
            self._action = self._act(observed, fold(key, "explore"))
            lengths = self.actions(self._action, observed.length)
            self._outer = lengths.to(self._initial.device)
        result: Tensor = self._outer
        return result

    def tell(self, feedback: Feedback) -> None:
        """Remember the transitions and learn from the replay.

        Raises:
            RuntimeError: nothing has been asked for since the last `tell`.
            TypeError, ValueError: the observation is not one; see `observe`.
        """
        if self._key is None:
            raise RuntimeError("DQN.tell needs an ask first.")
        key, action, before = self._key, self._action, self._observed
        observed = observe(feedback, len(self._initial), "DQN")
        if self._network is None:
            self._begin(observed, key)
        if before is None or before.done:
            self._episode = []
        elif action is not None and not observed.test:
            added = self._remember(before, action, observed)
            self._learn(added * self.updates, fold(key, "replay"))
        if observed.done and not observed.test:
            self._finished += len(self._initial) // self.averaged_runs
        self._observed, self._key = observed, None

    @property
    def epsilon(self) -> float:
        """The probability of a random action in a training episode that starts now."""
        result: float = self._exploration(self._finished)
        return result

    @property
    def solution(self) -> Any:
        """The lengths last asked for."""
        return self._outer

    def values(self, states: Tensor) -> Tensor:
        """Return Q(s, .), [B, A], of features [B, F], once a first observation was told.

        Raises:
            RuntimeError: nothing was told yet.
        """
        if self._network is None:
            raise RuntimeError("DQN has no network before its first tell.")
        network, views = self._network
        return network.values(views, states.unsqueeze(0)).squeeze(0)

    def state_dict(self) -> dict[str, Any]:
        """Return the network, the replay, the unfinished episode and the last observation."""
        return {
            "network": None if self._network is None else self._network[1].state,
            "replay": self._replay.state_dict(),
            "episode": list(self._episode),
            "observed": None if self._observed is None else self._observed._asdict(),
            "finished": self._finished,
            "outer": self._outer,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: it is of another network or another capacity.
        """
        state = tree.clone(state)
        self._replay.load_state_dict(state["replay"])
        self._observed = None if state["observed"] is None else Observation(**state["observed"])
        self._network = None
        if self._observed is not None:
            self._begin(self._observed, 0, state["network"])
        self._episode, self._finished = state["episode"], state["finished"]
        self._outer, self._action, self._key = state["outer"], None, None

    def _begin(self, observed: Observation, key: int, state: QState | None = None) -> None:
        """Make the network, for as many features as are observed; with new weights by default."""
        period = self.target_update_every * observed.steps * max(self.updates, 1)
        network = QNetwork(
            observed.state.shape[1], self.actions.count, self.widths, lr=self.lr,
            gamma=self.discount, target_update_every=period, clip=None, scale=2.0,
        )  # fmt: skip
        if state is None:
            draw, mlp = generator(fold(key, "network")), network.mlp
            params = torch.rand(1, mlp.size, generator=draw).mul_(2).sub_(1)
            for layer in mlp.layers(params):  # uniform in +-1 / sqrt(inputs), as torch's Linear
                layer.weight.div_(math.sqrt(layer.weight.shape[1]))
                layer.bias.div_(math.sqrt(layer.weight.shape[1]))
            state = network.start(params)
        elif state.params.shape[1] != network.mlp.size:
            raise ValueError(
                f"the checkpoint's network has {state.params.shape[1]} parameters, this one "
                f"{network.mlp.size} in layers of {list(network.mlp.sizes)}; resume with the "
                "widths and the actions of the checkpoint."
            )
        self._network = network, network.views(state)

    def _act(self, observed: Observation, key: int) -> Tensor:
        group = 1 if observed.test else self.averaged_runs
        action = self.values(_mean(observed.state, group)).argmax(-1)
        if not observed.test:
            draw = generator(key)
            explore = torch.rand(len(action), generator=draw) < self.epsilon
            drawn = torch.randint(self.actions.count, action.shape, generator=draw)
            action = torch.where(explore, drawn, action)
        return action.repeat_interleave(group)

    def _remember(self, before: Observation, action: Tensor, observed: Observation) -> int:
        """Put what can be learnt by now into the replay; return the number of transitions."""
        group = self.averaged_runs
        gain = self.reward_scale * _mean(observed.reward, group).float()
        terminal = torch.full_like(gain, float(observed.done))
        state, after = _mean(before.state, group), _mean(observed.state, group)
        made = Batch(state, action[::group], gain, after, terminal)
        if self.targets == "monte_carlo":
            self._episode.append(made)
            if not observed.done:
                return 0
            score = self.reward_scale * _mean(observed.score, group).float()
            waiting, self._episode = self._episode, []
            made = Batch(*map(torch.cat, zip(*waiting, strict=True)))
            made = made._replace(reward=score.repeat(len(waiting)))
        self._replay.add(made)
        return len(made.action)

    def _learn(self, updates: int, key: int) -> None:
        if self._network is None or not updates or len(self._replay) < self.batch:
            return
        network, views = self._network
        for batch in self._replay.sample(updates, self.batch, generator(key)):
            network.update_(views, batch, bootstrap=self.targets == "bootstrap")


def _mean(values: Tensor, group: int) -> Tensor:
    """Return the means over `group` consecutive runs."""
    return values if group == 1 else values.unflatten(0, (-1, group)).mean(1)
