"""Diagnostics of weights: signal-to-noise of hypergradients, effective sample size, alignments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from metaopt.engine import tree
from metaopt.engine.protocols import Tree
from metaopt.engine.random import replay


def zero_moments(count: int, device: torch.device) -> Tree:
    """Return the moments of a hypergradient by domain before the first one."""
    zeros = torch.zeros(count, dtype=torch.float64, device=device)
    return {"count": zeros.new_zeros(()), "sum": zeros, "squares": zeros.clone()}


def update_moments_(moments: Tree, slopes: Tensor) -> None:
    """Add one hypergradient (K,) to the moments, in place."""
    slopes = slopes.to(moments["sum"])
    moments["count"] += 1
    moments["sum"] += slopes
    moments["squares"] += slopes**2


def signal(moments: Tree) -> tuple[Tensor, Tensor]:
    """Return mean and signal-to-noise z of the hypergradient by domain, (K,) each.

    z = mean / (sd / sqrt(T)) over the T outer steps, as if they were independent; 0 before there
    are two. A domain whose |z| is small has a weight that its noise has walked to.
    """
    count = moments["count"]
    mean = moments["sum"] / count.clamp(min=1)
    variance = (moments["squares"] / count.clamp(min=1) - mean**2).clamp(min=0)
    variance = variance * count / (count - 1).clamp(min=1)
    error = torch.sqrt(variance / count.clamp(min=1))
    known = (count > 1) & (error > 0)
    return mean, torch.where(known, mean / torch.where(known, error, 1.0), 0.0)


def effective_share(weights: Tensor) -> Tensor:
    """Return (sum w)^2 / (n sum w^2) over the last axis, in (0, 1]: Kish's effective sample size
    as a share of the n entries."""
    total = weights.sum(-1) ** 2
    return total / (weights.shape[-1] * (weights**2).sum(-1)).clamp(min=1e-30)


def perplexity(weights: Tensor) -> Tensor:
    """Return exp(entropy) of weights (K,) as a distribution: how many domains they amount to."""
    p = weights / weights.sum(-1, keepdim=True)
    return torch.exp(-torch.xlogy(p, p).sum(-1))


def random_weights(count: int, effective: float, generator: Generator) -> Tensor:
    """Return random weights (K,) of mean 1 and of a given perplexity: exp(s z), z normal.

    Args:
        count: K, >= 1.
        effective: the perplexity, in [1, K]; s is computed by bisection.

    Raises:
        ValueError: a perplexity outside [1, K].
    """
    if not 1 <= effective <= count + 1e-9:
        raise ValueError(f"effective_domains must be in [1, {count}]; got {effective}.")
    z = torch.randn(count, generator=generator, dtype=torch.float64)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        even = perplexity(torch.softmax(z * middle / (1 - middle), -1)) > effective
        low, high = (middle, high) if even else (low, middle)
    return torch.softmax(z * low / (1 - low), -1) * count


def alignments(
    meta_loss: Callable[[Tree], Tensor],
    row_losses: Callable[[Tree], Tensor],
    params: Tree,
    key: int,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return <dF/dtheta, dl_i/dtheta> of each example, (B,), by a gradient and two forward passes.

    (l_i(theta + e v) - l_i(theta - e v)) / 2e with v = dF/dtheta: nothing is differentiated
    through the examples. Both passes see the dropout masks of one key.

    Args:
        meta_loss: theta -> F, a scalar.
        row_losses: theta -> l, (B,).
        params: theta.
        key: seeds the masks of both losses.
        compute_dtype: see `metaopt.engine.tree.radius`.
    """
    leaves = tree.leaves(params)
    with torch.enable_grad(), replay(key):
        value = meta_loss(leaves)
        grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    v = tree.like(params, grads)
    radius = tree.radius(params, v, None, compute_dtype)
    ends = []
    with torch.no_grad():
        for sign in (1.0, -1.0):
            with replay(key):
                ends.append(row_losses(tree.add(params, v, sign * radius)))
    return (ends[0] - ends[1]) / (2 * radius)
