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
        grades: (..., P), >= 0.
        ideal: (...), the DCG@cutoff of the best order of all that is relevant.
        cutoff: ranks that count, >= 1.
    """
    scores, grades = torch.broadcast_tensors(scores, grades)
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :cutoff]
    return dcg(grades.gather(-1, order)) / torch.where(ideal > 0, ideal, torch.inf)
