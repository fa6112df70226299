"""R deep Q-networks side by side: values of actions, and the step that improves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.problems.rollout_length.dyna.stacked_mlp import (
    Descent,
    Layer,
    Moments,
    StackedAdam,
    StackedMLP,
)
from metaopt.problems.rollout_length.dyna.transitions import Batch


class QState(NamedTuple):
    """What R learners hold: parameters (R, n), those of the target networks, Adam's moments."""

    params: Tensor
    target: Tensor
    moments: Moments


torch.serialization.add_safe_globals([QState])


class Open(NamedTuple):
    """A `QState` with its views made and room for a gradient; it shares memory with the state."""

    state: QState
    layers: list[Layer]
    target: list[Layer]
    grad: Tensor
    slopes: list[Layer]
    descent: Descent


class QNetwork:
    """Deep Q-learning (Mnih et al., Nature 518, 2015) for R learners in lock-step.

    The target of a transition is y = r + gamma (1 - terminal) Q'(s', a*), with Q' the target
    network and a* = argmax Q(s', .) (double Q-learning: van Hasselt, Guez and Silver, AAAI 2016)
    or argmax Q'(s', .). The loss is the mean over the batch of H(Q(s, a) - y), H(x) = x^2 / 2 for
    |x| <= clip and clip |x| - clip^2 / 2 beyond.

    Args:
        observation_size, actions: sizes d and A.
        widths: sizes of the hidden layers.
        lr: Adam's learning rate.
        gamma: discount, in [0, 1].
        target_every: updates between two copies into the target network, >= 1; each learner
            counts its own.
        double: choose the next action by the online network.
        clip: largest slope of the loss, > 0, or `None` for squared errors.
    """

    def __init__(
        self,
        observation_size: int,
        actions: int,
        widths: Sequence[int] = (64, 32),
        *,
        lr: float = 1e-3,
        gamma: float = 0.99,
        target_every: int = 200,
        double: bool = True,
        clip: float | None = 1.0,
    ) -> None:
        if not 0 <= gamma <= 1 or target_every < 1 or (clip is not None and not clip > 0):
            raise ValueError(
                f"QNetwork needs 0 <= gamma <= 1, target_every >= 1 and clip > 0 or null; got "
                f"gamma={gamma}, target_every={target_every}, clip={clip}."
            )
        self.mlp = StackedMLP((observation_size, *widths, actions))
        self.adam = StackedAdam(lr)
        self.actions, self.gamma = actions, gamma
        self.target_every, self.double, self.clip = target_every, double, clip

    def init(self, runs: int, draw: Generator) -> QState:
        """Return R new learners on the device of `draw`."""
        params = self.mlp.init(runs, draw)
        return QState(params, params.clone(), self.adam.init(params))

    def open(self, state: QState) -> Open:
        """Return the state with its views, for many calls on end."""
        grad = torch.empty_like(state.params)
        layers, descent = self.mlp.layers, self.adam.open(state.params, grad, state.moments)
        return Open(state, layers(state.params), layers(state.target), grad, layers(grad), descent)

    def values(self, at: Open, observation: Tensor) -> Tensor:
        """Return Q(s, .), (R, B, A), of observations (R, B, d)."""
        return self.mlp(at.layers, observation)

    def act(self, at: Open, observation: Tensor, epsilon: float, draw: Generator) -> Tensor:
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

    def errors(self, at: Open, batch: Batch) -> Tensor:
        """Write the gradient of each learner's loss into `at.grad`; return Q(s, a) - y, (R, B)."""
        count = batch.reward.shape[1]
        values, kept = self.mlp.forward(at.layers, batch.observation)
        later = self.mlp(at.target, batch.next_observation)
        ahead = self.values(at, batch.next_observation) if self.double else later
        best = ahead.argmax(-1, keepdim=True)
        goal = later.gather(-1, best).squeeze(-1)
        goal = torch.addcmul(batch.reward, goal, 1 - batch.terminal, value=self.gamma)
        action = batch.action.unsqueeze(-1)
        error = values.gather(-1, action).squeeze(-1) - goal
        slope = error if self.clip is None else error.clamp(-self.clip, self.clip)
        spread = torch.zeros_like(values).scatter_(-1, action, (slope / count).unsqueeze(-1))
        self.mlp.backward(at.layers, kept, spread, at.slopes)
        return error

    def gradient(self, at: Open, batch: Batch) -> Tensor:
        """Write the gradient of each learner's loss into `at.grad`; return the losses (R)."""
        error = self.errors(at, batch)
        slope = error if self.clip is None else error.clamp(-self.clip, self.clip)
        return (slope * (error - slope / 2)).mean(1)

    def update_(self, at: Open, batch: Batch, active: Tensor | None = None) -> None:
        """Take one step of Adam in place where `active` (R, 1) is 1."""
        self.errors(at, batch)
        self.adam.step_(at.descent, active)
        due = torch.remainder(at.state.moments.steps, self.target_every) == 0
        if active is not None:
            due &= active > 0
        if due.is_cuda or bool(due.any()):  # a look at a GPU's flags would wait for the GPU
            at.state.target.copy_(torch.where(due, at.state.params, at.state.target))
