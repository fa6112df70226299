"""R deep Q-networks, batched: values of actions, and the step that improves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.ranges import check_ranges
from metaopt.environments.stacked import (
    AdamViews,
    Layer,
    Moments,
    StackedAdam,
    StackedMLP,
)
from metaopt.environments.transitions import Batch


@tree.tagged("q_network")
class QState(NamedTuple):
    """What R learners hold: parameters (R, n), those of the target networks, Adam's moments."""

    params: Tensor
    target: Tensor
    moments: Moments


class QViews(NamedTuple):
    """A `QState` with its views made and room for a gradient; it shares memory with the state."""

    state: QState
    layers: list[Layer]
    target: list[Layer]
    grad: list[Layer]
    adam: AdamViews


class QNetwork:
    """Deep Q-learning (Mnih et al., Nature 518, 2015) for R learners, batched.

    The target of a transition is y = r + gamma (1 - terminal) Q'(s', a*), with Q' the target
    network and a* = argmax Q(s', .) (double Q-learning: van Hasselt, Guez and Silver, AAAI 2016).
    The loss is the mean over the batch of scale * H(Q(s, a) - y), with
    H(x) = x^2 / 2 for |x| <= clip and clip |x| - clip^2 / 2 beyond.

    Args:
        observation_size, actions: sizes d and A.
        widths: sizes of the hidden layers.
        lr: Adam's learning rate.
        gamma: discount, in [0, 1].
        target_update_every: updates between two copies into the target network, >= 1; each learner
            counts its own.
        clip: largest slope of H, > 0, or `None` for squared errors.
        scale: factor on the loss; 2 makes it the mean squared error where clip is `None`.
    """

    def __init__(
        self,
        observation_size: int,
        actions: int,
        widths: Sequence[int] = (64, 32),
        *,
        lr: float = 1e-3,
        gamma: float = 0.99,
        target_update_every: int = 200,
        clip: float | None = 1.0,
        scale: float = 1.0,
    ) -> None:
        self.mlp = StackedMLP((observation_size, *widths, actions))
        self.adam = StackedAdam(lr)
        self.actions, self.gamma = actions, gamma
        self.target_update_every, self.clip, self.scale = target_update_every, clip, scale
        check_ranges(self, "0 <= gamma <= 1", "target_update_every >= 1", "clip > 0 or null")

    def init(self, runs: int, draw: Generator) -> QState:
        """Return R new learners on the device of `draw`."""
        return self.start(self.mlp.init(runs, draw))

    def start(self, params: Tensor) -> QState:
        """Return new learners with parameters (R, n)."""
        return QState(params, params.clone(), self.adam.init(params))

    def views(self, state: QState) -> QViews:
        """Return the state with its views, for many calls on end."""
        grad, layers = torch.empty_like(state.params), self.mlp.layers
        adam = self.adam.views(state.params, grad, state.moments)
        return QViews(state, layers(state.params), layers(state.target), layers(grad), adam)

    def values(self, at: QViews, observation: Tensor) -> Tensor:
        """Return Q(s, .), (R, B, A), of observations (R, B, d)."""
        return self.mlp(at.layers, observation)

    def act(self, at: QViews, observation: Tensor, epsilon: float, draw: Generator) -> Tensor:
        """Return actions (R, B): greedy, or random with probability `epsilon`."""
        shape, device = observation.shape[:2], observation.device
        if epsilon >= 1:
            return torch.randint(self.actions, shape, generator=draw, device=device)
        best = self.values(at, observation).argmax(-1)
        if epsilon <= 0:
            return best
        other = torch.randint(self.actions, shape, generator=draw, device=device)
        explore = torch.rand(shape, generator=draw, device=device) < epsilon
        return torch.where(explore, other, best)

    def targets(self, at: QViews, batch: Batch) -> Tensor:
        """Return the targets y of transitions, (R, B)."""
        after = self.mlp(at.target, batch.next_observation)
        best = self.values(at, batch.next_observation).argmax(-1, keepdim=True)
        value = after.gather(-1, best).squeeze(-1)
        return torch.addcmul(batch.reward, value, 1 - batch.terminal, value=self.gamma)

    def gradient(self, at: QViews, observation: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """Write the gradient of each learner's loss into `at.grad`; return Q(s, a) - y, (R, B)."""
        values, tape = self.mlp.forward(at.layers, observation)
        action = action.unsqueeze(-1)
        error = values.gather(-1, action).squeeze(-1) - target
        slope = error if self.clip is None else error.clamp(-self.clip, self.clip)
        share = (slope / (error.shape[1] / self.scale)).unsqueeze(-1)
        self.mlp.backward(at.layers, tape, torch.zeros_like(values).scatter_(-1, action, share),
                          at.grad)  # fmt: skip
        return error

    def update_(
        self, at: QViews, batch: Batch, active: Tensor | None = None, bootstrap: bool = True
    ) -> None:
        """Take one step of Adam in place where `active` (R, 1) is 1.

        Args:
            at: the learners.
            batch: what to learn from.
            active: which learners take the step; `None` for all.
            bootstrap: whether the targets are those above; where not, the rewards alone.
        """
        target = self.targets(at, batch) if bootstrap else batch.reward
        self.gradient(at, batch.observation, batch.action, target)
        self.adam.step_(at.adam, active)
        renew = torch.remainder(at.state.moments.steps, self.target_update_every) == 0
        if active is not None:
            renew &= active > 0
        if renew.is_cuda or bool(renew.any()):  # a look at a GPU's flags would wait for the GPU
            at.state.target.copy_(torch.where(renew, at.state.params, at.state.target))
