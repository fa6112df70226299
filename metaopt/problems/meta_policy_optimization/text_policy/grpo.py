"""Group relative policy optimisation: advantages within groups, and the clipped surrogate.

Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models,
arXiv 2402.03300, 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.engine.ranges import check_ranges

EPSILON = 1e-4
"""Added to a group's standard deviation."""


@dataclass(frozen=True)
class GRPO:
    """How the loss is made, and how many steps are taken on it.

    Args:
        clip: c > 0 of the clipped surrogate.
        kl_coefficient: beta >= 0 of the KL divergence from the first policy.
        normalize: divide advantages by their group's deviation.
        epochs: steps on the responses of an update, >= 1.

    Raises:
        ValueError: an argument outside its range.
    """

    clip: float = 0.2
    kl_coefficient: float = 0.04
    normalize: bool = True
    epochs: int = 1

    def __post_init__(self) -> None:
        check_ranges(self, "clip > 0", "kl_coefficient >= 0", "epochs >= 1")


class Advantages(NamedTuple):
    """What each response of some groups is worth beside the others of its group.

    Args:
        values: A, (groups, G); 0 where `trained` is false.
        scored: whether a response has a score, (groups, G).
        trained: whether it has a gradient: it has a score, and its group has a spread of scores.
    """

    values: Tensor
    scored: Tensor
    trained: Tensor

    @property
    def flat_groups(self) -> int:
        """Groups with fewer than two scores, or with equal ones."""
        return int((~self.trained.any(1)).sum())


def group_advantages(rewards: Tensor, normalize: bool) -> Advantages:
    """Return A = r - mean, or (r - mean) / (sd + 1e-4), over the scores of each group.

    Args:
        rewards: (groups, G); NaN without a score, which leaves its group.
        normalize: divide by the group's standard deviation (of n - 1), as GRPO was published.
            Without it the gradient is (n - 1) / n times that of the mean reward; with it, a group
            counts more the less its rewards differ.
    """
    scored = ~rewards.isnan()
    count = scored.sum(1, keepdim=True)
    known = torch.where(scored, rewards, 0.0)
    centred = torch.where(scored, rewards - known.sum(1, keepdim=True) / count.clamp(min=1), 0.0)
    lowest = torch.where(scored, rewards, torch.inf).amin(1, keepdim=True)
    highest = torch.where(scored, rewards, -torch.inf).amax(1, keepdim=True)
    # By the scores: the mean of equal numbers may differ from them in its last digit, and divided
    # by a deviation as small it would be an advantage.
    trained = scored & (highest > lowest)
    if normalize:
        deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        centred = centred / (deviation + EPSILON)
    return Advantages(torch.where(trained, centred, 0.0), scored, trained)


class Tokens(NamedTuple):
    """Log-probabilities of the tokens of responses, (B, T) each.

    Args:
        log_p: under the policy that is trained, differentiable.
        old: under the policy that wrote them.
        reference: under the first policy.
        mask: 1 for a token of the response, 0 behind its end.
    """

    log_p: Tensor
    old: Tensor
    reference: Tensor
    mask: Tensor


def divergence(log_p: Tensor, reference: Tensor) -> Tensor:
    """Return exp(d) - 1 - d with d = log pi_0 - log pi, (B, T).

    Its mean over samples of pi is KL(pi || pi_0), and it is never negative (Schulman, Approximating
    KL divergence, 2020).
    """
    d = reference - log_p
    return d.expm1() - d


def surrogate(tokens: Tokens, advantages: Advantages, clip: float, kl_coefficient: float) -> Tensor:
    """Return the loss, a mean over the tokens of all responses that have a score.

        loss = - mean min(rho A, clip(rho, 1 - c, 1 + c) A) + beta mean (exp(d) - 1 - d)

    with rho = exp(log pi - log pi_old) and d = log pi_0 - log pi. A group without a spread of
    scores counts in the mean, with 0, so that the gradient does not grow with what is left out; a
    response without a score counts nowhere.

    Args:
        tokens: their log-probabilities, (B, T), group by group.
        advantages: of B responses.
        clip: c.
        kl_coefficient: beta.
    """
    trained = (tokens.mask * advantages.trained.reshape(-1, 1)).bool()
    # Before anything that may overflow: the gradient of an infinite number times 0 is NaN.
    log_p, old, reference = (torch.where(trained, each, 0.0) for each in tokens[:3])
    ratio = (log_p - old).exp()
    gain = torch.where(trained, advantages.values.reshape(-1, 1), 0.0)
    per_token = -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    if kl_coefficient:
        per_token = per_token + kl_coefficient * divergence(log_p, reference)
    scored = tokens.mask * advantages.scored.reshape(-1, 1)
    return per_token.sum() / scored.sum().clamp(min=1)
