"""What tells of a hacked judge where nobody knows the truth: drift, length and repetition.

A policy that exploits its judge goes far from the first policy (KL), and often writes longer, or
the same words again. None of them proves it: they say when to read responses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from metaopt.problems.meta_policy_optimization.text_policy.grpo import Tokens, divergence
from metaopt.problems.meta_policy_optimization.text_policy.responses import Responses


def telltales(responses: Responses) -> dict[str, float]:
    """Return length (mean number of tokens), distinct and distinct_2 of responses."""
    return {
        "length": float(responses.mask.sum(1).float().mean()),
        "distinct": distinct(responses.texts, 1),
        "distinct_2": distinct(responses.texts, 2),
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the number of different runs of n words, as a share of all; 0 where there is none.

    It falls with the number of texts, so only equal numbers are to be compared (distinct-n: Li et
    al., A Diversity-Promoting Objective Function for Neural Conversation Models, NAACL 2016).
    """
    each = [text.split() for text in texts]
    runs = [tuple(words[i : i + n]) for words in each for i in range(len(words) - n + 1)]
    return len(set(runs)) / max(len(runs), 1)


def nats(tokens: Tokens) -> float:
    """Return the estimated KL divergence from the first policy, in nats a response."""
    estimates = divergence(tokens.old, tokens.reference)
    return float(torch.where(tokens.mask.bool(), estimates, 0.0).sum(1).mean())
