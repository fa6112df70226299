"""How good a ranking is."""

from __future__ import annotations

import torch
from torch import Tensor


def dcg(gains: Tensor) -> Tensor:
    """Return sum_r gain_r / log2(r + 1) of gains (..., P) in ranked order, r = 1 for the first."""
    ranks = torch.arange(2, gains.shape[-1] + 2, dtype=gains.dtype, device=gains.device)
    return (gains / ranks.log2()).sum(-1)


def ndcg(scores: Tensor, grades: Tensor, ideal: Tensor, cutoff: int = 20) -> Tensor:
    """Return nDCG@cutoff, DCG of the first by falling score over the ideal DCG, (...), in [0, 1].

    The gain of a document is its grade, as trec_eval has it (not 2^grade - 1). Documents of equal
    score stay in the order that they come in. A query whose ideal DCG is 0 has nDCG 0.

    Args:
        scores: (..., P); -inf for what is not ranked, which comes last and has to have grade 0.
            With a NaN among them, of fine-tuning that diverged, there is no ranking: nDCG is 0.
        grades: (..., P), >= 0.
        ideal: (...), the DCG@cutoff of the best order of all that is relevant.
        cutoff: ranks that count, >= 1.
    """
    scores, grades = torch.broadcast_tensors(scores, grades)
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :cutoff]
    values = dcg(grades.gather(-1, order)) / torch.where(ideal > 0, ideal, torch.inf)
    return values.masked_fill(scores.isnan().any(-1), 0.0)


def reciprocal_rank(scores: Tensor, grades: Tensor) -> Tensor:
    """Return 1 / rank of the first relevant document, (...), 0 without one; its mean is the MRR.

    Args:
        scores: (..., P); -inf for what is not ranked. Equal ones stay in the order they come in.
            With a NaN among them there is no ranking, as in `ndcg`: 0.
        grades: (..., P), relevant where > 0.
    """
    scores, grades = torch.broadcast_tensors(scores, grades)
    relevant = (grades > 0) & (scores > -torch.inf)
    best = torch.where(relevant, ranks(scores), torch.inf).amin(-1)
    return (1 / best).masked_fill(scores.isnan().any(-1), 0.0)


def ranks(scores: Tensor) -> Tensor:
    """Return the rank of each document, 1 for the best, (..., P); ties in the order they come."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(-1) + 1


def reciprocal_rank_fusion(*scores: Tensor) -> Tensor:
    """Return sum_i 1 / (60 + rank_i), the scores (..., P) of several rankings as one.

    Args:
        scores: of each ranking, (..., P); -inf for what is not ranked, which stays so. All are NaN
            where one of a ranking is.

    Reference: Cormack, Clarke and Buettcher, Reciprocal Rank Fusion, SIGIR 2009.
    """
    every = torch.stack(torch.broadcast_tensors(*scores))
    fused = (1.0 / (60 + ranks(every))).sum(0)
    fused = fused.masked_fill((every == -torch.inf).any(0), -torch.inf)
    return fused.masked_fill(every.isnan().any(0).any(-1, keepdim=True), torch.nan)
