"""Batches of linear-Gaussian policies, and their optimisation against a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

Reward = Callable[[Tensor], Tensor]
"""Features (R, B, prompt + response) to rewards (R, B), run i's by model i."""


class Policy(NamedTuple):
    """Responses y = slope x + offset + deviation * e to a prompt x, with e ~ N(0, I).

    Args:
        slope: (R, ..., response, prompt).
        offset, deviation: (R, ..., response); deviations are > 0.
    """

    slope: Tensor
    offset: Tensor
    deviation: Tensor

    def at(self, index: int) -> Policy:
        """Return policy `index` of the axis behind R."""
        return Policy(*(part[:, index] for part in self))

    def respond(self, prompts: Tensor, noise: Tensor) -> Tensor:
        """Return responses (R, ..., B, response).

        Args:
            prompts: x, (R, ..., B, prompt).
            noise: e, (R, ..., B, response).
        """
        mean = prompts @ self.slope.mT + self.offset.unsqueeze(-2)
        return mean + self.deviation.unsqueeze(-2) * noise


def draw(generators: Sequence[Generator], *shape: int) -> Tensor:
    """Return standard normal numbers (R, *shape), those of run i drawn from generator i."""
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])


def sample(policy: Policy, generators: Sequence[Generator], prompts: int, count: int) -> Tensor:
    """Return `count` responses to each of `prompts` prompts, (R, prompts, count, d).

    The last axis holds the prompt x ~ N(0, I), then the response.

    Args:
        policy: policies without a further axis.
        generators: one per run.
        prompts, count: numbers >= 1.

    Raises:
        ValueError: another number of generators than of policies, or a number below 1.
    """
    if min(prompts, count) < 1 or len(generators) != len(policy.offset):
        raise ValueError(
            f"sampling needs prompts >= 1, count >= 1 and a generator for each of "
            f"{len(policy.offset)} policies; got {prompts}, {count} and {len(generators)}."
        )
    width, inputs = policy.slope.shape[-2:]
    x = draw(generators, prompts, inputs)[:, :, None].expand(-1, -1, count, -1)
    x = x.reshape(len(x), -1, inputs)
    y = policy.respond(x, draw(generators, prompts * count, width))
    return torch.cat((x, y), -1).view(len(x), prompts, count, -1)


def kl(policy: Policy, reference: Policy) -> Tensor:
    """Return E_x KL(policy(. | x) || reference(. | x)) in nats for x ~ N(0, I), exactly, (R, ...).

    With s the reference's deviations, and a, b, t the differences of slope and offset and the ratio
    of deviations of response j, divided by s_j: 1/2 sum_j t_j^2 - 1 - 2 log t_j + |a_j|^2 + b_j^2.
    """
    s = reference.deviation
    a = (policy.slope - reference.slope) / s.unsqueeze(-1)
    b, ratio = (policy.offset - reference.offset) / s, policy.deviation / s
    terms = ratio.square() - 1 - 2 * ratio.log() + a.square().sum(-1) + b.square()
    return terms.sum(-1) / 2


def optimise(
    reward: Reward,
    reference: Policy,
    generators: Sequence[Generator],
    betas: Sequence[float] = (0.1,),
    steps: int = 200,
    batch: int = 128,
    lr: float = 0.05,
) -> Policy:
    """Return policies (R, S, ...) that maximise a standardised reward minus beta KL, one a beta.

    E[(r(x, y) - mean) / deviation] - beta KL(policy || reference), where mean and deviation are the
    reward's under the reference policy, so that a reward's scale does not change how far it is
    pushed. The gradient goes through the responses (reparameterised) and the KL is exact. Adam with
    a cosine schedule; all betas of a run see the same noise.

    Args:
        reward: differentiable; (R, B, prompt + response) to (R, B).
        reference: where policies start and what the KL is measured from.
        generators: one per run.
        betas: coefficients of the KL, each > 0.
        steps, batch: numbers >= 1 of updates and of prompts in each.
        lr: first step size, in units of the reference's deviations, > 0.

    Raises:
        ValueError: one of these is not met, or a reward that is constant under the reference.
        FloatingPointError: a policy became NaN or infinite.
    """
    if min(steps, batch) < 1 or not lr > 0 or not betas or not min(betas) > 0:
        raise ValueError(
            f"a policy needs steps >= 1, batch >= 1, lr > 0 and betas > 0; got {steps}, {batch}, "
            f"{lr} and {list(betas)}."
        )
    (runs, width, inputs), sweep = reference.slope.shape, len(betas)
    # Of the reference, once and without a gradient: moments that moved would rescale the goal.
    mean, deviation = _moments(reward, reference, generators)
    start = Policy(*(part[:, None] for part in reference))
    # In units of the reference's deviations, so that one step size fits all coordinates.
    scale = reference.deviation[:, None]
    a = scale.new_zeros(runs, sweep, width, inputs, requires_grad=True)
    b, log_ratio = (scale.new_zeros(runs, sweep, width, requires_grad=True) for _ in range(2))
    adam = torch.optim.Adam([a, b, log_ratio], lr=lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    weight = scale.new_tensor(betas)
    # Drawn before the loop: how many betas there are does not change what a run sees.
    noise = draw(generators, steps, batch, inputs + width)

    def current() -> Policy:
        slope = start.slope + scale[..., None] * a
        return Policy(slope, start.offset + scale * b, scale * log_ratio.exp())

    for step in range(steps):
        x, e = noise[:, step, None].expand(-1, sweep, -1, -1).split((inputs, width), -1)
        policy = current()
        both = torch.cat((x, policy.respond(x, e)), -1).reshape(runs, sweep * batch, -1)
        gain = ((reward(both) - mean) / deviation).view(runs, sweep, batch).mean(-1)
        loss = (weight * kl(policy, start) - gain).sum()
        adam.zero_grad()
        # Not of the reward's own parameters, which may ask for gradients too.
        loss.backward(inputs=[a, b, log_ratio])
        adam.step()
        schedule.step()
    policy = Policy(*(part.detach() for part in current()))
    if not all(bool(part.isfinite().all()) for part in policy):
        raise FloatingPointError(
            f"a policy became NaN or infinite: the reward does, or lr={lr} is too large."
        )
    return policy


def at_kl(divergence: Tensor, gold: Tensor, where: float) -> Tensor:
    """Return the gold reward at a KL of `where` nats, (R,), linear in the root of the KL.

    Policies of one beta lie at different KL for different rewards: a reward with a wider spread is
    pushed further. Gold rewards are therefore compared at one KL. NaN where a run's policies do not
    reach `where` or all lie beyond it.

    Args:
        divergence, gold: of S >= 2 policies a run, in any order, (R, S); include KL 0.
        where: nats, >= 0.

    References: Gao, Schulman and Hilton, Scaling laws for reward model overoptimization, ICML 2023
    (gold rewards as functions of the root of the KL).
    """
    if divergence.ndim != 2 or divergence.shape != gold.shape or divergence.shape[1] < 2:
        raise ValueError(
            f"at_kl needs divergence and gold (R, S) with S >= 2; got {tuple(divergence.shape)} "
            f"and {tuple(gold.shape)}."
        )
    root, order = divergence.clamp(min=0).sqrt().sort(-1)
    gold = gold.gather(-1, order)
    target = root.new_full((len(root), 1), where**0.5)
    above = torch.searchsorted(root, target).clamp(1, root.shape[-1] - 1)
    (x0, y0), (x1, y1) = ((root.gather(-1, at), gold.gather(-1, at)) for at in (above - 1, above))
    share = (target - x0) / (x1 - x0).clamp(min=1e-12)  # two policies may have one KL
    inside = (target >= root[:, :1]) & (target <= root[:, -1:])
    return torch.where(inside, y0 + share * (y1 - y0), torch.nan).squeeze(-1)


@torch.no_grad()
def _moments(
    reward: Reward, policy: Policy, generators: Sequence[Generator], count: int = 2048
) -> tuple[Tensor, Tensor]:
    rewards = reward(sample(policy, generators, count, 1).flatten(1, 2))
    deviation, mean = torch.std_mean(rewards, -1, keepdim=True)
    if not bool((deviation > 0).all()):
        runs = (~(deviation > 0)).flatten().nonzero().flatten().tolist()
        raise ValueError(f"the reward of runs {runs} is constant, so no policy maximises it.")
    return mean, deviation
