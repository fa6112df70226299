"""Chains as tensors, and what a process reward model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Generator, Tensor

from metaopt.problems.process_reward.data.formats.chain import Chain, refuse

if TYPE_CHECKING:
    from metaopt.problems.process_reward.model.images import Images


@dataclass(frozen=True)
class Steps:
    """Encoded chains: tensors with a leading axis n, and tables that all chains share.

    Args:
        mask: which steps there are, (n, S), S the most steps of a chain.
        ends: where each step is read, (n, S): a position in `ids`, or a row of `table`; 0 where
            the mask is False.
        cut: number of steps that `max_length` left out of each chain, (n,); they are False in the
            mask, at its end.
        ids: token ids, (n, T), padded on the right.
        lengths: number of tokens, (n,).
        pictures: rows of `images`, (n, I), -1 for none.
        table: features of all steps, shared.
        images: all images, shared.
    """

    mask: Tensor
    ends: Tensor
    cut: Tensor
    ids: Tensor | None = None
    lengths: Tensor | None = None
    pictures: Tensor | None = None
    table: Tensor | None = None
    images: Images | None = None

    def __len__(self) -> int:
        return len(self.mask)

    def take(self, rows: Tensor) -> Steps:
        """Return the chains of the indices `rows`, tokens trimmed to the longest; S stays."""
        rows_of: dict[str, Any] = {
            f.name: value[rows]
            for f in fields(self)
            if f.name != "table" and isinstance(value := getattr(self, f.name), Tensor)
        }
        batch = replace(self, **rows_of)
        if batch.ids is None or batch.lengths is None or not len(batch):
            return batch
        return replace(batch, ids=batch.ids[:, : int(batch.lengths.max())])

    def to(self, device: torch.device | str) -> Steps:
        """Return the same chains on a device; images are read to it batch by batch."""
        moved: dict[str, Any] = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


class StepScorer(Protocol):
    """A process reward model: the log-odds that a chain is right up to and with each step."""

    def encode(self, chains: Sequence[Chain]) -> Steps:
        """Return chains as tensors; done once.

        Raises:
            ValueError: chains without steps, or no chain.
        """
        ...

    def init(self, generator: Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what is trained and the buffers; what is frozen stays in the scorer."""
        ...

    def logits(self, tensors: Mapping[str, Tensor], steps: Steps, train: bool) -> Tensor:
        """Return the log-odds (B, S) of each step; of no meaning where the mask is False.

        Args:
            tensors: params and buffers.
            steps: a batch, from `Steps.take`.
            train: whether dropout is on; its masks are drawn from torch's global generator.
        """
        ...


ScorerFactory = Callable[[Sequence[Chain]], StepScorer]
"""Makes a scorer for training chains, whose text alone a vocabulary or features are fitted on."""


@torch.no_grad()
def scores(
    scorer: StepScorer, tensors: Mapping[str, Tensor], steps: Steps, batch: int = 256
) -> Tensor:
    """Return the log-odds (n, S) of all chains without dropout, long chains next to long ones.

    Args:
        scorer, tensors: the model.
        steps: from `encode`.
        batch: chains at a time, >= 1.
    """
    length = steps.mask.sum(1) if steps.lengths is None else steps.lengths
    order = length.argsort(stable=True)  # a batch is as wide as its longest chain
    parts = [scorer.logits(tensors, steps.take(rows), False) for rows in order.split(batch)]
    logits = torch.cat(parts)
    return torch.empty_like(logits).index_copy_(0, order, logits)


def check_steps(chains: Sequence[Chain]) -> None:
    """Raise a `ValueError` if there is no chain, or one without steps."""
    if not chains:
        raise ValueError("a process reward model needs chains with steps; got none.")
    refuse("a process reward model", (not chain.steps for chain in chains), "steps")
