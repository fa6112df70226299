"""Supervised learning on template responses, for a model of random weights, which writes none."""

from __future__ import annotations

import torch

from metaopt.engine import tree
from metaopt.engine.inner_optimizers import AdamW
from metaopt.engine.protocols import Tree
from metaopt.engine.random import fold
from metaopt.problems.meta_policy_optimization.text_policy.responses import Responder
from metaopt.problems.meta_policy_optimization.text_policy.worlds import Taught

BATCH = 32
"""Least template responses of a step; each query has as many."""


def teach_(
    weights: Tree, responder: Responder, world: Taught, steps: int, lr: float, key: int
) -> None:
    """Train weights in place, by AdamW on the mean negative log-likelihood of a token.

    Args:
        weights: of the responder's model.
        responder: what computes log-probabilities.
        world: whose queries and template responses are learned.
        steps: each on fresh responses.
        lr: learning rate.
        key: of the responses.
    """
    optimizer = AdamW(lr=lr)
    moments = optimizer.init(weights)
    each = -(-BATCH // len(world.queries))
    for step in range(steps):
        drawn = fold(key, "teaching", step)
        pairs = [
            (query, text) for query in world.queries for text in world.texts(query, each, drawn)
        ]
        responses = responder.written(pairs)
        leaves = tree.leaves(weights)
        log_p = responder.log_p(leaves, responses)
        loss = -torch.where(responses.mask.bool(), log_p, 0.0).sum() / responses.mask.sum()
        (grads,) = tree.gradient(loss, leaves)
        optimizer.update_(weights, grads, moments, step)
