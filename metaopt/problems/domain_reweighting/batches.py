"""Batches of training examples and of meta examples."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from metaopt.problems.domain_reweighting.task import ReweightingTask, Stratified

Sampling = Literal["domains", "rows"]

REPORTED_ROWS = 64
"""Rows of each domain on which weights that depend on losses or gradients are reported."""


class Rows(NamedTuple):
    """A batch: indices of training examples or of meta examples.

    Args:
        rows: (B,).
        meta: whether they are meta examples.
        weights: what each counts, (B,), or `None` where phi says so.
    """

    rows: Tensor
    meta: bool = False
    weights: Tensor | None = None


class Sampler:
    """Draws examples of a task with replacement: a batch is a function of its generator alone.

    Args:
        task: whose examples.
        sampling: domains, each equally often (count / K rows of a batch, and who has one more is
            random); or rows, each row equally often.

    Attributes:
        order: training examples, domain by domain.
        share: of the examples drawn, those of each domain, (K,).
    """

    def __init__(self, task: ReweightingTask, sampling: Sampling) -> None:
        self.sampling = sampling
        kinds = task.meta_kinds if isinstance(task, Stratified) else None
        self._meta = torch.arange(task.meta_rows) if kinds is None else kinds.argsort(stable=True)
        self._stratified = kinds is not None
        self.order = task.domain.argsort(stable=True)
        self._sizes = torch.bincount(task.domain)
        self._starts = self._sizes.cumsum(0) - self._sizes
        even = torch.ones_like(self._sizes, dtype=torch.float32)
        sizes = even if sampling == "domains" else self._sizes.float()
        self.share = sizes / sizes.sum()

    def rows(self, draw: Generator, count: int) -> Rows:
        """Return training examples."""
        if self.sampling == "rows":
            return Rows(torch.randint(len(self.order), (count,), generator=draw))
        domains = len(self._sizes)
        # In turn, not drawn each: with few examples a batch would else miss domains.
        domain = torch.randperm(domains, generator=draw)[torch.arange(count) % domains]
        within = torch.rand(count, generator=draw, dtype=torch.float64) * self._sizes[domain]
        return Rows(self.order[self._starts[domain] + within.long()])

    def among(self, kept: Tensor, draw: Generator, count: int) -> Rows:
        """Return some of given training examples, each equally likely, with weights 1."""
        chosen = kept[torch.randint(len(kept), (count,), generator=draw)]
        return Rows(chosen, weights=torch.ones(count))

    def even(self, draw: Generator, count: int) -> Rows:
        """Return the same examples with weights 1."""
        return self.rows(draw, count)._replace(weights=torch.ones(count))

    def meta(self, draw: Generator, count: int) -> Rows:
        """Return meta examples, each equally likely; of each kind its share, up to one example."""
        if not self._stratified:
            return Rows(torch.randint(len(self._meta), (count,), generator=draw), meta=True)
        # Stratified: one draw in each of `count` equal parts of the examples by kind.
        place = (
            torch.arange(count) + torch.rand(count, generator=draw, dtype=torch.float64)
        ) / count
        return Rows(self._meta[(place * len(self._meta)).long()], meta=True)

    def reported(self) -> Tensor:
        """Return at most `REPORTED_ROWS` examples of each domain, the same every time."""
        rank = torch.arange(len(self.order)) - self._starts.repeat_interleave(self._sizes)
        return self.order[rank < REPORTED_ROWS]
