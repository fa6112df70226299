"""A world in which the true reward is known: preferences, their noise, and their shift.

A reward model is trained on pairs of an SFT policy's responses, a policy is trained on the reward
model, and both are then judged by the true ("gold") reward, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.engine.ranges import check_ranges
from metaopt.problems.reward_model.data.policy import Policy, Reward, draw, sample

PROMPT, HIGH, LOW = 4, 4, 8


class Pairs(NamedTuple):
    """Preference pairs of R runs.

    Args:
        chosen, rejected: features (R, n, d) of the answer labelled better and of the other.
        wrong: which labels contradict the gold reward, (R, n).
    """

    chosen: Tensor
    rejected: Tensor
    wrong: Tensor


class PreferenceWorld:
    """R batched worlds: prompt x in R^4, response y in R^12, and a known reward of both.

    x ~ N(0, I), and the SFT policy answers y ~ N(K x + b, diag(s^2)), where 4 of the responses'
    coordinates vary much and 8 little. The gold reward is

        gold(x, y) = [ (u + U x) . y - 1/2 sum_j c_j y_j^2 - mean ] / deviation,

    concave, with a slope that depends on the prompt; mean and deviation are exact and make it 0 on
    average with variance 1 under the SFT policy. World i is drawn from generator i alone.

    Args:
        generators: one a world; used here only.
        high, low: standard deviations s of the 4 coordinates that vary much and of the 8 others,
            0 < low <= high. A larger unit makes a network with tanh less linear from the start.
        interaction: size of U in relation to u, >= 0.
        curvature: c_j s_j / |u_j|, > 0 so that there is a best response: it lies
            1 / curvature standard deviations from 0 in each coordinate at x = 0.

    Attributes:
        sft: the SFT policy, `Policy` of (R, ...).
        width: number of features d = 16.

    Raises:
        ValueError: a number out of its range.
    """

    width = PROMPT + HIGH + LOW

    def __init__(
        self,
        generators: Sequence[Generator],
        high: float = 5.0,
        low: float = 3.0,
        interaction: float = 0.9,
        curvature: float = 0.15,
    ) -> None:
        self.high, self.low, self.interaction, self.curvature = high, low, interaction, curvature
        check_ranges(self, "0 < low <= high", "interaction >= 0", "curvature > 0")
        drawn = draw(generators, HIGH + LOW, 2 * PROMPT + 2)
        slope, interact, offset, direct = drawn.split((PROMPT, PROMPT, 1, 1), -1)
        spread = drawn.new_tensor([high] * HIGH + [low] * LOW).expand(len(drawn), -1)
        self.sft = Policy(
            spread[..., None] * slope / math.sqrt(PROMPT),
            spread * offset.squeeze(-1) / 2,
            spread.contiguous(),
        )
        self._direct = direct.squeeze(-1)
        self._interact = interaction * interact / math.sqrt(PROMPT)
        self._curvature = curvature * self._direct.abs() / spread
        self._mean, self._deviation = self._moments()

    def gold(self, x: Tensor) -> Tensor:
        """Return the gold reward (R, ...) of features (R, ..., 16)."""
        flat = x.flatten(1, -2)
        prompt, y = flat.split((PROMPT, HIGH + LOW), -1)
        slope = self._direct[:, None] + prompt @ self._interact.mT
        raw = (slope * y).sum(-1) - (self._curvature[:, None] * y.square()).sum(-1) / 2
        result: Tensor = ((raw - self._mean[:, None]) / self._deviation[:, None]).view(x.shape[:-1])
        return result

    def expected_gold(self, policy: Policy) -> Tensor:
        """Return the expectation of the gold reward under a policy, exactly, (R, ...)."""
        square = policy.offset**2 + policy.slope.square().sum(-1) + policy.deviation**2
        raw = torch.einsum("rj,r...j->r...", self._direct, policy.offset)
        raw = raw + torch.einsum("rjk,r...jk->r...", self._interact, policy.slope)
        raw = raw - torch.einsum("rj,r...j->r...", self._curvature, square) / 2
        mean, deviation = (v.view(-1, *[1] * (raw.ndim - 1)) for v in (self._mean, self._deviation))
        return (raw - mean) / deviation

    def pairs(
        self,
        generators: Sequence[Generator],
        count: int,
        noise: float = 0.0,
        policy: Policy | None = None,
    ) -> Pairs:
        """Return pairs whose better answer is the one with the higher gold reward, but for noise.

        With generators in one state, the answers are the same at every noise, and a higher noise
        makes a superset of labels wrong.

        Args:
            generators: one per run.
            count: number n of pairs >= 1, each with a prompt of its own.
            noise: share of wrong labels, in [0, 1]: round(noise n) labels, chosen uniformly.
            policy: whose responses; `None` for the SFT policy's.

        Raises:
            ValueError: noise outside [0, 1].
        """
        if not 0 <= noise <= 1:
            raise ValueError(f"pairs need noise in [0, 1]; got {noise}.")
        both = sample(policy or self.sft, generators, count, 2)
        order = torch.stack(
            [torch.randperm(count, generator=g, device=g.device) for g in generators]
        )
        # The rank of each pair in one random order, so that a higher noise flips a superset.
        wrong = order.argsort(-1) < round(noise * count)
        gold = self.gold(both)
        first = (gold[..., 0] > gold[..., 1]) ^ wrong
        one, other = both.unbind(2)
        chosen = torch.where(first[..., None], one, other)
        return Pairs(chosen, torch.where(first[..., None], other, one), wrong)

    @torch.no_grad()
    def best_of(
        self,
        reward: Reward,
        generators: Sequence[Generator],
        count: int = 16,
        prompts: int = 512,
        policy: Policy | None = None,
    ) -> Tensor:
        """Return the mean gold reward of the response with the highest reward of `count`, (R,).

        Args:
            reward: (R, B, d) to (R, B).
            generators: one per run; in one state, every reward chooses among the same responses.
            count, prompts: numbers >= 1 of responses to a prompt, and of prompts.
            policy: whose responses; `None` for the SFT policy's.
        """
        x = sample(policy or self.sft, generators, prompts, count)
        best = reward(x.flatten(1, 2)).view(x.shape[:-1]).argmax(-1, keepdim=True)
        return self.gold(x).gather(-1, best).squeeze(-1).mean(-1)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of the raw gold reward under the SFT policy.

        It is constant + v . z + z . H z / 2 in z = (x, e) ~ N(0, I), so its variance is
        |v|^2 + |H|^2 / 2.
        """
        k, b, s = self.sft
        u, interact, c = self._direct, self._interact, self._curvature
        tilt = u - c * b
        from_x = torch.einsum("rjk,rj->rk", k, tilt) + torch.einsum("rjk,rj->rk", interact, b)
        v = torch.cat((from_x, s * tilt), -1)
        xx = interact.mT @ k + k.mT @ interact - k.mT @ (c[..., None] * k)
        xe = (interact - c[..., None] * k).mT * s[:, None]
        ee = -torch.diag_embed(c * s**2)
        hessian = torch.cat((torch.cat((xx, xe), -1), torch.cat((xe.mT, ee), -1)), -2)
        mean = (u * b - c * b**2 / 2).sum(-1) + torch.einsum("rii->r", hessian) / 2
        return mean, (v.square().sum(-1) + hessian.square().sum((-2, -1)) / 2).sqrt()
