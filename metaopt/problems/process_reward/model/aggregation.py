"""Scores of steps as one score of their chain, and the losses of both levels, in log-odds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

AGGREGATES = ("mean", "sum", "last", "min", "product")
LOSSES = ("mse", "bce")

_NEVER = -1e30


def aggregate(logits: Tensor, mask: Tensor, how: str = "mean") -> Tensor:
    """Return the log-odds of each chain from those of its steps.

    mean and sum: of z_i = log(p_i / (1 - p_i)). last, min: of the last, of the worst step.
    product: the log-odds of P = p_1 ... p_n, by log(1/P - 1) = logaddexp over the steps, which
    neither overflows nor loses a P next to 0 or 1.

    Args:
        logits: z, (..., B, S); what the mask excludes is not read.
        mask: which steps there are, (B, S), at least one in every row.
        how: one of `AGGREGATES`.

    Returns:
        Log-odds (..., B); larger is better.

    Raises:
        ValueError: an unknown `how`, or a mask of another shape.

    References: mean is what the code of DreamPRM (Cao et al., NeurIPS 2025) computes and sum what
    its paper writes; min and product are of Lightman et al., ICLR 2024.
    """
    if how not in AGGREGATES:
        raise ValueError(f"how must be one of {', '.join(AGGREGATES)}; got {how!r}.")
    _check(logits, mask, "mask")
    if how == "last":
        places = torch.arange(mask.shape[-1], device=mask.device)
        at = (places * mask).argmax(-1).expand(logits.shape[:-1])
        return logits.gather(-1, at[..., None]).squeeze(-1)
    if how == "min":
        return logits.masked_fill(~mask, torch.inf).amin(-1)
    if how == "product":
        return _product(logits, mask)
    total = logits.masked_fill(~mask, 0).sum(-1)
    return total if how == "sum" else total / mask.sum(-1)


def step_loss(logits: Tensor, labels: Tensor, known: Tensor, kind: str = "mse") -> Tensor:
    """Return each chain's training loss: the mean over its labelled steps.

    mse: (sigma(z) - p)^2.  bce: -p log sigma(z) - (1 - p) log sigma(-z), in nats.

    Args:
        logits: z, (..., B, S).
        labels: p in [0, 1], (B, S); what `known` excludes is not read.
        known: which steps have a label, (B, S). A chain without one has the loss 0.
        kind: mse or bce.

    Raises:
        ValueError: an unknown kind, or shapes that differ.
    """
    _check(logits, known, "known")
    _check(logits, labels, "labels")
    losses = _loss(logits.masked_fill(~known, 0), labels.masked_fill(~known, 0), kind)
    return losses.masked_fill(~known, 0).sum(-1) / known.sum(-1).clamp(min=1)


def outcome_loss(score: Tensor, outcome: Tensor, kind: str = "mse") -> Tensor:
    """Return each chain's meta-loss: mse (sigma(A) - r)^2, or bce in nats.

    Args:
        score: log-odds A of the chains, (..., B), from `aggregate`.
        outcome: r, 1 where the final answer is right and 0 where it is not, (B,).
        kind: mse or bce.

    Raises:
        ValueError: an unknown kind, or shapes that differ.
    """
    if outcome.shape != score.shape[-outcome.ndim :]:
        raise ValueError(
            f"outcome must have the last axis of score, {tuple(score.shape)}; got "
            f"{tuple(outcome.shape)}."
        )
    return _loss(score, outcome, kind)


def _loss(logits: Tensor, target: Tensor, kind: str) -> Tensor:
    if kind not in LOSSES:
        raise ValueError(f"the kind of loss must be one of {', '.join(LOSSES)}; got {kind!r}.")
    target = target.to(logits.dtype).expand_as(logits)
    if kind == "bce":
        return binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (logits.sigmoid() - target) ** 2


def _product(logits: Tensor, mask: Tensor) -> Tensor:
    """1/P_k - 1 = (1/P_{k-1} - 1) (1 + e^{-z_k}) + e^{-z_k}, in logarithms."""
    z = logits.masked_fill(~mask, -_NEVER)
    odds = torch.full_like(z[..., 0], _NEVER)
    for k in range(z.shape[-1]):
        odds = torch.logaddexp(odds + softplus(-z[..., k]), -z[..., k])
    return -odds


def _check(logits: Tensor, other: Tensor, name: str) -> None:
    if other.shape != logits.shape[-2:]:
        raise ValueError(
            f"{name} must have the last two axes of logits, {tuple(logits.shape)}; got "
            f"{tuple(other.shape)}."
        )
