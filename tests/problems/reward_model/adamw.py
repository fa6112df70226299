"""Training of reward models on any losses, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from metaopt.problems.reward_model.model.training import Recipe


def trained(
    start: dict[str, Tensor],
    losses: Callable[[dict[str, Tensor]], Iterable[Tensor]],
    recipe: Recipe,
) -> dict[str, Tensor]:
    """Return the parameters after a step of AdamW on each of the losses (G, B) of them."""
    params = {k: v.clone().requires_grad_() for k, v in start.items()}
    adam = torch.optim.AdamW(
        params.values(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    for loss in losses(params):
        adam.zero_grad()
        loss.mean(-1).sum().backward()
        adam.step()
    return {k: v.detach() for k, v in params.items()}
