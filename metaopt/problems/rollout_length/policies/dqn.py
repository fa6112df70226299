"""A deep Q-network that sets the rollout lengths of R inner runs: the meta-policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Feedback
from metaopt.engine.random import fold, generator
from metaopt.engine.ranges import check_choices, check_ranges
from metaopt.environments.q_network import QNetwork, QState, QViews
from metaopt.environments.transitions import Batch
from metaopt.optimizers.schedule import Linear
from metaopt.problems.rollout_length.policies.policy import Observation, Policy, observe
from metaopt.problems.rollout_length.policies.replay import Replay
from metaopt.problems.rollout_length.policies.rules import Actions

Targets = Literal["bootstrap", "monte_carlo"]


@final
class DQN(Policy):
    """Learn which action on its length each inner run should take next.

    Every outer step gives one transition (s, a, r, s') per run. The network's targets are

        bootstrap:    y = r + discount * Q_target(s', argmax_a Q(s', a)), or r at the episode's end
                      (double Q-learning, with Q_target an earlier copy of Q);
        monte_carlo:  y = the episode's final score, for all its decisions, learnt at its end.

    The loss is the mean squared error, the optimizer Adam; see `QNetwork`, of which this is one
    learner.

    In a test episode (`Observation.test`) the network acts greedily, remembers and learns nothing;
    one that has learnt nothing before is refused, unless `updates` is 0. The network is trained on
    the CPU, wherever the inner runs are.

    Args:
        actions: what it may do: `Ladder` or `Absolute`.
        targets: "bootstrap" or "monte_carlo".
        discount: weight of the next step's value, in [0, 1]; bootstrap only.
        lr: learning rate of Adam.
        widths: hidden units, layer by layer.
        batch: transitions per update, >= 1; there is none before the replay holds so many.
        updates: updates per transition, >= 0; R runs therefore cost R * updates an outer step.
        capacity: transitions in the replay.
        target_update_every: episodes between two copies of the network into the target network,
            >= 1, counted in the updates of one run's episode, `target_update_every * decisions *
            updates` of them: R runs are learnt from between two decisions, and one copy per batch
            of runs would be too few.
        exploration: points [episodes finished, probability of a random action], joined by straight
            lines; a batch of R runs counts R episodes, and all its runs share one probability.
        reward_scale: factor on rewards and scores, > 0, which keeps values near 1.

    Cost: updates per outer step as above, each about three passes of the network.

    References: Bhatia, Thomas and Zilberstein, arXiv 2206.02380, 2022, whose settings are the
        defaults (replay, scales and initial length are not stated there); van Hasselt, Guez and
        Silver, AAAI 2016.
    """

    def __init__(
        self,
        actions: Actions,
        targets: Targets = "bootstrap",
        discount: float = 0.99,
        lr: float = 1e-4,
        widths: Sequence[int] = (64, 32),
        batch: int = 32,
        updates: int = 10,
        capacity: int = 100_000,
        target_update_every: int = 10,
        exploration: Sequence[Sequence[float]] = ((25, 1.0), (50, 0.15)),
        reward_scale: float = 1.0,
    ) -> None:
        self._exploration = Linear(exploration)
        if not all(0 <= p <= 1 for _, p in exploration):
            raise ValueError(f"DQN explores with probabilities in [0, 1]; got {exploration!r}.")
        self.actions, self.targets, self.discount, self.lr = actions, targets, discount, lr
        self.widths, self.batch, self.updates = tuple(widths), batch, updates
        self.target_update_every, self.reward_scale = target_update_every, reward_scale
        check_choices(self, targets=get_args(Targets))
        check_ranges(
            self, "0 <= discount <= 1", "lr > 0", "reward_scale > 0", "batch >= 1", "updates >= 0",
            "target_update_every >= 1",
        )  # fmt: skip
        if any(width < 1 for width in widths):
            raise ValueError(f"DQN needs widths >= 1; got {list(widths)}.")
        self.capacity = capacity
        self._forget()

    def init(self, outer: Any) -> None:
        """Forget what was learned and copy the first lengths; see `Policy.init`."""
        super().init(outer)
        self._forget()

    def _forget(self) -> None:
        self._replay = Replay(self.capacity)
        self._network: tuple[QNetwork, QViews] | None = None
        self._action: Tensor | None = None
        self._episode: list[Batch] = []  # decisions that wait for their final score
        self._finished = 0
        self._key: int | None = None

    def ask(self, key: int) -> Tensor:
        """Return the lengths of the next outer step, long [R].

        Raises:
            ValueError: a test decides by a network that has learnt nothing.
        """
        self._key, self._action = key, None
        return super().ask(key)

    def _decide(self, observed: Observation, key: int) -> Tensor:
        if observed.test and self.updates and len(self._replay) < self.batch:
            raise ValueError(
                f"DQN needs training before a test; it has learnt nothing, with "
                f"{len(self._replay)} transitions and batch={self.batch}. Set "
                f"problem.training_episodes and outer_steps, or use "
                f"method=rollout_length/meta_paper, which sets both, or a smaller "
                f"optimizer.batch; optimizer.updates=0 tests an untrained network."
            )
        self._action = self.values(observed.state).argmax(-1)
        if not observed.test:
            draw = generator(fold(key, "explore"))
            explore = torch.rand(len(self._action), generator=draw) < self.epsilon
            drawn = torch.randint(self.actions.count, self._action.shape, generator=draw)
            self._action = torch.where(explore, drawn, self._action)
        return self.actions(self._action, observed.length)

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
            self._finished += len(self._initial)
        self._observed, self._key = observed, None

    @property
    def epsilon(self) -> float:
        """The probability of a random action in a training episode that starts now."""
        return float(self._exploration(self._finished))

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
        return super().state_dict() | {
            "network": None if self._network is None else self._network[1].state,
            "replay": self._replay.state_dict(),
            "episode": list(self._episode),
            "finished": self._finished,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        state = tree.clone(state)
        self._replay.load_state_dict(state["replay"])
        self._network = None
        if self._observed is not None:
            self._begin(self._observed, 0, state["network"])
        self._episode, self._finished = state["episode"], state["finished"]
        self._action, self._key = None, None

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
        self._network = network, network.views(state)

    def _remember(self, before: Observation, action: Tensor, observed: Observation) -> int:
        """Put what can be learnt by now into the replay; return the number of transitions."""
        gain = self.reward_scale * observed.reward.float()
        terminal = torch.full_like(gain, float(observed.done))
        made = Batch(before.state, action, gain, observed.state, terminal)
        if self.targets == "monte_carlo":
            self._episode.append(made)
            if not observed.done:
                return 0
            score = self.reward_scale * observed.score.float()
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
