"""R learned models of an environment side by side: next observation, reward and termination."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from metaopt.models.stacked import Layer, Moments, StackedAdam, StackedMLP
from metaopt.models.transitions import Batch, pick, uniform_index, unpack


class ModelState(NamedTuple):
    """What R models hold.

    Args:
        params: (R, n).
        moments: Adam's.
        shift, spread: mean and standard deviation of the change of an observation, (R, 1, d).
        low, high: least and largest value of each observation met, (R, 1, d); predictions are
            clamped to them, since an error that feeds on itself has no other bound.
        loss: of the last fit, (R, 3): mean squared error of the standardised change and of the
            reward, cross-entropy of the termination; on held-out rows where there are any.
    """

    params: Tensor
    moments: Moments
    shift: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor
    loss: Tensor


torch.serialization.add_safe_globals([ModelState])


class OpenModel(NamedTuple):
    """A `ModelState` with views of its parameters, by network; it shares memory with the state."""

    state: ModelState
    layers: list[list[Layer]]


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
        lr, batch: Adam's learning rate; rows of a batch.
        steps: most steps of a fit, >= 1.
        held_out: every held_out-th row, >= 2, is for validation; `None` for no validation.
        patience: evaluations on held-out rows, `evaluate_every` steps apart, without a new lowest
            loss after which a run's fit stops; each run keeps its best parameters. `None` takes
            all steps. Needs `held_out`.
        warm: continue from the last fit rather than from new parameters.
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
        warm: bool = True,
    ) -> None:
        if min(batch, steps, evaluate_every) < 1:
            raise ValueError(
                f"WorldModel needs batch, steps and evaluate_every >= 1; got batch={batch}, "
                f"steps={steps}, evaluate_every={evaluate_every}."
            )
        if held_out is not None and held_out < 2:
            raise ValueError(f"WorldModel needs held_out >= 2 or null; got {held_out}.")
        if patience is not None and (patience < 1 or held_out is None):
            raise ValueError(
                f"WorldModel needs patience >= 1 together with held_out, or null; got "
                f"patience={patience}, held_out={held_out}."
            )
        d, inputs = observation_size, observation_size + actions
        if reward_widths is None:
            shapes = [(inputs, *widths, d + 2)]
        else:
            shapes = [(inputs, *widths, d), (inputs, *reward_widths, 1), (inputs, *widths, 1)]
        self.networks = [StackedMLP(sizes, normalise) for sizes in shapes]
        self.adam = StackedAdam(lr)
        self.size, self.actions = d, actions
        self.batch, self.steps, self.held_out = batch, steps, held_out
        self.patience, self.evaluate_every, self.warm = patience, evaluate_every, warm

    def init(self, runs: int, draw: Generator) -> ModelState:
        """Return R untrained models on the device of `draw`."""
        params = torch.cat([network.init(runs, draw) for network in self.networks], 1)
        one = params.new_ones(runs, 1, self.size)
        zero = torch.zeros_like(one)
        loss = params.new_zeros(runs, 3)
        return ModelState(params, self.adam.init(params), zero, one, -one, one.clone(), loss)

    def open(self, state: ModelState) -> OpenModel:
        """Return the state with its views, for many calls on end."""
        return OpenModel(state, self._views(state.params))

    def predict(
        self, at: OpenModel, observation: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return next observations (R, B, d), rewards (R, B) and log-odds of ending (R, B)."""
        found = self._outputs(at.layers, self._inputs(observation, action))
        state, d = at.state, self.size
        after = observation + torch.addcmul(state.shift, found[..., :d], state.spread)
        after = torch.minimum(torch.maximum(after, state.low), state.high)
        return after, found[..., d], found[..., d + 1]

    def fit(self, state: ModelState, rows: Tensor, size: Tensor, draw: Generator) -> ModelState:
        """Return models fitted to the first `size` (R, 1) of the rows (R, n, w) of each run.

        The parameters of `state` are changed in place. Where runs may stop early, the processor
        waits for the device once per evaluation.
        """
        if not self.warm:
            state = self.init(len(rows), draw)
        shift, spread, low, high = _statistics(rows, size, self.size)
        state = state._replace(shift=shift, spread=spread, low=low, high=high)
        at, grad = self.open(state), torch.empty_like(state.params)
        slopes = self._views(grad)
        active: Tensor | None = None
        held = torch.zeros_like(size) if self.held_out is None else size // self.held_out
        stopping = _Stopping(state.params, self.patience)
        if self.held_out is not None:
            tested = uniform_index(held, 8 * self.batch, draw) * self.held_out + self.held_out - 1
            test = unpack(pick(rows, torch.minimum(tested, (size - 1).clamp(min=0))))
        losses = state.loss
        for step in range(1, self.steps + 1):
            index = uniform_index(size - held, self.batch, draw)
            if self.held_out is not None:
                index = index + index // (self.held_out - 1)
            batch = unpack(pick(rows, index))
            losses = self.gradient(at, batch, slopes)
            self.adam.step_(state.params, grad, state.moments, active)
            if self.patience is not None and step % self.evaluate_every == 0:
                active = stopping.after(state.params, self.losses(at, test).sum(1, keepdim=True))
                if not bool(active.any()):
                    break
        stopping.restore_(state.params)
        if self.held_out is not None:
            losses = self.losses(at, test)
        return state._replace(loss=losses)

    def losses(self, at: OpenModel, batch: Batch) -> Tensor:
        """Return the three losses of each run, (R, 3)."""
        found = self._outputs(at.layers, self._inputs(batch.observation, batch.action))
        return self._compare(at.state, found, batch)[0]

    def gradient(self, at: OpenModel, batch: Batch, into: Sequence[Sequence[Layer]]) -> Tensor:
        """Write the gradient of each run's summed losses into views; return the losses (R, 3)."""
        x, found, kept = self._inputs(batch.observation, batch.action), [], []
        for network, layers in zip(self.networks, at.layers, strict=True):
            out, forward = network.forward(layers, x)
            found.append(out)
            kept.append(forward)
        losses, slope = self._compare(at.state, torch.cat(found, -1), batch)
        parts = slope.split([out.shape[-1] for out in found], -1)
        for i, network in enumerate(self.networks):
            network.backward(at.layers[i], kept[i], parts[i].contiguous(), into[i])
        return losses

    def _compare(self, state: ModelState, found: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the three losses (R, 3) and the slope of their sum, (R, B, d + 2)."""
        d, count = self.size, found.shape[1]
        change = (batch.next_observation - batch.observation - state.shift) / state.spread
        goal = torch.cat([change, batch.reward.unsqueeze(-1)], -1)
        error = found[..., :-1] - goal
        square = error.square()
        logit, ends = found[..., -1], batch.terminal
        entropy = binary_cross_entropy_with_logits(logit, ends, reduction="none")
        parts = [square[..., :d].mean((1, 2)), square[..., d].mean(1), entropy.mean(1)]
        error[..., :d] *= 2 / (count * d)
        error[..., d] *= 2 / count
        ended = ((torch.sigmoid(logit) - ends) / count).unsqueeze(-1)
        return torch.stack(parts, 1), torch.cat([error, ended], -1)

    def _inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        every = torch.arange(self.actions, device=action.device)
        return torch.cat([observation, (action.unsqueeze(-1) == every).to(observation)], -1)

    def _outputs(self, layers: Sequence[Sequence[Layer]], x: Tensor) -> Tensor:
        found = [n(views, x) for n, views in zip(self.networks, layers, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, -1)

    def _views(self, flat: Tensor) -> list[list[Layer]]:
        ends = list(itertools.accumulate(network.size for network in self.networks))
        parts = [flat[:, e - n.size : e] for n, e in zip(self.networks, ends, strict=True)]
        return [n.layers(part) for n, part in zip(self.networks, parts, strict=True)]


class _Stopping:
    """Remembers each run's best parameters and stops those that no longer improve."""

    def __init__(self, params: Tensor, patience: int | None) -> None:
        self.patience = 0 if patience is None else patience
        self.best = params.clone() if patience is not None else params
        self.lowest = params.new_full((len(params), 1), torch.inf)
        self.waited = torch.zeros_like(self.lowest)

    def after(self, params: Tensor, loss: Tensor) -> Tensor:
        """Take the losses (R, 1) of parameters (R, n); return which runs go on, (R, 1)."""
        better = loss < self.lowest
        self.best = torch.where(better, params, self.best)
        self.lowest = torch.minimum(loss, self.lowest)
        self.waited = torch.where(better, 0.0, self.waited + 1)
        return (self.waited < self.patience).to(params)

    def restore_(self, params: Tensor) -> None:
        """Put each run's best parameters back; without an evaluation, leave them alone."""
        if self.patience:
            met = torch.isfinite(self.lowest)
            params.copy_(torch.where(met, self.best, params))


def _statistics(rows: Tensor, size: Tensor, d: int) -> tuple[Tensor, ...]:
    """Return shift, spread, low and high of the first `size` rows of each run."""
    before, after = rows[..., :d], rows[..., d : 2 * d]
    there = (torch.arange(rows.shape[1], device=rows.device) < size).unsqueeze(-1)
    count = size.unsqueeze(-1).clamp(min=1)
    change = (after - before).masked_fill(~there, 0.0)
    shift = change.sum(1, keepdim=True) / count
    square = (change - shift).masked_fill(~there, 0.0).square().sum(1, keepdim=True)
    spread = (square / count).sqrt()
    low = torch.minimum(before, after).masked_fill(~there, torch.inf).amin(1, keepdim=True)
    high = torch.maximum(before, after).masked_fill(~there, -torch.inf).amax(1, keepdim=True)
    spread = torch.where(spread > 1e-6, spread, 1.0)
    return shift, spread, low, high
