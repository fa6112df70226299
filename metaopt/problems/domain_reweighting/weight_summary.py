"""Weights and hypergradients by domain, as a run logs and reports them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metaopt.engine.gradient_problem import GradientState
from metaopt.engine.protocols import Tree
from metaopt.problems.domain_reweighting.diagnostics import signal
from metaopt.problems.domain_reweighting.weights import by_domain

if TYPE_CHECKING:
    from metaopt.problems.domain_reweighting.problem import DomainReweighting


@torch.no_grad()
def domain_weights(
    problem: DomainReweighting, outer: Tree, inner: GradientState
) -> tuple[Tensor, Tensor]:
    """Return the mean weight of each domain, (K,), and the effective share of the examples.

    Of weights that depend on losses or gradients: over the same few examples of each domain.
    """
    rows, values = problem.sampler.order, torch.zeros(0, device=problem.device)
    if problem.weights.reads != "phi":
        rows = problem.sampler.reported()
    tensors = inner.params | inner.buffers
    if problem.weights.reads == "losses":
        values = problem.task.row_losses(tensors, rows, train=False)
    elif problem.weights.reads == "gradients":
        meta = torch.arange(min(problem.task.meta_rows, 256))
        values = problem.aligned(inner.params, inner.buffers, rows, meta, problem.seed)
    weights = problem.weigh(outer, rows, values)
    weights = weights.flatten(0, -2).mean(0) if weights.ndim > 1 else weights
    domain = problem.domain[rows.to(problem.device)]
    first, second = by_domain(weights, domain), by_domain(weights**2, domain)
    share = problem.sampler.share.to(first)
    return first, (share @ first) ** 2 / (share @ second).clamp(min=1e-30)


@torch.no_grad()
def weight_summary(
    problem: DomainReweighting, outer: Tree, inner: GradientState
) -> dict[str, Tensor]:
    """Return weights and hypergradients by domain, and the effective share of the examples.

    The hypergradients' mean and z, (K,) each, are there once one was not zero, with the number
    of outer steps that they are taken over.
    """
    weight, share = domain_weights(problem, outer, inner)
    summary = {"weight": weight.cpu(), "effective_share": share.cpu()}
    moments = inner.state["moments"]
    if moments["squares"].any():
        mean, z = signal(moments)
        summary |= {"hypergradient": mean.cpu(), "z": z.cpu(), "count": moments["count"].cpu()}
    return summary
