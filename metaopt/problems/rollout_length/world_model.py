"""R learned models of an environment, batched: next observation, reward and termination."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from metaopt.engine import tree
from metaopt.engine.ranges import check_ranges
from metaopt.environments.stacked import Layer, Moments, StackedAdam, StackedMLP
from metaopt.environments.transitions import Batch, pick, uniform_index

PREFETCH = 32
"""Batches of a fit that are drawn at once."""


@tree.tagged("world_model")
class ModelState(NamedTuple):
    """What R models hold.

    Args:
        params: (R, n).
        moments: Adam's.
        shift, spread: mean and standard deviation of the change of an observation, (R, 1, d).
        low, high: least and largest value of each observation met, (R, 1, d); predictions are
            clamped to them, since an error that feeds on itself has no other bound.
        loss: of the last fit, (R, 3): mean squared error of the standardised change and of the
            reward, cross-entropy of the termination; on held-out transitions where there are any.
    """

    params: Tensor
    moments: Moments
    shift: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor
    loss: Tensor


class ModelViews(NamedTuple):
    """A `ModelState` with views of its parameters, by network; it shares memory with the state."""

    state: ModelState
    layers: list[list[Layer]]
    actions: Tensor


class WorldModel:
    """Deterministic models s' = s + shift + spread * f(s, a), r(s, a) and P(end | s, a).

    Losses are mean squared errors of the standardised change and of the reward and the
    cross-entropy of the termination, added up; actions enter as indicators.

    Args:
        observation_size, actions: sizes d and A.
        widths: hidden layers of the networks of the change and of the termination, or of the one
            network for all three.
        reward_widths: hidden layers of the network of the reward; `None` for one network with
            d + 2 outputs.
        normalise: layer normalisation before each ReLU.
        lr, batch: Adam's learning rate; transitions of a batch.
        steps: most steps of a fit, >= 1.
        held_out: every held_out-th transition, >= 2, is for validation; `None` for no validation.
        patience: evaluations on held-out transitions, `evaluate_every` steps apart, without a new
            lowest loss after which a run's fit stops; each run keeps its best parameters. `None`
            takes all steps. Needs `held_out`.
    """

    def __init__(
        self,
        observation_size: int,
        actions: int,
        widths: Sequence[int] = (48, 32),
        reward_widths: Sequence[int] | None = None,
        *,
        normalise: bool = False,
        lr: float = 1e-3,
        batch: int = 32,
        steps: int = 120,
        held_out: int | None = None,
        patience: int | None = None,
        evaluate_every: int = 20,
    ) -> None:
        d, inputs = observation_size, observation_size + actions
        if reward_widths is None:
            shapes = [(inputs, *widths, d + 2)]
        else:
            shapes = [(inputs, *widths, d), (inputs, *reward_widths, 1), (inputs, *widths, 1)]
        self.networks = [StackedMLP(sizes, normalise) for sizes in shapes]
        self.adam = StackedAdam(lr)
        self.size, self.actions = d, actions
        self.batch, self.steps, self.held_out = batch, steps, held_out
        self.patience, self.evaluate_every = patience, evaluate_every
        check_ranges(
            self, "batch >= 1", "steps >= 1", "evaluate_every >= 1", "held_out >= 2 or null",
            "patience >= 1 or null",
        )  # fmt: skip
        if patience is not None and held_out is None:
            raise ValueError(f"WorldModel with patience={patience} needs held_out; got null.")

    def init(self, runs: int, draw: Generator) -> ModelState:
        """Return R untrained models on the device of `draw`."""
        params = torch.cat([network.init(runs, draw) for network in self.networks], 1)
        one = params.new_ones(runs, 1, self.size)
        zero = torch.zeros_like(one)
        loss = params.new_zeros(runs, 3)
        return ModelState(params, self.adam.init(params), zero, one, -one, one.clone(), loss)

    def views(self, state: ModelState) -> ModelViews:
        """Return the state with its views, for many calls on end."""
        every = torch.arange(self.actions, device=state.params.device)
        return ModelViews(state, self._views(state.params), every)

    def predict(
        self, at: ModelViews, observation: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return next observations (R, B, d), rewards (R, B) and log-odds of ending (R, B)."""
        outputs = self._outputs(at.layers, _inputs(at, observation, action))
        state, d = at.state, self.size
        after = observation + torch.addcmul(state.shift, outputs[..., :d], state.spread)
        after = torch.minimum(torch.maximum(after, state.low), state.high)
        return after, outputs[..., d], outputs[..., d + 1]

    def fit(self, state: ModelState, packed: Tensor, size: Tensor, draw: Generator) -> ModelState:
        """Return models fitted to the first `size` (R, 1) of the transitions (R, n, w) of each run.

        Training continues from the last fit, and the parameters of `state` are changed in place.
        Where runs may stop early, the CPU waits for the device once per evaluation.
        """
        shift, spread, low, high = _statistics(packed, size, self.size)
        state = state._replace(shift=shift, spread=spread, low=low, high=high)
        at, grad = self.views(state), torch.empty_like(state.params)
        slopes, adam = self._views(grad), self.adam.views(state.params, grad, state.moments)
        active: Tensor | None = None
        held = torch.zeros_like(size) if self.held_out is None else size // self.held_out
        stopping = _Stopping(state.params, self.patience)
        if self.held_out is not None:
            tested = uniform_index(held, 8 * self.batch, draw) * self.held_out + self.held_out - 1
            test = pick(packed, torch.minimum(tested, (size - 1).clamp(min=0)))
        for step, (inputs, target) in enumerate(self._batches(at, packed, size - held, draw), 1):
            self.gradient(at, inputs, target, slopes)
            self.adam.step_(adam, active)
            if self.patience is not None and step % self.evaluate_every == 0:
                active = stopping.after(state.params, self.losses(at, test).sum(1, keepdim=True))
                if not bool(active.any()):
                    break
        stopping.restore_(state.params)
        if self.held_out is None:
            return state._replace(loss=self._compare(self._outputs(at.layers, inputs), target))
        return state._replace(loss=self.losses(at, test))

    def _batches(
        self, at: ModelViews, packed: Tensor, size: Tensor, draw: Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of one batch after the other, of what is not held out."""
        for first in range(0, self.steps, PREFETCH):
            count = min(PREFETCH, self.steps - first)
            index = uniform_index(size, count * self.batch, draw)
            if self.held_out is not None:
                index = index + index // (self.held_out - 1)  # leaves every held_out-th one out
            both = self.prepare(at, pick(packed, index))
            shape = (count, self.batch)
            inputs, target = (x.unflatten(1, shape).transpose(0, 1).contiguous() for x in both)
            yield from zip(inputs.unbind(), target.unbind(), strict=True)

    def prepare(self, at: ModelViews, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the networks read of a batch, (R, B, d + A), and what they should say.

        That is the standardised change, the reward and the termination, (R, B, d + 2).
        """
        state = at.state
        change = (batch.next_observation - batch.observation - state.shift) / state.spread
        target = torch.cat([change, torch.stack([batch.reward, batch.terminal], -1)], -1)
        return _inputs(at, batch.observation, batch.action), target

    def losses(self, at: ModelViews, batch: Batch) -> Tensor:
        """Return the three losses of each run, (R, 3)."""
        inputs, target = self.prepare(at, batch)
        return self._compare(self._outputs(at.layers, inputs), target)

    def gradient(
        self, at: ModelViews, inputs: Tensor, target: Tensor, into: Sequence[Sequence[Layer]]
    ) -> None:
        """Write the gradient of each run's summed losses into views.

        Args:
            at: the models.
            inputs, target: as `prepare` returned them.
            into: views of the gradient, one list of layers for each network.
        """
        pairs = zip(self.networks, at.layers, strict=True)
        passes = [network.forward(layers, inputs) for network, layers in pairs]
        slope = _joined([outputs for outputs, _ in passes])
        # The outputs are overwritten by the derivatives of the three losses with respect to them.
        slope[..., -1].sigmoid_()
        count, d = inputs.shape[1], self.size
        slope[..., :d].sub_(target[..., :d]).mul_(2 / (count * d))
        slope[..., d].sub_(target[..., d]).mul_(2 / count)
        slope[..., -1].sub_(target[..., -1]).div_(count)
        parts = slope.split([network.sizes[-1] for network in self.networks], -1)
        for i, (network, (_, tape)) in enumerate(zip(self.networks, passes, strict=True)):
            network.backward(at.layers[i], tape, parts[i].contiguous(), into[i])

    def _compare(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the three losses (R, 3) of what the networks say."""
        square = (outputs[..., :-1] - target[..., :-1]).square()
        logits, ends = outputs[..., -1], target[..., -1]
        entropy = binary_cross_entropy_with_logits(logits, ends, reduction="none")
        change, reward = square[..., : self.size], square[..., self.size]
        return torch.stack([change.mean((1, 2)), reward.mean(1), entropy.mean(1)], 1)

    def _outputs(self, layers: Sequence[Sequence[Layer]], x: Tensor) -> Tensor:
        return _joined([n(views, x) for n, views in zip(self.networks, layers, strict=True)])

    def _views(self, flat: Tensor) -> list[list[Layer]]:
        ends = list(itertools.accumulate(network.size for network in self.networks))
        parts = [flat[:, e - n.size : e] for n, e in zip(self.networks, ends, strict=True)]
        return [n.layers(part) for n, part in zip(self.networks, parts, strict=True)]


def _joined(outputs: list[Tensor]) -> Tensor:
    """Return the outputs of all networks, (R, B, d + 2); the same tensor where it is one."""
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def _inputs(at: ModelViews, observation: Tensor, action: Tensor) -> Tensor:
    """Return observations with an indicator of each action, (R, B, d + A)."""
    return torch.cat([observation, (action.unsqueeze(-1) == at.actions).to(observation)], -1)


class _Stopping:
    """Remembers each run's best parameters and stops those that no longer improve."""

    def __init__(self, params: Tensor, patience: int | None) -> None:
        self.patience = 0 if patience is None else patience
        self.best = params.clone() if patience is not None else params
        self.lowest = params.new_full((len(params), 1), torch.inf)
        self.waited = torch.zeros_like(self.lowest)

    def after(self, params: Tensor, loss: Tensor) -> Tensor:
        """Compare the losses (R, 1) of parameters (R, n); return which runs go on, (R, 1)."""
        better = loss < self.lowest
        self.best = torch.where(better, params, self.best)
        self.lowest = torch.minimum(loss, self.lowest)
        self.waited = torch.where(better, 0.0, self.waited + 1)
        return (self.waited < self.patience).to(params)

    def restore_(self, params: Tensor) -> None:
        """Put each run's best parameters back; without an evaluation, leave them alone."""
        if self.patience:
            params.copy_(torch.where(torch.isfinite(self.lowest), self.best, params))


def _statistics(packed: Tensor, size: Tensor, d: int) -> tuple[Tensor, ...]:
    """Return shift, spread, low and high of the first `size` transitions of each run."""
    before, after = packed[..., :d], packed[..., d : 2 * d]
    there = (torch.arange(packed.shape[1], device=packed.device) < size).unsqueeze(-1)
    count = size.unsqueeze(-1).clamp(min=1)
    change = (after - before).masked_fill(~there, 0.0)
    shift = change.sum(1, keepdim=True) / count
    square = (change - shift).masked_fill(~there, 0.0).square().sum(1, keepdim=True)
    spread = (square / count).sqrt()
    low = torch.minimum(before, after).masked_fill(~there, torch.inf).amin(1, keepdim=True)
    high = torch.maximum(before, after).masked_fill(~there, -torch.inf).amax(1, keepdim=True)
    return shift, torch.where(spread > 1e-6, spread, 1.0), low, high
